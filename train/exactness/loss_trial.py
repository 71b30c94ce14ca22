"""The loss alone, in eval mode: are its weights counts that add up, its sums sums, its samples on
their own?
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from train.exactness.culprit import first_that_couples
from train.exactness.rounding import explains
from train.exactness.training_trial import Findings
from train.exactness.trial import Part, Trial
from train.tasks import by_term

WEIGHT_ROUNDING = 2.0**-21
"""Relative to a float32 sum of a few numbers; of n numbers: times the root of n. Whole numbers are
exact up to 16.7 million, so what is counted in float32 differs by nothing at all.
"""

MEAN = 0.05
"""A mean in place of a sum differs from the sum of the means by a factor of about the number of
parts.
"""


def try_loss(trial: Trial, terms: Sequence[str], tolerance: float, found: Findings) -> None:
    """Adds to `found` what is wrong with loss_weight and loss_sum, and what of it could not be
    tried.
    """
    whole_sums = trial.sums(trial.whole)
    weights = by_term(trial.learner.task.loss_weight(trial.whole))
    for term in terms:
        if not math.isfinite(whole_sums[term]):
            found.reasons.append(
                f"the loss ({term}) of the first samples is {whole_sums[term]}: not finite before "
                "the first step"
            )
        elif not weights[term]:
            found.untried.append(
                f"none of the first {trial.samples} samples counts for the loss ({term})"
            )
    if found.reasons or trial.samples == 1:
        return
    for parts in trial.cuts():
        of_parts = [by_term(trial.learner.task.loss_weight(trial.uncut(part))) for part in parts]
        try:
            sums = [trial.sums(part.batch) for part in parts]
        except torch.OutOfMemoryError:
            raise
        except Exception:  # of few samples, such as one alone: the loop may never have so few
            continue
        for term in terms:
            if trial.padding and not of_parts[0][term]:
                found.untried.append(
                    f"the shortest text does not count for the loss ({term}): cutting padding off "
                    "was not tried"
                )
            own_weights = [weights[term], *(by_part[term] for by_part in of_parts)]
            own_sums = [whole_sums[term], *(by_part[term] for by_part in sums)]
            _try_term(Term(term, own_weights, own_sums, parts), trial, tolerance, found)
        if found.mistakes or found.reasons:
            return


@dataclass(frozen=True)
class Term:
    """A term of the loss: its numbers, of the whole and then of its parts."""

    name: str
    weights: Sequence[float]
    sums: Sequence[float]
    parts: Sequence[Part]


def _try_term(of: Term, trial: Trial, tolerance: float, found: Findings) -> None:
    term, weights, sums = of.name, of.weights, of.sums
    apart = _apart(weights)
    addends = max(column.numel() for column in trial.whole.values())
    if apart > WEIGHT_ROUNDING * math.sqrt(addends):
        found.mistakes.append(
            f"loss_weight ({term}) is {weights[0]:g} for a batch, {_added(weights[1:])} for its "
            "parts: it must count what adds up, such as samples or labels"
        )
    found.error = max(found.error, apart)
    apart = _apart(sums)
    if trial.draws_in_eval:  # other numbers for each part: the trial in training mode says so
        return
    if apart <= tolerance:
        found.error = max(found.error, apart)
        return
    mean = sum(part * weight for part, weight in zip(sums[1:], weights[1:], strict=True)) / (
        weights[0] or 1.0
    )
    if apart > MEAN and _apart([sums[0], mean]) <= tolerance:
        found.mistakes.append(
            f"loss_sum ({term}) returns a mean, {sums[0]:.4g}, where a sum is needed: "
            "reduction='sum'; the step divides by loss_weight"
        )
    elif not explains(trial, apart, lambda: _apart([sums[0], trial.sums(trial.whole)[term]])):
        where = first_that_couples(trial, of.parts, tolerance)
        why = (
            f"{where} gives a sample something else when it is with others"
            if where
            else "negatives, a balance loss?"
        )
        found.reasons.append(
            f"the loss ({term}) couples the samples of a batch: {sums[0]:.6g}, and the sum over "
            f"its parts is {apart:.0e} of that away ({why})"
        )


def _apart(numbers: Sequence[float]) -> float:
    """Of the first one from the sum of the others, relative to what was added up."""
    difference = abs(numbers[0] - sum(numbers[1:]))
    size = max(abs(numbers[0]), sum(map(abs, numbers[1:])))
    return difference / size if difference else 0.0


def _added(numbers: Sequence[float]) -> str:
    return " + ".join(f"{number:g}" for number in numbers)
