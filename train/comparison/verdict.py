"""What a comparison comes to, in words: one sentence that says one thing, and the figures behind
it. Pure.
"""

import math
from collections.abc import Callable

from train.comparison.agree import Agreement
from train.comparison.cost import ACTIVATIONS, Cost
from train.comparison.facts import Comparison
from train.comparison.figures import size
from train.comparison.group import Group, Spread
from train.comparison.keys import MATHEMATICS, machines
from train.comparison.outcome import Outcome
from train.errors import counted

SAME = {"fp64": 1e-9, "fp32": 1e-3}
"""Up to this share of the largest loss a difference is the rounding of that precision, grown over
the steps.
"""
SAME_IN_LOW_PRECISION = 0.05


def headline(comparison: Comparison) -> str:
    parts = [_curve(comparison), _smaller_memory(comparison)]
    return "; ".join(filter(None, parts)) + "."


def details(comparison: Comparison) -> str:
    parts = [
        _mathematics(comparison),
        _within(comparison),
        _exactness(comparison),
        _costs(comparison),
    ]
    told = "; ".join(filter(None, parts))
    return f"{told}." if told else ""


def is_same_curve(comparison: Comparison) -> bool:
    precisions = {str(group.first.identity.get("precision")) for group in comparison.groups}
    allowed = max(SAME.get(precision, SAME_IN_LOW_PRECISION) for precision in precisions)
    # By the height of the curves: the last losses of an overfitted run are as small as the rounding
    # of the first ones.
    height = max((agreed.height for agreed in comparison.agreements), default=0.0)
    return all(agreed.largest <= allowed * height for agreed in comparison.agreements)


def _curve(comparison: Comparison) -> str:
    groups = comparison.groups
    if len(comparison.runs) == 1:
        return f"One run, {groups[0].label}, and nothing to compare it with"
    if not comparison.same_mathematics:
        return _other_mathematics(comparison)
    if not comparison.agreements:
        if len({run.seed for run in comparison.runs}) == len(comparison.runs):
            return "Same mathematics, but no two runs share a seed, so no curves can be equal"
        return (
            "Same mathematics, but no two runs with the same seed have a loss at the same "
            "samples seen"
        )
    worst = max(comparison.agreements, key=lambda agreed: agreed.largest)
    if is_same_curve(comparison):
        return f"Same curve: {worst.metric} differs by at most {worst.largest:.2g}"
    return (
        f"Same mathematics, but not the same curve: {worst.metric} differs by up to {_apart(worst)}"
    )


def _apart(agreed: Agreement) -> str:
    if not math.isfinite(agreed.largest):
        return "what is not finite in one of the runs"
    return f"{agreed.largest:.2g}, at {agreed.at_samples:,} samples"


def _other_mathematics(comparison: Comparison) -> str:
    names = [key.name for key in comparison.keys if key.kind == MATHEMATICS and key.name != "seed"]
    shown = ", ".join(names[:4]) + (
        f" and {counted(len(names) - 4, 'more key')}" if len(names) > 4 else ""
    )
    shown = shown or "the hashes over config and sources"
    differ = f"Other mathematics ({shown} differ{'s' if len(names) == 1 else ''})"
    target = next(iter(comparison.outcomes[0].metrics), None)
    if target is None or len({outcome.samples for outcome in comparison.outcomes}) > 1:
        return f"{differ}: no samples seen at which all have a loss"
    known = [(outcome.metrics[target], group) for outcome, group in _with(comparison, target)]
    told = [f"{_figure(value)} ({group.label})" for value, group in known]
    if len(told) > 3:
        ends = sorted(
            known, key=lambda each: each[0].mean if math.isfinite(each[0].mean) else math.inf
        )
        told = [
            f"from {_figure(ends[0][0])} ({ends[0][1].label}) to {_figure(ends[-1][0])} "
            f"({ends[-1][1].label})"
        ]
    return (
        f"{differ}: at {comparison.outcomes[0].samples:,} samples {target} is "
        f"{' against '.join(told)}"
    )


