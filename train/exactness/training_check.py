"""Checks the gradient in training mode: do the parts of a batch add up, and what is left behind?

A loss alone does not show it: under a head of zeros it is the same whatever the model sees.
"""

from collections.abc import Iterable, Sequence
from math import isfinite

import torch
from torch import nn

from train.errors import some
from train.exactness.captured_state import State, buffers_of, generators_of
from train.exactness.culprit import first_coupling_module, first_drawing_module
from train.exactness.findings import Findings
from train.exactness.reference_gradient import active_batch_norms, active_modules
from train.exactness.rounding import is_rounding
from train.exactness.trial import BatchPart, Outcome, Trial, exceeds, invariant_modules

UPDATES = 4
"""How often the samples are run before what that left behind is compared: a counter creeps."""

SEEDS = 4
"""With so many seeds random numbers are tried, before they are forced."""


def check_training(trial: Trial, tolerance: float) -> Findings:
    """What training mode adds: statistics over a micro-batch, random masks, state."""
    findings = Findings()
    batch_norms = active_batch_norms(trial.learner.module)
    if batch_norms:
        findings = findings.plus(
            reasons=[
                "BatchNorm in train mode takes its statistics from each micro-batch "
                f"({some(batch_norms)}): use GroupNorm or LayerNorm, or freeze it by .eval() in "
                "the model's constructor"
            ]
        )
        if trial.samples == 1:
            return findings  # torch would refuse to run it
    with trial.ignoring_invariant_draws():
        full = trial.run(trial.all_at_once(), 1)
        if not (isfinite(full.scale.loss) and isfinite(full.scale.gradient)):
            return findings.plus(
                reasons=["the gradient of the first samples is not finite before the first step"]
            )
        # The same cut first: where that does not repeat, no other cut says anything.
        findings = findings.joined(_check_repeated(trial, full, tolerance))
        if findings.reasons:
            return findings
        findings = findings.joined(_check_parts(trial, full, tolerance))
    if any(p._post_accumulate_grad_hooks for p in trial.learner.parameters):
        findings = findings.plus(
            unchecked=["what register_post_accumulate_grad_hook does to a gradient was not tried"]
        )
    return findings


def _check_parts(trial: Trial, full: Outcome, tolerance: float) -> Findings:
    findings = _check_cuts(trial, full, tolerance)
    if findings.reasons:
        return findings
    findings = findings.joined(_check_state(trial, full, tolerance))
    if findings.reasons:
        return findings
    # Once more, after some tens of calls: what creeps in a place that cannot be looked into.
    difference = trial.difference(trial.run(trial.all_at_once(), 1), full)
    if exceeds(difference, tolerance):
        return findings.plus(reasons=[_not_repeatable(difference)])
    return findings


def _check_repeated(trial: Trial, full: Outcome, tolerance: float) -> Findings:
    """The same samples with other random numbers, and from the same state."""
    # A model's own generator moves in the state alone: the global ones know nothing of it.
    own_generators = generators_of(full.state.changed_since(trial.start, tolerance))
    drawn = [*full.drawn, *own_generators]
    # The full batch was run with seed 1. Without draws one repetition is enough.
    seeds = range(2, 2 + SEEDS) if drawn else [2]
    difference = _first_difference(trial, full, seeds, tolerance)
    if difference is not None:
        if drawn:
            return Findings(reasons=(_random(trial, drawn, tolerance),))
        return Findings(reasons=(_not_repeatable(difference),))
    findings = Findings()
    if full.drawn and _forced_draws_change_it(trial, full, tolerance):
        findings = findings.plus(reasons=[_random(trial, full.drawn, tolerance)])
    elif full.drawn:
        findings = findings.plus(
            unchecked=[
                f"random numbers are drawn ({', '.join(full.drawn)}), which changed nothing in "
                f"{SEEDS + 3} tries: a part that draws the same however a batch is cut can say so "
                "(split_invariant_draws = True)"
            ]
        )
    invariant = list(invariant_modules(trial.learner.module))
    if invariant:
        findings = findings.plus(
            unchecked=[f"{some(invariant)} says that its draws are the same however a batch is cut"]
        )
    return findings


def _first_difference(
    trial: Trial, full: Outcome, seeds: Iterable[int], tolerance: float
) -> float | None:
    """The first one above the tolerance, with one seed after the other."""
    for seed in seeds:
        # advance: a generator of the model's own starts elsewhere, else it would draw the same
        # again.
        repeated = trial.run(trial.all_at_once(), seed, advance=True)
        difference = trial.difference(repeated, full)
        if exceeds(difference, tolerance):
            return difference
    return None


def _forced_draws_change_it(trial: Trial, full: Outcome, tolerance: float) -> bool:
    """Whether rare choices change anything when they are made certain."""
    # Both ends: a rare choice may lie at either.
    for high in (False, True):
        forced = trial.run(trial.all_at_once(), 1, forced=high)
        if exceeds(trial.difference(forced, full), tolerance):
            return True
    return False


def _random(trial: Trial, drawn: Sequence[str], tolerance: float) -> str:
    dropouts = active_modules(trial.learner.module, nn.modules.dropout._DropoutNd)
    if dropouts:
        where = some(dropouts)
    else:
        where = f"from {', '.join(drawn)}"
        module = first_drawing_module(trial, tolerance)
        if module:
            where = f"first seen in {module}, {where}"
    return (
        f"dropout or the like draws other masks for other micro-batches ({where}): same "
        "distribution, other numbers; a probability of 0 is exact"
    )


