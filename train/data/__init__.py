"""From HF datasets to windows."""

from train.data.by_length import ByLength, in_memory
from train.data.in_range import in_range
from train.data.in_step import Spare
from train.data.in_turn import InTurn, read_in_turn
from train.data.normalize import normalized
from train.data.packing import make_tokenizer
from train.data.padding import Padding
from train.data.protocols import EvaluationSet, TrainingSet
from train.data.rows import Rows
from train.data.scales import Fitted
from train.data.shares import DataError
from train.data.sources import Datasets, open_datasets
from train.data.splits import Splits, load_splits
from train.data.tokenizers import save_tokenizer
from train.data.windows import Windows
from train.data.workers import WorkerLost

__all__ = [
    "ByLength",
    "DataError",
    "Datasets",
    "EvaluationSet",
    "Fitted",
    "InTurn",
    "Padding",
    "Rows",
    "Spare",
    "Splits",
    "TrainingSet",
    "Windows",
    "WorkerLost",
    "in_memory",
    "in_range",
    "load_splits",
    "make_tokenizer",
    "normalized",
    "open_datasets",
    "read_in_turn",
    "save_tokenizer",
]
