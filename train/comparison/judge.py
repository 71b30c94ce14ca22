"""The comparison itself: all that tables, pictures and pages show, and the verdict in one sentence. Pure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from train.comparison.agree import Agreement, agreement
from train.comparison.cost import Cost, cost_of
from train.comparison.group import Group, Spread, losses, make_groups, shared_seeds, spread, with_seeds
from train.comparison.keys import MATHEMATICS, Key, differing, machines, relabelled
from train.comparison.notes import notes
from train.comparison.outcome import Outcome, Target, outcomes, target_of
from train.comparison.read import LeftOut
from train.comparison.run import Run
from train.errors import counted


@dataclass(frozen=True)
class Comparison:
    groups: tuple[Group, ...]  # the first is what the others are compared with
    costs: tuple[tuple[Cost, ...], ...]  # of each run of each group
    outcomes: tuple[Outcome, ...]
    agreements: tuple[Agreement, ...]  # of runs with the same mathematics and seed, by loss
    keys: tuple[Key, ...]
    target: Target | None
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    verdict: str

    @property
    def runs(self) -> list[Run]:
        return [run for group in self.groups for run in group.runs]

    @property
    def same_mathematics(self) -> bool:
        return is_same_mathematics(self.groups)

    def cost(self, group: int, number: Callable[[Cost], float | None]) -> Spread | None:
        return spread(map(number, self.costs[group]))


NOT_SHARED = "means are over the seeds that all set-ups have, and some have no run of seed"


def compare(runs: Sequence[Run], left_out: Sequence[LeftOut] = (), target: float | None = None) -> Comparison:
    """`target`: an evaluation loss; unset, the lowest that every run reached."""
    groups = relabelled(make_groups(runs))
    seeds = shared_seeds(groups)
    if seeds:
        unshared = [run for run in runs if run.seed not in seeds]
        left_out = [*left_out, *(LeftOut(run.where, f"{NOT_SHARED} {run.seed}") for run in unshared)]
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
        notes=(),
        verdict="",
    )
    parts = [_mathematics(result), _losses(result), _within(result), _exactness(result.runs), _costs(result)]
    told = notes(groups, costs, left_out, result.target)
    return Comparison(**{**vars(result), "verdict": "; ".join(filter(None, parts)) + ".", "notes": tuple(told)})


def is_same_mathematics(groups: Sequence[Group]) -> bool:
    """The seed aside."""
    return len({group.recipe for group in groups}) == 1


def _mathematics(comparison: Comparison) -> str:
    groups = comparison.groups
    if len(comparison.runs) == 1:
        return f"One run, {groups[0].label}, and nothing to compare it with"
    if comparison.same_mathematics:
        several = counted(len(groups), "set-up") if len(groups) > 1 else "one set-up"
        return f"Same mathematics in {counted(len(comparison.runs), 'run')} of {several}"
    names = [key.name for key in comparison.keys if key.kind == MATHEMATICS and key.name != "seed"]
    shown = ", ".join(names[:4]) + (f" and {counted(len(names) - 4, 'more key')}" if len(names) > 4 else "")
    return f"Other mathematics ({shown or 'the hashes over config and sources'} differ{'s' if len(names) == 1 else ''})"


def _losses(comparison: Comparison) -> str:
    """The difference where the same curve is expected; else the values at equal samples."""
    if len(comparison.runs) == 1:
        return ""
    if comparison.same_mathematics:
        if comparison.agreements:
            return "with the same seed " + " and ".join(map(str, comparison.agreements))
        if len({run.seed for run in comparison.runs}) == len(comparison.runs):
            return "no two runs share a seed, so no curves can be equal"
        return "no two runs with the same seed have a loss at the same samples seen, so none are compared"
    target = next(iter(comparison.outcomes[0].metrics), None)
    if target is None or len({outcome.samples for outcome in comparison.outcomes}) > 1:
        return "no samples seen at which all have a loss"
    known = [(outcome.metrics[target], group) for outcome, group in _with(comparison, target)]
    told = [f"{_figure(value)} ({group.label})" for value, group in known]
    if len(told) > 3:
        ends = sorted(known, key=lambda each: each[0].mean if math.isfinite(each[0].mean) else math.inf)
        told = [f"from {_figure(ends[0][0])} ({ends[0][1].label}) to {_figure(ends[-1][0])} ({ends[-1][1].label})"]
    seeds = f", {_seeds(comparison.groups)}"
    return f"at {comparison.outcomes[0].samples:,} samples {target} is {' against '.join(told)}{seeds}"


def _within(comparison: Comparison) -> str:
    """Of several recipes, those that were executed in more than one way."""
    if comparison.same_mathematics or not comparison.agreements:
        return ""
    told = " and ".join(map(str, comparison.agreements))
    return f"where mathematics and seed are the same, {told}"


def _with(comparison: Comparison, metric: str) -> list[tuple[Outcome, Group]]:
    pairs = zip(comparison.outcomes, comparison.groups, strict=True)
    return [(outcome, group) for outcome, group in pairs if metric in outcome.metrics]


def _seeds(groups: Sequence[Group]) -> str:
    counts = sorted({len(group.seeds) for group in groups})
    return f"{counted(counts[0], 'seed')} each" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds each"


def _exactness(runs: Sequence[Run]) -> str:
    false = list(dict.fromkeys(run.name for run in runs if run.is_exact is False))
    if not false:
        return ""
    shown = ", ".join(false[:3]) + (f" and {len(false) - 3} more" if len(false) > 3 else "")
    return f"NOT exact by its own word: {shown}" if len(false) == 1 else f"NOT exact by their own word: {shown}"


def _costs(comparison: Comparison) -> str:
    if len(comparison.groups) == 1:
        return ""
    parts = []
    kinds = {cost.memory_kind for costs in comparison.costs for cost in costs}
    if len(kinds) == 1 and None not in kinds:
        parts.append(_change(comparison, f"peak memory ({kinds.pop()})", lambda cost: cost.peak_gib))
    parts.append(_change(comparison, "throughput", lambda cost: cost.samples_per_second))
    told = ", ".join(filter(None, parts))
    if not told:
        return ""
    elsewhere = " (on different machines)" if len(machines(comparison.runs)) > 1 else ""
    return f"against {comparison.groups[0].label}: {told}{elsewhere}"


def _change(comparison: Comparison, name: str, number: Callable[[Cost], float | None]) -> str:
    """`throughput -40.1 %`, or the range over several set-ups with who is at its ends."""
    first, changes = comparison.cost(0, number), []
    for index, group in enumerate(comparison.groups[1:], start=1):
        value = comparison.cost(index, number)
        if first and value and first.mean:
            changes.append((100 * (value.mean / first.mean - 1), group.label))
    if not changes:
        return ""
    if len(changes) == 1:
        return f"{name} {changes[0][0]:+.1f} %"
    (least, at_least), (most, at_most) = min(changes), max(changes)
    return f"{name} {least:+.1f} % ({at_least}) to {most:+.1f} % ({at_most})"


def _figure(value: Spread) -> str:
    if not math.isfinite(value.mean):
        return "not finite"
    return f"{value.mean:.4g}" + (f" ± {value.deviation:.2g}" if value.deviation is not None else "")
