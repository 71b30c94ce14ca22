"""Two gradients of one step differ by more than the arithmetic explains: why?

Asked in this order, since each answer rests on the one before:

1. Does the machine compute the same twice, and the same on all ranks? Else it is a fault.
2. Do the cuts differ in float64, too? Then the model depends on the cut: inexact.
3. Does rounding in the run's own precision make as much? Then it is rounding; else a fault of a
   kernel, which computes something else for other sizes.
"""

import socket
from collections.abc import Sequence

import torch

from train.data.in_step import LateWeights
from train.exactness.audit_cause import find_cause
from train.exactness.audit_rounding import GradientsOnCopies
from train.exactness.audit_verdict import Kind, NotComparable, Verdict
from train.exactness.audited_step import AuditedStep
from train.exactness.difference import GradientDifference
from train.exactness.extra_gradient import clear_gradients, current_gradients, zeros_for_missing
from train.exactness.faulty_rank import find_faulty_ranks


def diagnose(step: AuditedStep, difference: GradientDifference, bound: float) -> Verdict:
    copies = GradientsOnCopies(
        learner=step.learner,
        ranks=step.ranks,
        rewind=step.rewind,
        own_cut=step.window,
        other_cut=step.other_cut,
    )
    # Elsewhere other bits prove nothing: kernels that add up by atomics give others each time.
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    if step.learner.device.type == "cpu" or is_deterministic:
        verdict = _fault_of_machine(step, difference, copies)
        if verdict is not None:
            return verdict
    # Rounding is 2**29 times smaller there than in float32: what is left is the model's.
    try:
        in_float64 = copies.compare_in_float64()
    except NotComparable as reason:
        return _compare_with_largest(step, difference, bound, str(reason))
    measured = f"in float64 it is {in_float64.error:.0e}"
    if not in_float64.is_rounding:
        # Looked for only now: the search runs the model several times.
        return _verdict(Kind.INEXACT, difference, f"{measured}: {_cause(step)}")
    if copies.rounding_explains(difference.error):
        return _verdict(Kind.ROUNDING, difference, measured)
    return _verdict(
        Kind.FAULT,
        difference,
        f"{measured}, and rounding makes less: does a kernel compute something else for other "
        "sizes?",
    )


def _fault_of_machine(
    step: AuditedStep, difference: GradientDifference, copies: GradientsOnCopies
) -> Verdict | None:
    """None where the same cut gives the same bits again, and all ranks compute the same."""
    error = _error_of_repetition(step)
    # Asked also where the bits have changed: a rank that computes wrong is then named.
    faulty_ranks = find_faulty_ranks(
        step.learner, step.window, step.samples, step.rewind, step.ranks
    )
    if error is not None:
        return _verdict_on_repetition(step, difference, error, faulty_ranks, copies)
    if faulty_ranks:
        who = _named(step, faulty_ranks)
        return _verdict(
            Kind.FAULT, difference, f"from the same samples {who} computes something else"
        )
    return None


def _error_of_repetition(step: AuditedStep) -> float | None:
    """The relative difference of the same cut from itself; None where its bits are the same."""
    if isinstance(step.window.weights, LateWeights):
        # The step's gradient was divided by its weight afterwards. By now the weight is known, and
        # the loss would be divided by it: other bits for that reason alone.
        return None
    step.rewind()
    clear_gradients(step.learner)
    step.recompute(step.window)
    own = zeros_for_missing(step.learner, step.gradient)
    repeated = current_gradients(step.learner)
    is_same = all(torch.equal(a.to(b.device), b) for a, b in zip(own, repeated, strict=True))
    # Agreed on: the bits may differ on one rank alone, and all have to go the same way.
    if all(step.ranks.gather(is_same)):
        return None
    return step.difference_to_current().error


def _verdict_on_repetition(
    step: AuditedStep,
    difference: GradientDifference,
    error: float,
    faulty_ranks: Sequence[int] | None,
    copies: GradientsOnCopies,
) -> Verdict:
    """Other bits the second time: a state that is not put back, or a device that errs.

    Such a state shows in float64, too; an error of the device does not come again.
    """
    repeated = f"the same cut gave another gradient the second time, by {error:.0e}"
    if faulty_ranks:
        who = _named(step, faulty_ranks)
        return _verdict(Kind.FAULT, difference, f"{repeated}, and {who} computes wrong")
    # float64 tells the two apart: a state moves the gradient there by as much, an error of the
    # device does not come again.
    if copies.differs_when_repeated():
        return _verdict(
            Kind.INEXACT,
            difference,
            f"{repeated}, in float64 too: model or task keeps something that is no buffer and no "
            "attribute",
        )
    cause = f"{repeated}: a device computes wrong now and then"
    if faulty_ranks == []:
        cause = f"{cause}; asked once more, all ranks computed the same"
    return _verdict(Kind.FAULT, difference, cause)


def _compare_with_largest(
    step: AuditedStep, difference: GradientDifference, bound: float, reason: str
) -> Verdict:
    """Where float64 cannot be asked: a gradient that is nearly nothing is mostly rounding."""
    # Near a minimum a gradient is nearly nothing, and any rounding is large beside it: the largest
    # one audited stands for the scale of the numbers that were added up.
    relative = difference.absolute / step.largest_norm
    measured = (
        f"of the largest audited gradient {relative:.0e}; float64 could not be asked: {reason}"
    )
    if relative <= bound:
        return _verdict(Kind.ROUNDING, difference, measured)
    return _verdict(Kind.INEXACT, difference, f"{measured}; {_cause(step)}")


def _cause(step: AuditedStep) -> str:
    """That of rank 0: the verdict is the same on every rank."""
    own = find_cause(step.learner, step.samples, step.rewind, step.changed_state)
    return str(step.ranks.gather(own)[0])


def _named(step: AuditedStep, faulty_ranks: Sequence[int]) -> str:
    # The machine, too: who has to look at a device needs its name more than the rank.
    hosts = step.ranks.gather(socket.gethostname())
    names = [f"rank {rank} (on {hosts[rank]})" for rank in faulty_ranks]
    return names[0] if len(names) == 1 else f"one of {' and '.join(names)}"


def _verdict(kind: Kind, difference: GradientDifference, cause: str) -> Verdict:
    return Verdict(
        kind=kind,
        error=difference.error,
        parameter=difference.largest_parameter,
        cause=cause,
    )
