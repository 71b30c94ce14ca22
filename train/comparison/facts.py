"""A comparison: all that tables, pictures and pages show. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from train.comparison.agree import Agreement
from train.comparison.cost import Cost, Memory, memory_of
from train.comparison.group import Group, Spread, spread
from train.comparison.keys import Key
from train.comparison.outcome import Outcome, Target
from train.comparison.read import LeftOut
from train.comparison.run import Run


@dataclass(frozen=True, kw_only=True)
class Comparison:
    groups: tuple[Group, ...]  # the first is what the others are compared with
    costs: tuple[tuple[Cost, ...], ...]  # of each run of each group
    outcomes: tuple[Outcome, ...]
    agreements: tuple[Agreement, ...]  # of runs with the same mathematics and seed, by loss
    keys: tuple[Key, ...]
    target: Target | None
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...] = ()
    headline: str = ""  # one sentence: is it the same curve, and what did the smaller memory cost
    details: str = ""  # the figures behind it

    @property
    def verdict(self) -> str:
        return f"{self.headline} {self.details}".strip()

    @property
    def runs(self) -> list[Run]:
        return [run for group in self.groups for run in group.runs]

    @property
    def same_mathematics(self) -> bool:
        """The seed aside."""
        return len({group.recipe for group in self.groups}) == 1

    @property
    def memory(self) -> Memory | None:
        return memory_of(cost for of_group in self.costs for cost in of_group)

    def cost(self, group: int, number: Callable[[Cost], float | None]) -> Spread | None:
        return spread(map(number, self.costs[group]))
