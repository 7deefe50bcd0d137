"""Converts LLaVA-1.5 between LLaVA's layout and HF's, and proves that nothing changed.

stored.py, shards.py    reading and writing weights tensor by tensor
parts.py, names.py      a model taken apart, and what its parts are called where
sources.py, hf_source.py, merging.py   what can be opened
targets.py, tokenizer_files.py, images.py, vocabulary.py   what is written
live.py, parity.py      running both, and comparing
run.py                  the command
"""

from llava_ohd.llava15.convert.parity import Row, compare, verify
from llava_ohd.llava15.convert.run import ConvertConfig, convert
from llava_ohd.llava15.convert.sources import open_source

__all__ = ["ConvertConfig", "Row", "compare", "convert", "open_source", "verify"]
