"""The verdict of one audit, in the user's words."""

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """The value says what is true of the gradient."""

    VERIFIED = "is that of the full batch"
    ROUNDING = "differs by rounding alone"
    INEXACT = "depends on how the batch is cut"
    FAULT = "was computed wrong"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The same on every rank."""

    kind: Kind
    error: float  # |other cut's gradient - gradient| / |gradient|
    parameter: str = ""  # with the largest absolute difference
    cause: str = ""

    def message(self, step: int) -> str:
        """For what is not verified."""
        return (
            f"step {step:,}: the gradient {self.kind.value}, by {self.error:.0e}, most in "
            f"{self.parameter} ({self.cause})"
        )

    @property
    def has_failed(self) -> bool:
        return self.kind in (Kind.INEXACT, Kind.FAULT)


class NotComparable(Exception):
    """A gradient cannot be computed in another way; raised on all ranks together."""
