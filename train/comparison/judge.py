"""Runs to a comparison. Pure."""

from collections.abc import Sequence
from dataclasses import replace

from train.comparison.agree import agreement
from train.comparison.cost import cost_of
from train.comparison.facts import Comparison
from train.comparison.group import losses, make_groups, shared_seeds, with_seeds
from train.comparison.keys import differing, relabelled
from train.comparison.notes import notes
from train.comparison.outcome import outcomes, target_of
from train.comparison.read import LeftOut
from train.comparison.run import Run
from train.comparison.verdict import details, headline

NOT_SHARED = "means are over the seeds that all set-ups have, and some have no run of seed"


def compare(
    runs: Sequence[Run], left_out: Sequence[LeftOut] = (), target: float | None = None
) -> Comparison:
    """`target`: an evaluation loss; unset, the lowest that every run reached."""
    groups = relabelled(make_groups(runs))
    seeds = shared_seeds(groups)
    if seeds:
        unshared = [run for run in runs if run.seed not in seeds]
        left_out = [
            *left_out,
            *(LeftOut(run.where, f"{NOT_SHARED} {run.seed}") for run in unshared),
        ]
        groups = with_seeds(groups, seeds)
    metrics = losses(groups)
    found = (agreement(runs, metric, same_recipe=True) for metric in metrics)
    costs = tuple(tuple(cost_of(run) for run in group.runs) for group in groups)
    result = Comparison(
        groups=tuple(groups),
        costs=costs,
        outcomes=tuple(outcomes(groups, metrics)),
        agreements=tuple(agreed for agreed in found if agreed),
        keys=tuple(differing(groups)),
        target=target_of(groups, target),
        left_out=tuple(left_out),
    )
    return replace(
        result,
        notes=tuple(notes(groups, costs, left_out, result.target)),
        headline=headline(result),
        details=details(result),
    )
