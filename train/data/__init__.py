"""From HF datasets to windows."""

from train.data.loader import WorkerLost
from train.data.packing import make_tokenizer
from train.data.parts import DataError, EvaluationSet, TrainingSet
from train.data.rows import Rows
from train.data.sources import Sets, Splits, load_splits, open_sets
from train.data.windows import Windows

__all__ = [
    "DataError",
    "EvaluationSet",
    "Rows",
    "Sets",
    "Splits",
    "TrainingSet",
    "Windows",
    "WorkerLost",
    "load_splits",
    "make_tokenizer",
    "open_sets",
]
