"""In training mode: do the gradients of the parts of a batch add up to its own, and what would be
left behind?
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import nn

from train.errors import some
from train.exactness.culprit import first_that_couples, first_that_draws
from train.exactness.reference_gradient import at_work
from train.exactness.rounding import is_rounding
from train.exactness.state import State, buffers_of, generators_of
from train.exactness.trial import Outcome, Part, Trial, says_invariant

UPDATES = 4
"""So often are the samples put through before it is asked what that left behind: a counter or an
average creeps.
"""

DRAWS = 4
"""With so many seeds is looked for what random numbers change, before they are forced."""


@dataclass
class Findings:
    """What the trials found."""

    mistakes: list[str] = field(default_factory=list)  # what no task can have meant
    reasons: list[str] = field(default_factory=list)  # why it is not exact
    untried: list[str] = field(default_factory=list)  # why somebody's word is taken
    error: float = 0.0  # the largest relative difference seen where the parts add up


def try_training(trial: Trial, tolerance: float) -> Findings:
    """What training mode adds: statistics over a micro-batch, random masks, state. And what a loss
    does not show: under a head of zeros it is the same whatever the model sees.
    """
    found = Findings()
    normalising = at_work(trial.learner.module, nn.modules.batchnorm._BatchNorm)
    if normalising:
        found.reasons.append(
            "BatchNorm in train mode takes its statistics from each micro-batch "
            f"({some(normalising)}): use GroupNorm or LayerNorm, or freeze it by .eval() in the "
            "model's constructor"
        )
    if normalising and trial.samples == 1:
        return found
    with trial.counting_draws():
        whole = trial.run(trial.all_at_once(), 1)
        if not all(map(isfinite, whole.size)):
            found.reasons.append(
                "the gradient of the first samples is not finite before the first step"
            )
            return found
        _try_again(trial, whole, tolerance, found)
        if found.reasons:
            return found
        _try_cuts(trial, whole, tolerance, found)
        if not found.reasons:
            _try_state(trial, whole, tolerance, found)
        if not found.reasons:
            # Once more, after some tens of calls: what creeps in a place that cannot be looked
            # into.
            apart = trial.apart(trial.run(trial.all_at_once(), 1), whole)
            if not apart <= tolerance:
                found.reasons.append(_remembers(apart))
    if any(p._post_accumulate_grad_hooks for p in trial.learner.parameters):
        found.untried.append(
            "what register_post_accumulate_grad_hook does to a gradient was not tried"
        )
    return found


def _try_again(trial: Trial, whole: Outcome, tolerance: float, found: Findings) -> None:
    """The same samples with other random numbers, and from the same state."""
    drawn = [*whole.drawn, *generators_of(whole.state.changed_since(trial.start, tolerance))]
    for seed in range(2, 2 + (DRAWS if drawn else 1)):
        apart = trial.apart(trial.run(trial.all_at_once(), seed, advance=True), whole)
        if not apart <= tolerance:
            break
    else:
        if whole.drawn and not _forced_apart(trial, whole, tolerance):
            found.untried.append(
                f"random numbers are drawn ({', '.join(whole.drawn)}), which changed nothing in "
                f"{DRAWS + 3} tries: a part that draws the same however a batch is cut can say so "
                "(split_invariant_draws = True)"
            )
        elif whole.drawn:
            found.reasons.append(_random(trial, whole.drawn, tolerance))
        invariant = says_invariant(trial.learner.module)
        if invariant:
            found.untried.append(
                f"{some(list(invariant))} says that its draws are the same however a batch is cut"
            )
        return
    if drawn:
        found.reasons.append(_random(trial, drawn, tolerance))
    else:
        found.reasons.append(_remembers(apart))


def _forced_apart(trial: Trial, whole: Outcome, tolerance: float) -> bool:
    """Whether rare choices change anything when they are made certain."""
    for high in (False, True):
        forced = trial.run(trial.all_at_once(), 1, forced=high)
        if not trial.apart(forced, whole) <= tolerance:
            return True
    return False


def _random(trial: Trial, drawn: Sequence[str], tolerance: float) -> str:
    masking = at_work(trial.learner.module, nn.modules.dropout._DropoutNd)
    where = some(masking) if masking else first_that_draws(trial, tolerance)
    if not masking:
        seen = f"first seen in {where}, " if where else ""
        where = f"{seen}from {', '.join(drawn)}"
    return (
        f"dropout or the like draws other masks for other micro-batches ({where}): same "
        "distribution, other numbers; a probability of 0 is exact"
    )


def _remembers(apart: float) -> str:
    return (
        f"the same samples give another gradient the second time, by {apart:.0e}: the model or the "
        "task keeps something from one micro-batch to the next that is no buffer and no attribute, "
        "or draws from a generator of its own"
    )


def _try_cuts(trial: Trial, whole: Outcome, tolerance: float, found: Findings) -> None:
    cuts = 0
    for parts in trial.cuts() if trial.samples > 1 else ():
        try:
            split = trial.run(parts, 3)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            problem = (
                # of few samples, such as one alone: the loop may never have so
                f"{type(error).__name__}: {error}"
            )
            continue
        cuts += 1
        apart = trial.apart(split, whole)
        if not apart <= tolerance and not is_rounding(trial, apart, whole):
            found.reasons.append(_coupled(trial, parts, apart, tolerance))
            return
        found.error = max(found.error, apart)
    if trial.samples > 1 and not cuts:
        found.untried.append(f"parts of the first samples cannot be put through alone ({problem})")


def _coupled(trial: Trial, parts: Sequence[Part], apart: float, tolerance: float) -> str:
    start = (
        f"in train mode the gradient of a batch is not the sum over its parts, by {apart:.0e}: the "
        "model couples samples, or the loss does"
    )
    where = first_that_couples(trial, parts, tolerance)
    if where:
        return f"{start} ({where} gives a sample something else when it is with others)"
    return (
        f"{start} (the outputs of all modules are the same: look at the loss, at hooks, and at a "
        "state that is kept)"
    )


def _try_state(trial: Trial, whole: Outcome, tolerance: float, found: Findings) -> None:
    """What a forward leaves behind: does it depend on the cut, and does that change the training or
    the evaluation?
    """
    changed = whole.state.changed_since(trial.start, 0.0)
    for name in changed:
        if name.startswith("parameter "):
            found.untried.append(
                f"the forward changes the {name} in place: what that does to later steps was not "
                "tried"
            )
    if not changed or trial.samples == 1:
        return
    single = trial.cuts_of_one()
    after_whole = _updated(trial, trial.all_at_once())
    after_parts = _updated(trial, single)
    names = [
        n
        for n in after_parts.changed_since(after_whole, tolerance)
        if not n.startswith("parameter ")
    ]
    if not names:
        return
    what = some(names)
    first = trial.run(trial.all_at_once(), 1, after_whole)
    second = trial.run(trial.all_at_once(), 1, after_parts)
    apart = trial.apart(second, first)
    if not apart <= tolerance and not is_rounding(trial, apart, whole):
        found.reasons.append(
            f"the forward changes {what}, and what it becomes depends on how a batch is cut: after "
            f"{UPDATES} updates the gradient is {apart:.0e} away. Update it once per step, or "
            "freeze it"
        )
        return
    apart = trial.evaluated_apart(after_whole, after_parts)
    if not apart <= tolerance:
        found.reasons.append(
            f"the forward changes {what}, and what it becomes depends on how a batch is cut: after "
            f"{UPDATES} updates the loss in an evaluation is {apart:.0e} away, though the gradient "
            "is not. Freeze it, or read eval/loss as one of this cut"
        )
        return
    own = generators_of(names)
    if own:
        found.untried.append(
            f"{some(own)}: a generator of its own is drawn from, which changed nothing so far"
        )
    held = buffers_of(names)
    if held and _depends_on_data(trial, single, held, tolerance):
        found.untried.append(
            f"{some(held)} depends on the data of each micro-batch, though neither the gradient "
            "nor the loss of the first samples does"
        )


def _updated(trial: Trial, parts: Sequence[Part]) -> State:
    trial.start.restore()
    for update in range(UPDATES):
        outcome = trial.run_on(parts, update)
    return outcome.state


def _depends_on_data(
    trial: Trial, single: Sequence[Part], names: Sequence[str], tolerance: float
) -> bool:
    """Not where it only counts calls."""
    one = trial.run(single[:1], 1).state
    for part in single[1:]:
        other = trial.run([part], 1).state
        if set(names) & set(other.changed_since(one, tolerance)):
            return True
    return False
