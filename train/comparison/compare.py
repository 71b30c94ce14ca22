"""Runs to a comparison. Pure."""

from collections.abc import Sequence
from dataclasses import replace

from train.comparison.comparison import Comparison
from train.comparison.cost import cost_of
from train.comparison.curve_distance import curve_distance_per_recipe
from train.comparison.details import details
from train.comparison.group import loss_metrics, make_groups, shared_seeds, with_seeds
from train.comparison.headline import headline
from train.comparison.keys import differing_keys, with_telling_labels
from train.comparison.notes import notes
from train.comparison.outcome import outcomes, target_of
from train.comparison.read import SkippedRun
from train.comparison.run import Run

NOT_SHARED = "means are over the seeds that all set-ups have, and some have no run of seed"


def compare(
    runs: Sequence[Run], skipped: Sequence[SkippedRun] = (), target: float | None = None
) -> Comparison:
    """`target`: an evaluation loss; unset, the lowest that every run reached."""
    # Labels first: they are made of all runs, and stay when runs of other seeds are left out.
    groups = with_telling_labels(make_groups(runs))
    skipped = list(skipped)
    # Means over different seeds would compare luck, unless no seed is shared at all.
    seeds = shared_seeds(groups)
    if seeds:
        groups = with_seeds(groups, seeds)
        for run in runs:
            if run.seed not in seeds:
                skipped.append(SkippedRun(run.where, f"{NOT_SHARED} {run.seed}"))
    losses = loss_metrics(groups)
    # Over all runs: two of a seed that not all set-ups have are compared with each other too.
    distances = [curve_distance_per_recipe(runs, metric) for metric in losses]
    # After the choice of seeds: a cost is of the runs that are shown.
    costs = [tuple(map(cost_of, group.runs)) for group in groups]
    numbers = Comparison(
        groups=tuple(groups),
        costs=tuple(costs),
        outcomes=tuple(outcomes(groups, losses)),
        distances=tuple(filter(None, distances)),
        keys=tuple(differing_keys(groups)),
        target=target_of(groups, target),
        skipped=tuple(skipped),
    )
    # The sentences read the numbers.
    return replace(
        numbers,
        notes=tuple(notes(numbers)),
        headline=headline(numbers),
        details=details(numbers),
    )
