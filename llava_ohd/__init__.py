"""llava_ohd: CLIP encoders that do not see objects which are not there, inside LLaVA-1.5.

The stages (data, encoder, tower, LLaVA training, evaluation) meet only on disk; see README.md for the data flow.
"""

__version__ = "0.1.0"
