"""A comparison: all that tables, pictures and pages show. Pure."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from train.comparison.cost import Cost, Memory, memory_of
from train.comparison.curve_distance import CurveDistance
from train.comparison.group import Group, runs_of
from train.comparison.keys import Key
from train.comparison.outcome import Outcome, Target
from train.comparison.read import SkippedRun
from train.comparison.run import Run
from train.comparison.spread import Spread, spread_of


@dataclass(frozen=True, kw_only=True)
class Comparison:
    groups: tuple[Group, ...]
    """The others are compared with the first."""
    costs: tuple[tuple[Cost, ...], ...]
    """Of each run of each group."""
    outcomes: tuple[Outcome, ...]
    """Of each group."""
    distances: tuple[CurveDistance, ...]
    """By loss, of runs with the same mathematics and seed."""
    keys: tuple[Key, ...]
    target: Target | None
    skipped: tuple[SkippedRun, ...]
    notes: tuple[str, ...] = ()
    headline: str = ""
    """One sentence: is it the same curve, and what did the smaller memory cost."""
    details: str = ""
    """The figures behind it."""

    @property
    def verdict(self) -> str:
        return f"{self.headline} {self.details}".strip()

    @property
    def runs(self) -> list[Run]:
        return runs_of(self.groups)

    @property
    def labels(self) -> list[str]:
        """Of the set-ups."""
        return [group.label for group in self.groups]

    @property
    def all_costs(self) -> list[Cost]:
        """Of each run, in the order of `runs`."""
        return list(itertools.chain.from_iterable(self.costs))

    @property
    def indices(self) -> range:
        """Of the set-ups."""
        return range(len(self.groups))

    @property
    def same_mathematics(self) -> bool:
        """The seed aside."""
        # By the hash without the seed: set-ups that differ in their seed alone are the same curve.
        return len({group.recipe for group in self.groups}) == 1

    @property
    def memory(self) -> Memory | None:
        return memory_of(self.all_costs)

    def cost(self, index: int, number: Callable[[Cost], float | None]) -> Spread | None:
        """`number` of the set-up with this index, over its runs."""
        return spread_of(map(number, self.costs[index]))

    def peak(self, index: int, metric: str) -> Spread | None:
        """GiB, of a metric memory/*_gib."""
        return self.cost(index, lambda cost: cost.peaks_gib.get(metric))
