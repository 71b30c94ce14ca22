"""From HF datasets to windows."""

from train.data.by_length import ByLength, Padding, in_memory
from train.data.in_range import in_range
from train.data.loader import WorkerLost
from train.data.normalize import normalized
from train.data.packing import make_tokenizer
from train.data.rows import Rows
from train.data.scales import Fitted
from train.data.shares import DataError, EvaluationSet, TrainingSet
from train.data.sources import Sets, open_sets
from train.data.splits import Splits, load_splits
from train.data.tokenizers import save_tokenizer
from train.data.windows import Windows

__all__ = [
    "ByLength",
    "DataError",
    "EvaluationSet",
    "Fitted",
    "Padding",
    "Rows",
    "Sets",
    "Splits",
    "TrainingSet",
    "Windows",
    "WorkerLost",
    "in_memory",
    "in_range",
    "load_splits",
    "make_tokenizer",
    "normalized",
    "open_sets",
    "save_tokenizer",
]
