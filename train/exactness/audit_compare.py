"""Recomputes the gradient of a step from its other cut, and compares the two."""

from math import isfinite

from train.exactness.audit_diagnosis import diagnose
from train.exactness.audit_obstacles import declares_invariant_draws, recorded_other_draws
from train.exactness.audit_verdict import Kind, NotComparable, Verdict
from train.exactness.audited_step import AuditedStep
from train.exactness.error_bounds import BOUNDS, arithmetic
from train.exactness.extra_gradient import uncompiled


def compare(step: AuditedStep) -> Verdict:
    """Raises NotComparable where the other cut cannot be computed, or proves nothing."""
    learner = step.learner
    step.rewind()
    # Uncompiled: the sizes of the other cut would be compiled anew, for one use.
    with recorded_other_draws(learner, step.generators) as drawn, uncompiled():
        step.recompute(step.other_cut)
    # Where some draws are declared invariant, only these could be allowed before; the others show
    # now. All ranks ask each other, whatever they have drawn themselves.
    if declares_invariant_draws(learner) and any(step.ranks.gather(drawn)):
        raise NotComparable(
            "it draws random numbers, and would draw others for other micro-batches"
        )
    difference = step.difference_to_current()
    if learner.scaler.is_enabled() and not isfinite(difference.error):
        # The loss scale suits the step's own micro-batches; another cut may exceed 65,504.
        raise NotComparable("its other cut overflows in float16")
    # The narrower one of the two tables: what lies above it is diagnosed next, not refused.
    bound = BOUNDS[arithmetic(learner, step.config.precision)]
    if difference.error <= bound:
        return Verdict(kind=Kind.VERIFIED, error=difference.error)
    return diagnose(step, difference, bound)
