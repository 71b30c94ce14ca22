"""Two gradients of one step differ by more than the arithmetic explains: is it rounding, the model,
or the machine?
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from train.batch.window import Window
from train.distributed.ranks import Ranks, lost_rank
from train.errors import is_out_of_memory
from train.exactness.copied_weights import Change, in_float64, on_copies
from train.exactness.difference import difference
from train.exactness.extra_gradient import accumulated
from train.exactness.reference_gradient import plain_forward
from train.exactness.rounding import EXPLAINED, NARROWER, OF_TYPE, Watching, rounded_once_more
from train.step import Learner

ROUNDINGS = 12
"""That are tried, each EXPLAINED times as large as one of a weight. A unit at its threshold (ReLU,
max-pooling), which the sums of a layer may push over it, goes one way or the other: about every
second one shows it.
"""

VERIFIED, ROUNDING, INEXACT, FAULT = "verified", "rounding", "inexact", "fault"


@dataclass(frozen=True)
class Verdict:
    """Of one audit, the same on every rank."""

    kind: str
    error: float  # |other cut's gradient - gradient| / |gradient|
    parameter: str = ""  # that differs most
    cause: str = ""

    def sentence(self, step: int) -> str:
        """On what is not verified."""
        what = {
            ROUNDING: "differs by rounding alone",
            INEXACT: "depends on how the batch is cut",
            FAULT: "was computed wrong",
        }
        how = f"{what[self.kind]}, by {self.error:.0e}, most in {self.parameter}"
        return f"step {step:,}: the gradient {how} ({self.cause})"

    @property
    def has_failed(self) -> bool:
        return self.kind in (INEXACT, FAULT)


class Unable(Exception):
    """Something cannot be computed so; on all ranks."""


@dataclass(frozen=True)
class Copies:
    """Gradients on copies of the weights, over all ranks."""

    learner: Learner
    ranks: Ranks
    begin: Callable[[], None]  # brings state and generators to where the step began
    first: Window
    other: Window

    def in_float64(self) -> tuple[float, bool]:
        """The relative difference of the two cuts, and whether rounding explains it.
        Raises Unable.
        """
        with Watching() as watching:
            first = self._gradient(self.first, in_float64, torch.float64)
        other = self._gradient(self.other, in_float64, torch.float64)
        apart = self._apart(first, other)
        narrowest = self._of_all_ranks(watching)
        if apart <= OF_TYPE.get(narrowest, NARROWER):
            return apart, True
        return apart, self._is_rounding(apart, first, narrowest, in_float64, torch.float64)

    def remember(self) -> bool:
        """Whether in float64, too, the same cut gives another gradient the second time."""
        try:
            with Watching() as watching:
                first = self._gradient(self.first, in_float64, torch.float64)
            again = self._gradient(self.first, in_float64, torch.float64)
        except Unable:
            return False
        return self._apart(first, again) > OF_TYPE.get(self._of_all_ranks(watching), NARROWER)

    def explains(self, error: float) -> bool:
        """Whether the rounding of the run's own precision makes such a difference."""
        try:
            with Watching() as watching:
                first = self._gradient(self.first, torch.clone, self.learner.dtype)
        except Unable:
            return True  # nothing is known against it
        narrowest = self._of_all_ranks(watching)
        if error <= OF_TYPE.get(narrowest, NARROWER):
            return True
        return self._is_rounding(error, first, narrowest, torch.clone, self.learner.dtype)

    def _is_rounding(
        self,
        apart: float,
        first: list[Tensor],
        narrowest: torch.dtype,
        change: Change,
        dtype: torch.dtype,
    ) -> bool:
        """Whether such a difference comes where each weight, changed by `change`, is rounded more
        coarsely.
        """
        for seed in range(ROUNDINGS):
            rounds = rounded_once_more(EXPLAINED * torch.finfo(narrowest).eps, seed)
            if apart <= self._apart(
                first, self._gradient(self.first, _after(change, rounds), dtype)
            ):
                return True
        return False

    def _of_all_ranks(self, watching: Watching) -> torch.dtype:
        """The narrowest type: what is computed may depend on a rank's samples, and all have to go
        the same way.
        """
        return max(self.ranks.gather(watching.narrowest), key=lambda dtype: torch.finfo(dtype).eps)

    def _apart(self, first: list[Tensor], second: list[Tensor]) -> float:
        return difference(self.learner, first, second).error

    def _gradient(self, window: Window, change: Change, dtype: torch.dtype) -> list[Tensor]:
        """A gradient per parameter, on the device."""
        found: list[Tensor] = []
        problem = ""
        self.begin()
        # float64 is without autocast; the run's own precision is with it.
        plain = plain_forward(self.learner.module) if dtype is torch.float64 else nullcontext()
        try:
            with on_copies(self.learner, change, dtype) as copied, plain, torch.enable_grad():
                accumulated(copied, window, self.ranks.pulse.beat)
                found = [
                    torch.zeros_like(p) if p.grad is None else p.grad for p in copied.parameters
                ]
            if not any(bool(gradient.any()) for gradient in found):
                problem = "nothing depends on the copied weights"
        except Exception as error:
            if lost_rank(error):
                raise
            problem = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
            if is_out_of_memory(error):
                problem = "it does not fit in memory"
        said = [each for each in self.ranks.gather(problem) if each]
        if said:
            raise Unable(said[0])
        self.ranks.add_up(found)
        return found


def _after(change: Change, rounds: Change) -> Change:
    return lambda value: rounds(change(value))
