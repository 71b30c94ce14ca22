"""From HF datasets to windows."""

from train.data.packing import make_tokenizer
from train.data.rows import DataError, Rows
from train.data.sources import Sets, open_sets
from train.data.windows import Windows

__all__ = ["DataError", "Rows", "Sets", "Windows", "make_tokenizer", "open_sets"]
