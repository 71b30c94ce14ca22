"""Checks the loss alone, in eval mode.

Are its weights counts that add up, are its sums sums, and does it treat each sample on its own?
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from train.exactness.culprit import first_coupling_module
from train.exactness.findings import Findings
from train.exactness.rounding import rounding_explains
from train.exactness.trial import BatchPart, Trial
from train.tasks import by_term

WEIGHT_ROUNDING = 2.0**-21
"""Relative rounding of a float32 sum of a few numbers; of n numbers: times the root of n.

Whole numbers are exact up to 16.7 million, so counts in float32 differ by nothing at all.
"""

MEAN_DIFFERS_BY = 0.05
"""A mean in place of a sum is wrong by about the number of parts, so by far more than this."""


@dataclass(frozen=True)
class Term:
    """The numbers of one term of the loss: of the full batch, and of its parts."""

    name: str
    weight: float
    weights_of_parts: Sequence[float]
    loss: float
    losses_of_parts: Sequence[float]


def check_loss(
    trial: Trial, terms: Sequence[str], tolerance: float, findings: Findings
) -> Findings:
    """`findings` so far, and what is wrong with loss_weight and loss_sum or cannot be checked."""
    losses = trial.sums(trial.full_batch)
    weights = by_term(trial.learner.task.loss_weight(trial.full_batch))
    findings = findings.joined(_check_values(trial, terms, losses, weights))
    if findings.reasons or trial.samples == 1:
        return findings
    for parts in trial.cuts():
        weights_of_parts = []
        for part in parts:
            weights_of_parts.append(
                by_term(trial.learner.task.loss_weight(trial.with_padding(part)))
            )
        try:
            losses_of_parts = [trial.sums(part.batch) for part in parts]
        except torch.OutOfMemoryError:
            raise
        except Exception:  # of few samples, such as one alone: the loop may never have so few
            continue
        # Weights are counted with all padding, as a step counts them; losses are computed without.
        for name in terms:
            # The first part of the first cut, where padding is cut off, is the shortest text.
            if trial.padding and not weights_of_parts[0][name]:
                findings = findings.plus(
                    unchecked=[
                        f"the shortest text does not count for the loss ({name}): cutting padding "
                        "off was not tried"
                    ]
                )
            term = Term(
                name=name,
                weight=weights[name],
                weights_of_parts=[of_part[name] for of_part in weights_of_parts],
                loss=losses[name],
                losses_of_parts=[of_part[name] for of_part in losses_of_parts],
            )
            findings = findings.joined(_check_weights_add_up(term, trial))
            findings = findings.joined(_check_losses_add_up(term, trial, parts, tolerance))
        if findings.is_inexact:
            return findings  # one cut is enough to tell the user
    return findings


def _check_values(
    trial: Trial, terms: Sequence[str], losses: Mapping[str, float], weights: Mapping[str, float]
) -> Findings:
    findings = Findings()
    for term in terms:
        if not math.isfinite(losses[term]):
            findings = findings.plus(
                reasons=[
                    f"the loss ({term}) of the first samples is {losses[term]}: not finite before "
                    "the first step"
                ]
            )
        elif not weights[term]:
            findings = findings.plus(
                unchecked=[
                    f"none of the first {trial.samples} samples counts for the loss ({term})"
                ]
            )
    return findings


def _check_weights_add_up(term: Term, trial: Trial) -> Findings:
    difference = _difference_from_sum(term.weight, term.weights_of_parts)
    # As many as the weight may be a sum of: tokens where a column holds tokens, else samples.
    addends = max(column.numel() for column in trial.full_batch.values())
    if difference > WEIGHT_ROUNDING * math.sqrt(addends):
        sum_of_parts = " + ".join(f"{weight:g}" for weight in term.weights_of_parts)
        mistake = (
            f"loss_weight ({term.name}) is {term.weight:g} for a batch, {sum_of_parts} for its "
            "parts: it must count what adds up, such as samples or labels"
        )
        return Findings(mistakes=(mistake,), error=difference)
    return Findings(error=difference)


def _check_losses_add_up(
    term: Term, trial: Trial, parts: Sequence[BatchPart], tolerance: float
) -> Findings:
    difference = _difference_from_sum(term.loss, term.losses_of_parts)
    if trial.draws_in_eval:
        return Findings()  # other random numbers for each part: the check in training mode tells
    if difference <= tolerance:
        return Findings(error=difference)
    # Asked first: a mean is a mistake that nobody can have meant, and has a sentence of its own.
    if difference > MEAN_DIFFERS_BY and _is_mean(term, tolerance):
        mistake = (
            f"loss_sum ({term.name}) returns a mean, {term.loss:.4g}, where a sum is needed: "
            "reduction='sum'; the step divides by loss_weight"
        )
        return Findings(mistakes=(mistake,))

    def measure_perturbed() -> float:
        return _difference_from_sum(term.loss, [trial.sums(trial.full_batch)[term.name]])

    if rounding_explains(trial, difference, measure_perturbed):
        return Findings()
    why = "negatives, a balance loss?"
    module = first_coupling_module(trial, parts, tolerance)
    if module:
        why = f"{module} gives a sample something else when it is with others"
    reason = (
        f"the loss ({term.name}) couples the samples of a batch: {term.loss:.6g}, and the sum over "
        f"its parts is {difference:.0e} of that away ({why})"
    )
    return Findings(reasons=(reason,))


def _is_mean(term: Term, tolerance: float) -> bool:
    """Whether the loss of the batch is the mean of those of its parts, by their weights."""
    weighted = 0.0
    for loss, weight in zip(term.losses_of_parts, term.weights_of_parts, strict=True):
        weighted += loss * weight
    mean = weighted / (term.weight or 1.0)
    return _difference_from_sum(term.loss, [mean]) <= tolerance


def _difference_from_sum(number: float, addends: Sequence[float]) -> float:
    """Of `number` from the sum of the others, relative to what was added up."""
    difference = abs(number - sum(addends))
    if not difference:
        return 0.0
    # Relative to the addends: losses of both signs may add up to nearly nothing, where all is
    # rounding.
    return difference / max(abs(number), sum(map(abs, addends)))