def _smaller_memory(comparison: Comparison) -> str:
    """What the set-up with the smallest memory saves against that with the largest, and what it
    costs.
    """
    memory = comparison.memory
    if memory is None or len(comparison.groups) == 1:
        return ""
    sizes: dict[int, float] = {}
    for index in range(len(comparison.groups)):
        if value := comparison.cost(index, memory.of):
            sizes[index] = value.mean
    if len(sizes) < 2:
        return ""
    # the first of equal ones
    smallest, largest = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    least, most = sizes[smallest], sizes[largest]
    noise = (
        max(cost.noise_gib for costs in comparison.costs for cost in costs)
        if memory.is_process
        else 0.0
    )
    if most - least <= max(noise, 0.005 * most):
        return (
            f"{memory.name} {'are' if memory.name == ACTIVATIONS else 'is'} the same{_up_to(noise)}"
        )
    small, large = comparison.groups[smallest].label, comparison.groups[largest].label
    saved = f"{small} takes {size(least)} of {memory.name} instead of {size(most)} in {large}"
    return f"{saved}{_speed(comparison, smallest, largest)}"


def _up_to(noise: float) -> str:
    return f" within the noise of the measurement, {size(noise)}" if noise else ""


def _speed(comparison: Comparison, small: int, large: int) -> str:
    """What it costs in throughput, where that is more than timing can be wrong by."""
    ours, theirs = (
        comparison.cost(i, lambda cost: cost.samples_per_second) for i in (small, large)
    )
    if not ours or not theirs or not theirs.mean:
        return ""
    costs = [*comparison.costs[small], *comparison.costs[large]]
    change, error = ours.mean / theirs.mean - 1, max(cost.step_error for cost in costs)
    is_same = abs(change) <= error
    remarks = [
        f"to {100 * error:.0f} %" if is_same and error >= 0.005 else "",
        "timed under other load" if any(cost.was_disturbed for cost in costs) else "",
        "on different machines" if len(machines(comparison.runs)) > 1 else "",
    ]
    remark = ", ".join(filter(None, remarks))
    where = f" ({remark})" if remark else ""
    if is_same:
        return f", at the same throughput{where}"
    return f", at {100 * abs(change):.0f} % {'less' if change < 0 else 'more'} throughput{where}"


def _mathematics(comparison: Comparison) -> str:
    """The figures behind `same curve`."""
    if not comparison.same_mathematics or len(comparison.runs) == 1:
        return ""
    groups = comparison.groups
    several = counted(len(groups), "set-up") if len(groups) > 1 else "one set-up"
    told = f"Same mathematics in {counted(len(comparison.runs), 'run')} of {several}"
    if not comparison.agreements:
        return told
    return f"{told}; with the same seed {' and '.join(map(str, comparison.agreements))}"


def _within(comparison: Comparison) -> str:
    """Of several recipes, those that were executed in more than one way."""
    if comparison.same_mathematics:
        return ""
    told = " and ".join(map(str, comparison.agreements))
    within = f"Where mathematics and seed are the same, {told}" if told else ""
    return "; ".join(filter(None, [within, _seeds(comparison)]))


def _with(comparison: Comparison, metric: str) -> list[tuple[Outcome, Group]]:
    pairs = zip(comparison.outcomes, comparison.groups, strict=True)
    return [(outcome, group) for outcome, group in pairs if metric in outcome.metrics]


def _seeds(comparison: Comparison) -> str:
    counts = sorted({len(group.seeds) for group in comparison.groups})
    return (
        f"{counted(counts[0], 'seed')} each"
        if len(counts) == 1
        else f"{counts[0]} to {counts[-1]} seeds each"
    )


def _exactness(comparison: Comparison) -> str:
    false = list(dict.fromkeys(run.name for run in comparison.runs if run.is_exact is False))
    if not false:
        return ""
    shown = ", ".join(false[:3]) + (f" and {len(false) - 3} more" if len(false) > 3 else "")
    return (
        f"NOT exact by its own word: {shown}"
        if len(false) == 1
        else f"NOT exact by their own word: {shown}"
    )


def _costs(comparison: Comparison) -> str:
    if len(comparison.groups) == 1:
        return ""
    memory, parts = comparison.memory, []
    if memory:
        parts.append(_change(comparison, memory.name, memory.of))
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
    return f"{value.mean:.4g}" + (
        f" ± {value.deviation:.2g}" if value.deviation is not None else ""
    )
