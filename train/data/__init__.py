"""From HF datasets to windows."""

from train.data.packing import make_tokenizer
from train.data.parts import DataError, TrainingSet
from train.data.rows import Rows
from train.data.sources import Sets, open_sets
from train.data.windows import Windows

__all__ = ["DataError", "Rows", "Sets", "TrainingSet", "Windows", "make_tokenizer", "open_sets"]
