"""What is refused: a config or data that the user can mend by typing something else."""

from train.blocks import NoBlocks
from train.config import ConfigError
from train.data import DataError
from train.exact import NotExact, TaskError
from train.fitting import Misfit
from train.initial import WeightsError
from train.models import ModelError
from train.patterns import PatternError
from train.planning import PlanError
from train.report import BAD_CONFIG, FAILED, FolderRefused, TrackerError, UnknownDirection
from train.setup import Unsupported

REFUSALS = (
    ConfigError,
    DataError,
    FolderRefused,
    Misfit,
    ModelError,
    NoBlocks,
    NotExact,
    PatternError,
    PlanError,
    TaskError,
    TrackerError,
    UnknownDirection,
    Unsupported,
    WeightsError,
)
"""Told without a stack trace."""


def code_of(error: BaseException) -> int:
    """The exit code of a run that `error` has ended."""
    return BAD_CONFIG if isinstance(error, REFUSALS) else FAILED