def _not_repeatable(difference: float) -> str:
    return (
        f"the same samples give another gradient the second time, by {difference:.0e}: the model "
        "or the task keeps something from one micro-batch to the next that is no buffer and no "
        "attribute, or draws from a generator of its own"
    )


def _check_cuts(trial: Trial, full: Outcome, tolerance: float) -> Findings:
    if trial.samples == 1:
        return Findings()
    findings = Findings()
    compared = 0
    problem = ""
    for parts in trial.cuts():
        try:
            # Any seed: random numbers are known, by now, to change nothing.
            split = trial.run(parts, 3)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of few samples, such as one alone: the loop may never have so
            problem = f"{type(error).__name__}: {error}"
            continue
        compared += 1
        difference = trial.difference(split, full)
        if exceeds(difference, tolerance) and not is_rounding(trial, difference, full):
            return findings.plus(reasons=[_coupled(trial, parts, difference, tolerance)])
        findings = findings.plus(error=difference)
    if not compared:
        findings = findings.plus(
            unchecked=[f"parts of the first samples cannot be put through alone ({problem})"]
        )
    return findings


def _coupled(trial: Trial, parts: Sequence[BatchPart], difference: float, tolerance: float) -> str:
    module = first_coupling_module(trial, parts, tolerance)
    if module:
        why = f"{module} gives a sample something else when it is with others"
    else:
        why = (
            "the outputs of all modules are the same: look at the loss, at hooks, and at a "
            "state that is kept"
        )
    return (
        "in train mode the gradient of a batch is not the sum over its parts, by "
        f"{difference:.0e}: the model couples samples, or the loss does ({why})"
    )


def _check_state(trial: Trial, full: Outcome, tolerance: float) -> Findings:
    """What a forward leaves behind: does it depend on the cut, and does that change anything?"""
    changed = full.state.changed_since(trial.start, 0.0)
    findings = Findings()
    for name in changed:
        if name.startswith("parameter "):
            findings = findings.plus(
                unchecked=[
                    f"the forward changes the {name} in place: what that does to later steps was "
                    "not tried"
                ]
            )
    if not changed or trial.samples == 1:
        return findings
    # Several updates, in one piece and sample by sample: does the state depend on the cut?
    after_full = _state_after_updates(trial, trial.all_at_once())
    after_parts = _state_after_updates(trial, trial.one_by_one())
    names = []
    for name in after_parts.changed_since(after_full, tolerance):
        if not name.startswith("parameter "):
            names.append(name)
    if not names:
        return findings
    reason = _effect_of_state(trial, full, after_full, after_parts, some(names), tolerance)
    if reason:
        return findings.plus(reasons=[reason])
    return findings.joined(_unread_state(trial, names, tolerance))


def _effect_of_state(
    trial: Trial,
    full: Outcome,
    after_full: State,
    after_parts: State,
    what: str,
    tolerance: float,
) -> str:
    """Why the run is not exact, where the state changes gradient or evaluation; else empty."""
    cause = f"the forward changes {what}, and what it becomes depends on how a batch is cut"
    # If so, does anything that matters depend on the state? First the gradient, then an evaluation.
    # The full batch both times: only the state before it differs.
    first = trial.run(trial.all_at_once(), 1, after_full)
    second = trial.run(trial.all_at_once(), 1, after_parts)
    difference = trial.difference(second, first)
    if exceeds(difference, tolerance) and not is_rounding(trial, difference, full):
        return (
            f"{cause}: after {UPDATES} updates the gradient is {difference:.0e} away. Update it "
            "once per step, or freeze it"
        )
    difference = trial.difference_in_evaluation(after_full, after_parts)
    if exceeds(difference, tolerance):
        return (
            f"{cause}: after {UPDATES} updates the loss in an evaluation is {difference:.0e} away, "
            "though the gradient is not. Freeze it, or read eval/loss as one of this cut"
        )
    return ""


def _unread_state(trial: Trial, names: Sequence[str], tolerance: float) -> Findings:
    """State that depends on the cut, though nothing that was tried depends on it."""
    findings = Findings()
    generators = generators_of(names)
    if generators:
        findings = findings.plus(
            unchecked=[
                f"{some(generators)}: a generator of its own is drawn from, which changed nothing "
                "so far"
            ]
        )
    buffers = buffers_of(names)
    if buffers and _depends_on_data(trial, buffers, tolerance):
        findings = findings.plus(
            unchecked=[
                f"{some(buffers)} depends on the data of each micro-batch, though neither the "
                "gradient nor the loss of the first samples does"
            ]
        )
    return findings


def _state_after_updates(trial: Trial, parts: Sequence[BatchPart]) -> State:
    trial.start.restore()
    # Another seed for each update, the same ones for both cuts: draws are known to change nothing.
    for update in range(UPDATES):
        outcome = trial.run_on(parts, update)
    return outcome.state


def _depends_on_data(trial: Trial, names: Sequence[str], tolerance: float) -> bool:
    """Not where it only counts calls: then it is the same after any one sample."""
    samples = trial.one_by_one()
    first = trial.run(samples[:1], 1).state
    for sample in samples[1:]:
        other = trial.run([sample], 1).state
        if set(names) & set(other.changed_since(first, tolerance)):
            return True
    return False
