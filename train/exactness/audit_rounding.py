"""Gradients of an audited step on copies of its weights: in float64, or with weights rounded.

They tell rounding from a model that depends on the cut, and both from a fault.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from train.batch.window import Window
from train.distributed.ranks import Ranks, lost_rank
from train.errors import is_out_of_memory
from train.exactness.audit_verdict import NotComparable
from train.exactness.copied_weights import Conversion, copied_weights, in_float64
from train.exactness.difference import gradient_difference
from train.exactness.extra_gradient import accumulate_gradient
from train.exactness.reference_gradient import gradients_or_zeros, plain_forward, short_reason
from train.exactness.rounding import (
    ROUNDINGS_EXPLAINED,
    NarrowestDtype,
    rounded_once_more,
    tolerance_of,
)
from train.step import Learner

ROUNDINGS = 12
"""How many roundings are tried, each ROUNDINGS_EXPLAINED times as large as one of a weight.

A unit at its threshold (ReLU, max-pooling), which the sums of a layer may push over it, goes one
way or the other: about every second rounding shows it.
"""


@dataclass(frozen=True)
class Float64Difference:
    """Of the two cuts, in float64."""

    error: float
    is_rounding: bool


@dataclass(frozen=True, kw_only=True)
class GradientsOnCopies:
    """Computes gradients, over all ranks, on copies in the places of the live weights."""

    learner: Learner
    ranks: Ranks
    rewind: Callable[[], None]  # brings state and generators to where the step began
    own_cut: Window
    other_cut: Window

    def compare_in_float64(self) -> Float64Difference:
        """Raises NotComparable where a gradient cannot be computed in float64."""
        with NarrowestDtype() as recorded:
            own = self._gradient(self.own_cut, in_float64, torch.float64)
        other = self._gradient(self.other_cut, in_float64, torch.float64)
        error = self._error(own, other)
        # A model may cast inside, and round there whatever its weights are.
        narrowest = self._narrowest_of_ranks(recorded)
        # The cheap question first: each rounding that is tried is one more gradient over all ranks.
        is_rounding = error <= tolerance_of(narrowest) or self._is_like_rounded_weights(
            error, own, narrowest, in_float64, torch.float64
        )
        return Float64Difference(error, is_rounding)

    def differs_when_repeated(self) -> bool:
        """Whether in float64, too, the same cut gives another gradient the second time."""
        try:
            with NarrowestDtype() as recorded:
                first = self._gradient(self.own_cut, in_float64, torch.float64)
            second = self._gradient(self.own_cut, in_float64, torch.float64)
        except NotComparable:
            return False
        return self._error(first, second) > tolerance_of(self._narrowest_of_ranks(recorded))

    def rounding_explains(self, error: float) -> bool:
        """Whether rounding in the run's own precision makes such a difference."""
        try:
            with NarrowestDtype() as recorded:
                # Computed on copies, as the rounded ones below are: the two then differ by the
                # rounding alone.
                own = self._gradient(self.own_cut, torch.clone, self.learner.dtype)
        except NotComparable:
            return True  # nothing is known against it, and a fault needs evidence
        narrowest = self._narrowest_of_ranks(recorded)
        if error <= tolerance_of(narrowest):
            return True
        return self._is_like_rounded_weights(error, own, narrowest, torch.clone, self.learner.dtype)

    def _is_like_rounded_weights(
        self,
        error: float,
        own: list[Tensor],
        narrowest: torch.dtype,
        convert: Conversion,
        dtype: torch.dtype,
    ) -> bool:
        """Whether rounding each weight once more changes the gradient by as much as the cut did."""
        for seed in range(ROUNDINGS):
            rounds = rounded_once_more(ROUNDINGS_EXPLAINED * torch.finfo(narrowest).eps, seed)
            rounded = self._gradient(self.own_cut, _chained(convert, rounds), dtype)
            if error <= self._error(own, rounded):
                return True
        return False

    def _narrowest_of_ranks(self, recorded: NarrowestDtype) -> torch.dtype:
        """What is computed may depend on a rank's samples, and all ranks have to go the same way.

        Else one would try roundings, which need all ranks, and the others would not.
        """
        dtypes = self.ranks.gather(recorded.dtype)
        return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)

    def _error(self, reference: list[Tensor], gradient: list[Tensor]) -> float:
        return gradient_difference(self.learner, reference, gradient).error

    def _gradient(self, window: Window, convert: Conversion, dtype: torch.dtype) -> list[Tensor]:
        """Per parameter, summed over the ranks. Raises NotComparable, on all ranks."""
        gradient: list[Tensor] = []
        problem = ""
        self.rewind()
        try:
            gradient = self._gradient_of_rank(window, convert, dtype)
            # A model that keeps its weights in another place, too, computes with the old ones:
            # zeros on both sides would pass for agreement.
            if not any(bool(part.any()) for part in gradient):
                problem = "nothing depends on the copied weights"
        except Exception as error:
            if lost_rank(error):
                raise
            problem = short_reason(error)
            if is_out_of_memory(error):
                problem = "it does not fit in memory"
        # Asked before the sum: a rank that failed has nothing to add, and the others would wait.
        for problem_of_rank in self.ranks.gather(problem):
            if problem_of_rank:
                raise NotComparable(problem_of_rank)
        self.ranks.add_up(gradient)
        return gradient

    def _gradient_of_rank(
        self, window: Window, convert: Conversion, dtype: torch.dtype
    ) -> list[Tensor]:
        # The run's own precision is with autocast, float64 is without: it would narrow again.
        is_float64 = dtype is torch.float64
        plain = plain_forward(self.learner.module) if is_float64 else nullcontext()
        with copied_weights(self.learner, convert, dtype) as copied, plain, torch.enable_grad():
            accumulate_gradient(copied, window, self.ranks.pulse.beat)
            return gradients_or_zeros(copied.parameters)


def _chained(first: Conversion, second: Conversion) -> Conversion:
    return lambda value: second(first(value))
