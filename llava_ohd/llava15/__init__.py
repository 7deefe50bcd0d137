"""LLaVA-1.5 on transformers' classes: conversation templates, data, the model of a stage, training, the model folder.

Nothing is imported here: a program that only needs the templates should not wait for torch.
"""
