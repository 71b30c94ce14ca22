"""Repetitions: runs that differ in their seed alone, mathematics and execution the same. Pure."""

import itertools
import json
import math
import re
import statistics
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from train import metric_names
from train.comparison.curve import Curve, common
from train.comparison.run import Run
from train.config import is_neutral

EXECUTED = ("loop", "world_size", "accumulation_steps", "micro_batch", "device")


@dataclass(frozen=True)
class Spread:
    """Of one number over the runs that have it."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the sample; one run has none."""
        if len(self.values) < 2 or not all(map(math.isfinite, self.values)):
            return None
        return statistics.stdev(self.values)


def spread(values: Iterable[float | None]) -> Spread | None:
    known = tuple(value for value in values if value is not None)
    return Spread(known) if known else None


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
        return list(dict.fromkeys(run.seed for run in self.runs))

    @property
    def recipe(self) -> str:
        return self.first.recipe_hash

    def of_derived(self, key: str) -> Any:
        return self.first.derived.get(key)

    def curves(self, metric: str) -> list[Curve]:
        return [curve for run in self.runs if (curve := run.curve(metric))]

    def over_seeds(self, metric: str) -> dict[int, Spread]:
        """{samples seen: spread} where all of its runs have the metric."""
        curves = self.curves(metric)
        if len(curves) < len(self.runs):
            return {}
        places = common(curves)
        values = zip(*(curve.at(places).tolist() for curve in curves), strict=True)
        return dict(zip(places.tolist(), map(Spread, values), strict=True))

    def spread_at(self, metric: str, samples: int) -> Spread | None:
        """The same at one place."""
        known = spread(run.curve(metric).get(samples) for run in self.runs)
        return known if known and len(known.values) == len(self.runs) else None

    def mean_at(self, x: str, samples: int) -> float | None:
        """What `x` holds at one place."""
        values = [run.at(x).get(samples) for run in self.runs]
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if len(known) == len(values) else None

    @cached_property
    def x(self) -> dict[str, Curve]:
        """{x: {samples seen: mean over its runs}}."""
        found = {}
        for x in ("samples", "steps", "hours"):
            several = [run.at(x) for run in self.runs]
            places = common(several)
            values = zip(*(one.at(places).tolist() for one in several), strict=True)
            found[x] = Curve(places, np.array(list(map(statistics.fmean, values)), float))
        return found


def common_metrics(groups: Sequence[Group], prefix: str) -> list[str]:
    """Metrics that begin so, of any run; in order of appearance."""
    return list(
        dict.fromkeys(
            m for group in groups for run in group.runs for m in run.metrics if m.startswith(prefix)
        )
    )


def losses(groups: Sequence[Group]) -> list[str]:
    """Metrics that tell whether two curves are the same."""
    found = [
        metric for metric in common_metrics(groups, metric_names.EVAL) if metric.endswith("loss")
    ]
    return [metric_names.LOSS, *found]


def make_groups(runs: Sequence[Run]) -> list[Group]:
    """In the order in which their first runs were named."""
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(_set_up(run), []).append(run)
    wanted = [_label(group) for group in members.values()]
    labels = (
        wanted if len(set(wanted)) == len(wanted) else [group[0].name for group in members.values()]
    )
    if len(set(labels)) < len(labels):
        labels = [group[0].where for group in members.values()]
    return [
        Group(label, tuple(group))
        for label, group in zip(_apart(labels), members.values(), strict=True)
    ]


def shared_seeds(groups: Sequence[Group]) -> set[Any]:
    """Those of which every set-up has a run: a mean over others would compare luck."""
    return set.intersection(*(set(group.seeds) for group in groups))


def with_seeds(groups: Sequence[Group], seeds: Collection[Any]) -> list[Group]:
    """The same set-ups, with their runs of these seeds; each has one."""
    kept = []
    for group in groups:
        kept.append(Group(group.label, tuple(run for run in group.runs if run.seed in seeds)))
    return kept


def _apart(labels: Sequence[str]) -> list[str]:
    """Without the words that all begin or end with: micro16, micro8 of digits-micro16,
    digits-micro8.
    """
    words = [label.split("-") for label in labels]
    for end in (0, -1):
        while all(len(each) > 1 for each in words) and len(
            {each[end] for each in words}
        ) == 1 < len(words):
            for each in words:
                each.pop(end)
    return ["-".join(each) for each in words]


def _set_up(run: Run) -> str:
    execution = {key: value for key, value in run.execution.items() if not is_neutral(key)}
    executed = {key: run.derived.get(key) for key in EXECUTED}
    return json.dumps([run.recipe_hash, execution, executed], sort_keys=True, default=str)


def _label(runs: Sequence[Run]) -> str:
    """What the names of its runs begin with in common, the seed left out: digits-micro16 of
    digits-micro16-seed1.
    """
    if len(runs) == 1:
        return runs[0].name
    characters = zip(*(run.name for run in runs), strict=False)  # the shortest name ends it
    shared = "".join(
        same.pop()
        for same in itertools.takewhile(lambda seen: len(seen) == 1, map(set, characters))
    )
    return re.sub(r"([-_. ]+(seed)?|seed)\d*$", "", shared) or runs[0].name
