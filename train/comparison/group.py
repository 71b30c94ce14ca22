"""Set-ups: runs that differ in their seed alone, mathematics and execution the same. Pure."""

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from train import metric_names
from train.comparison.columns import union
from train.comparison.curve import Curve, Series, stack
from train.comparison.run import Run
from train.comparison.spread import Spread, spread_of
from train.config import is_neutral

EXECUTED = ("loop", "world_size", "accumulation_steps", "micro_batch", "device")
"""Of the plan: what the execution came to."""


@dataclass(frozen=True)
class Group:
    """One set-up, run with one seed or several."""

    label: str
    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        return self.runs[0]

    @property
    def seeds(self) -> list[Any]:
        """In the order of the runs."""
        return list(dict.fromkeys(run.seed for run in self.runs))

    @property
    def recipe(self) -> str:
        return self.first.recipe_hash

    def derived(self, key: str) -> Any:
        return self.first.derived.get(key)

    def curves(self, metric: str) -> list[Curve]:
        """Of the runs that have the metric."""
        return list(filter(None, (run.curve(metric) for run in self.runs)))

    def series(self, metric: str) -> Series | None:
        """None where not all of its runs have the metric."""
        curves = self.curves(metric)
        # All or none: a mean over some of its runs would move where one of them ends.
        if len(curves) < len(self.runs):
            return None
        return stack(curves)

    def spread(self, number: Callable[[Run], float | None]) -> Spread | None:
        """Over the runs that have the number."""
        return spread_of(map(number, self.runs))

    def complete_spread(self, number: Callable[[Run], float | None]) -> Spread | None:
        """None where a run has no number: a mean over some of them would be of other seeds."""
        spread = self.spread(number)
        if spread is None or len(spread.values) < len(self.runs):
            return None
        return spread

    def spread_at(self, metric: str, samples: int) -> Spread | None:
        """None where not all of its runs have the metric there."""
        return self.complete_spread(lambda run: run.curve(metric).get(samples))

    def mean_steps_at(self, samples: int) -> float | None:
        """Optimizer steps; None where not all of its runs have a row there."""
        steps = self.complete_spread(lambda run: run.x_axis("steps").get(samples))
        return steps.mean if steps else None

    @cached_property
    def mean_x(self) -> dict[str, Curve]:
        """{x: {samples seen: mean of x over its runs}}, for the x of `Run.x_axis`."""
        axes = {}
        for x in ("samples", "steps", "hours"):
            axes[x] = stack([run.x_axis(x) for run in self.runs]).mean
        return axes


def metrics_with_prefix(groups: Sequence[Group], prefix: str) -> list[str]:
    """Of any run, in order of appearance."""
    metrics = union(run.metrics for run in runs_of(groups))
    return [metric for metric in metrics if metric.startswith(prefix)]


def runs_of(groups: Sequence[Group]) -> list[Run]:
    return [run for group in groups for run in group.runs]


def loss_metrics(groups: Sequence[Group]) -> list[str]:
    """Metrics whose curves are compared, the training loss first."""
    evaluated = metrics_with_prefix(groups, metric_names.EVAL)
    # What a task calls a loss, further sets included: eval/loss, eval/other/loss.
    losses = [metric for metric in evaluated if metric.endswith("loss")]
    return [metric_names.LOSS, *losses]


def make_groups(runs: Sequence[Run]) -> list[Group]:
    """In the order in which their first runs were named."""
    # A dictionary keeps the order of the first runs: the first set-up is the reference.
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(_set_up(run), []).append(run)
    labels = _labels(list(members.values()))
    groups = []
    for label, same_set_up in zip(labels, members.values(), strict=True):
        groups.append(Group(label, tuple(same_set_up)))
    return groups


def _set_up(run: Run) -> str:
    """Equal for runs of one set-up."""
    # By what the plan made of the batch: micro-batch and accumulation steps can be configured in
    # several ways that come to the same.
    execution = {key: value for key, value in run.execution.items() if not is_neutral(key)}
    executed = [run.derived.get(key) for key in EXECUTED]
    return json.dumps([run.recipe_hash, execution, executed], sort_keys=True, default=str)


def _labels(set_ups: Sequence[Sequence[Run]]) -> list[str]:
    """The shortest names that differ: of all runs of a set-up, of its first run, or its folder."""
    labels = list(map(_common_name, set_ups))
    # Only as long as they are needed: a short name that two set-ups share tells nothing.
    if len(set(labels)) < len(labels):
        labels = [runs[0].name for runs in set_ups]
    if len(set(labels)) < len(labels):
        labels = [runs[0].where for runs in set_ups]
    return _without_common_words(labels)


def _common_name(runs: Sequence[Run]) -> str:
    """digits-micro16 of digits-micro16-seed1 and -seed2: what their names begin with in common."""
    if len(runs) == 1:
        return runs[0].name
    prefix = ""
    for characters in zip(*(run.name for run in runs), strict=False):  # the shortest name ends it
        if len(set(characters)) > 1:
            break
        prefix += characters[0]
    # `-seed1` of seeds 1 and 10, too, whose names have the first digit in common.
    return re.sub(r"([-_. ]+(seed)?|seed)\d*$", "", prefix) or runs[0].name


def _without_common_words(labels: Sequence[str]) -> list[str]:
    """micro16, micro8 of digits-micro16, digits-micro8: without what all begin or end with."""
    if len(labels) == 1:
        return list(labels)
    words = [label.split("-") for label in labels]
    for end in (0, -1):
        # One word stays, so that no label is empty.
        while min(map(len, words)) > 1 and len({each[end] for each in words}) == 1:
            for each in words:
                each.pop(end)
    return list(map("-".join, words))


def shared_seeds(groups: Sequence[Group]) -> set[Any]:
    """Those of which every set-up has a run: a mean over others would compare luck."""
    return set(groups[0].seeds).intersection(*(group.seeds for group in groups))


def with_seeds(groups: Sequence[Group], seeds: Collection[Any]) -> list[Group]:
    """The same set-ups, with their runs of these seeds; each has one."""
    kept = []
    for group in groups:
        runs = tuple(run for run in group.runs if run.seed in seeds)
        kept.append(Group(group.label, runs))
    return kept
