"""Encoder fine-tuning: the loss, its batches, the training, caption accuracy and zero-shot recognition."""
