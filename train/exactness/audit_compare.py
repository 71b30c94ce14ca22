"""One audit: the gradient of a step against that of another cut, and what follows where they
differ.
"""

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite

import torch

from train.batch.window import Window
from train.config import Config
from train.data import TrainingSet
from train.data.in_step import LateWeights
from train.distributed.ranks import Ranks, lost_rank
from train.errors import is_out_of_memory
from train.exactness.additivity import BOUNDS, arithmetic
from train.exactness.audit_cause import cause_of
from train.exactness.audit_cut import Samples, samples_of
from train.exactness.audit_draws import drawn_outside, may_draw
from train.exactness.audit_verdict import (
    FAULT,
    INEXACT,
    ROUNDING,
    VERIFIED,
    Copies,
    Unable,
    Verdict,
)
from train.exactness.difference import Difference, difference
from train.exactness.extra_gradient import (
    Gradients,
    accumulated,
    clear,
    filled,
    gradients,
    uncompiled,
)
from train.exactness.faulty_rank import disagreeing
from train.randomness import Generators
from train.step import Learner


@dataclass(kw_only=True)
class Comparison:
    """Of one step, while its gradient is put aside. All ranks do the same together."""

    learner: Learner
    config: Config
    window: Window
    data: TrainingSet
    ranks: Ranks
    generators: Generators
    begin: Callable[[], None]  # brings state and generators to where the step began
    kept: Gradients  # that of the step
    changed: Sequence[str]  # what the step's gradient has changed besides
    largest: float  # norm of the gradients audited so far
    samples: Samples = field(init=False)

    def verdict(self) -> Verdict:
        """Raises Unable where the other cut cannot be computed."""
        self.samples = samples_of(self.window, self.data, self.ranks)
        other = self.samples.other_cut(self.window)
        self.begin()
        with drawn_outside(self.learner, self.generators) as drawn, uncompiled():
            self._compute(other)
        found = gradients(self.learner)
        if may_draw(self.learner) and any(self.ranks.gather(drawn)):
            raise Unable("it draws random numbers, and would draw others for other micro-batches")
        apart = difference(self.learner, filled(self.learner, self.kept), found)
        del found
        if self.learner.scaler.is_enabled() and not isfinite(apart.error):
            raise Unable("its other cut overflows in float16")
        bound = BOUNDS[arithmetic(self.learner, self.config.precision)]
        if apart.error <= bound:
            return Verdict(kind=VERIFIED, error=apart.error)
        return self._explained(apart, other, bound)

    def _compute(self, window: Window) -> None:
        """Its gradient, in `.grad`. Raises Unable, on all ranks."""
        try:
            self.learner.parallel.extra(accumulated)(self.learner, window)
        except Exception as error:
            if lost_rank(error) or self.learner.parallel.is_sharded:
                raise
            why = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
            if is_out_of_memory(error):
                why = "it does not fit in memory beside the training"
            raise Unable(f"the other cut cannot be computed: {why}") from error

    def _explained(self, apart: Difference, other: Window, bound: float) -> Verdict:
        """First the machine, then the arithmetic, then the model."""
        copies = Copies(self.learner, self.ranks, self.begin, self.window, other)
        if self.learner.device.type == "cpu" or torch.are_deterministic_algorithms_enabled():
            again = self._again()
            wrong = disagreeing(self.learner, self.window, self.samples, self.begin, self.ranks)
            if again is not None:
                return self._not_repeated(apart, again, wrong, copies)
            if wrong:
                return self._said(
                    FAULT,
                    apart,
                    f"from the same samples {self._named(wrong)} computes something else",
                )
        try:
            wide, is_rounding = copies.in_float64()
        except Unable as error:
            return self._against_largest(apart, bound, str(error))
        if not is_rounding:
            cause = self.ranks.gather(
                cause_of(self.learner, self.samples, self.begin, self.changed)
            )[0]
            return self._said(INEXACT, apart, f"in float64 it is {wide:.0e}: {cause}")
        if copies.explains(apart.error):
            return self._said(ROUNDING, apart, f"in float64 it is {wide:.0e}")
        why = "and rounding makes less: does a kernel compute something else for other sizes?"
        return self._said(FAULT, apart, f"in float64 it is {wide:.0e}, {why}")

    def _again(self) -> float | None:
        """By how much the same cut differs from itself; None where its bits are the same.

        Not asked where the gradient was divided by its weight afterwards, and would now be before.
        """
        if isinstance(self.window.weights, LateWeights):
            return None
        self.begin()
        clear(self.learner)
        self._compute(self.window)
        first, second = filled(self.learner, self.kept), gradients(self.learner)
        same = all(torch.equal(a.to(b.device), b) for a, b in zip(first, second, strict=True))
        if all(self.ranks.gather(same)):
            return None
        return difference(self.learner, first, second).error

    def _not_repeated(
        self, apart: Difference, again: float, wrong: Sequence[int] | None, copies: Copies
    ) -> Verdict:
        """Other bits the second time: a state that cannot be put back shows in float64, too; a
        fault does not.
        """
        said = f"the same cut gave another gradient the second time, by {again:.0e}"
        if wrong:
            return self._said(FAULT, apart, f"{said}, and {self._named(wrong)} computes wrong")
        if copies.remember():
            why = "model or task keeps something that is no buffer and no attribute"
            return self._said(INEXACT, apart, f"{said}, in float64 too: {why}")
        once_more = "; asked once more, all ranks computed the same" if wrong == [] else ""
        return self._said(FAULT, apart, f"{said}: a device computes wrong now and then{once_more}")

    def _against_largest(self, apart: Difference, bound: float, why: str) -> Verdict:
        """Where float64 cannot be asked: a gradient that is nearly nothing is mostly rounding."""
        relative = apart.apart / self.largest
        said = f"of the largest audited gradient {relative:.0e}; float64 could not be asked: {why}"
        if relative <= bound:
            return self._said(ROUNDING, apart, said)
        cause = self.ranks.gather(cause_of(self.learner, self.samples, self.begin, self.changed))[0]
        return self._said(INEXACT, apart, f"{said}; {cause}")

    def _named(self, wrong: Sequence[int]) -> str:
        hosts = self.ranks.gather(socket.gethostname())
        names = [f"rank {rank} (on {hosts[rank]})" for rank in wrong]
        return names[0] if len(names) == 1 else f"one of {' and '.join(names)}"

    def _said(self, kind: str, apart: Difference, cause: str) -> Verdict:
        return Verdict(kind=kind, error=apart.error, parameter=apart.largest, cause=cause)
