"""What the checks before the first step found out about the gradient of a run."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Findings:
    mistakes: tuple[str, ...] = ()
    """What no task can have meant."""
    reasons: tuple[str, ...] = ()
    """Why the gradient is not exact."""
    unchecked: tuple[str, ...] = ()
    """What could not be checked, so that the code's own declaration is trusted."""
    error: float = 0.0
    """The largest relative difference seen where the parts add up."""

    @property
    def is_inexact(self) -> bool:
        return bool(self.mistakes or self.reasons)

    def plus(
        self,
        *,
        mistakes: Iterable[str] = (),
        reasons: Iterable[str] = (),
        unchecked: Iterable[str] = (),
        error: float = 0.0,
    ) -> "Findings":
        return Findings(
            mistakes=(*self.mistakes, *mistakes),
            reasons=(*self.reasons, *reasons),
            unchecked=(*self.unchecked, *unchecked),
            error=max(self.error, error),
        )

    def joined(self, other: "Findings") -> "Findings":
        return self.plus(
            mistakes=other.mistakes,
            reasons=other.reasons,
            unchecked=other.unchecked,
            error=other.error,
        )
