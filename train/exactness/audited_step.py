"""A step whose gradient is recomputed while that of the training is set aside."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from train.batch.window import Window
from train.config import Config
from train.distributed.ranks import Ranks, lost_rank
from train.errors import is_out_of_memory
from train.exactness.audit_cut import StepSamples
from train.exactness.audit_verdict import NotComparable
from train.exactness.difference import GradientDifference, gradient_difference
from train.exactness.extra_gradient import (
    Gradients,
    accumulate_gradient,
    current_gradients,
    zeros_for_missing,
)
from train.exactness.reference_gradient import short_reason
from train.randomness import Generators
from train.step import Learner


@dataclass(frozen=True, kw_only=True)
class AuditedStep:
    """All ranks do the same with it together."""

    learner: Learner
    config: Config
    window: Window
    """As the step was computed."""
    other_cut: Window
    """The same samples over all ranks, in other micro-batches."""
    samples: StepSamples
    ranks: Ranks
    generators: Generators
    rewind: Callable[[], None]
    """Brings state and generators to where the step began."""
    gradient: Gradients
    """That of the step, on the host."""
    changed_state: Sequence[str]
    """Names of what the step's gradient has changed besides."""
    largest_norm: float
    """Of the gradients that were audited so far."""

    def recompute(self, window: Window) -> None:
        """Computes the gradient of `window` into `.grad`. Raises NotComparable, on all ranks."""
        try:
            # Through `extra` and not through the parts of the run: no gauge counts this gradient as
            # one of a step.
            self.learner.parallel.extra(accumulate_gradient)(self.learner, window)
        except Exception as error:
            # A lost rank is no finding. Under FSDP2 a forward pass needs all ranks, and the others
            # may wait in it: only the end of this rank lets them go.
            if lost_rank(error) or self.learner.parallel.is_sharded:
                raise
            reason = short_reason(error)
            if is_out_of_memory(error):
                reason = "it does not fit in memory beside the training"
            raise NotComparable(f"the other cut cannot be computed: {reason}") from error

    def difference_to_current(self) -> GradientDifference:
        """Of the gradient in `.grad` from that of the step."""
        own = zeros_for_missing(self.learner, self.gradient)
        return gradient_difference(self.learner, own, current_gradients(self.learner))
