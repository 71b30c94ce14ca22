"""From HF datasets to windows."""

from train.data.rows import DataError, Rows
from train.data.sources import Sets, open_sets
from train.data.windows import Windows

__all__ = ["DataError", "Rows", "Sets", "Windows", "open_sets"]
