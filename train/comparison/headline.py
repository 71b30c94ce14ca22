"""What a comparison comes to, in one sentence. Pure."""

import math

from train.comparison.comparison import Comparison
from train.comparison.cost import ACTIVATIONS
from train.comparison.curve_distance import CurveDistance
from train.comparison.formatting import format_gib
from train.comparison.keys import MATHEMATICS, machines
from train.comparison.spread import Spread
from train.errors import counted

SAME = {"fp64": 1e-9, "fp32": 1e-3}
"""Up to this share of the largest loss a difference is the rounding of that precision, grown over
the steps.
"""
SAME_IN_LOW_PRECISION = 0.05
MOST_KEYS = 4
"""Keys that the sentence names; more are counted."""
MOST_OUTCOMES = 3
"""Set-ups whose outcome it gives; of more, the ends of their range."""
SAME_MEMORY = 0.005
"""Share of the larger memory: a smaller difference is none."""


def headline(comparison: Comparison) -> str:
    parts = [_curve(comparison), _memory(comparison)]
    return "; ".join(filter(None, parts)) + "."


def is_same_curve(comparison: Comparison) -> bool:
    # The widest tolerance of all: two precisions agree only as closely as the coarser one.
    precisions = {str(group.first.identity.get("precision")) for group in comparison.groups}
    allowed = max(SAME.get(precision, SAME_IN_LOW_PRECISION) for precision in precisions)
    # By the height of the curves: the last losses of an overfitted run are as small as the rounding
    # of the first ones.
    height = max((each.height for each in comparison.distances), default=0.0)
    # all() of none is true: without distances the caller does not ask.
    return all(each.largest <= allowed * height for each in comparison.distances)


def _curve(comparison: Comparison) -> str:
    runs = comparison.runs
    if len(runs) == 1:
        return f"One run, {comparison.groups[0].label}, and nothing to compare it with"
    if not comparison.same_mathematics:
        return _other_mathematics(comparison)
    if not comparison.distances:
        if len({run.seed for run in runs}) == len(runs):
            return "Same mathematics, but no two runs share a seed, so no curves can be equal"
        return (
            "Same mathematics, but no two runs with the same seed have a loss at the same "
            "samples seen"
        )
    # One metric stands for all: the one that is farthest apart.
    worst = max(comparison.distances, key=lambda distance: distance.largest)
    if is_same_curve(comparison):
        return f"Same curve: {worst.metric} differs by at most {worst.largest:.2g}"
    difference = _difference(worst)
    return f"Same mathematics, but not the same curve: {worst.metric} differs by up to {difference}"


def _difference(distance: CurveDistance) -> str:
    if not math.isfinite(distance.largest):
        return "what is not finite in one of the runs"
    return f"{distance.largest:.2g}, at {distance.at_samples:,} samples"


def _other_mathematics(comparison: Comparison) -> str:
    differ = f"Other mathematics ({_differing_keys(comparison)})"
    metric = next(iter(comparison.outcomes[0].metrics), None)
    # At other samples seen the values say nothing against each other.
    samples = {outcome.samples for outcome in comparison.outcomes}
    if metric is None or len(samples) > 1:
        return f"{differ}: no samples seen at which all have a loss"
    reached = []
    for group, outcome in zip(comparison.groups, comparison.outcomes, strict=True):
        if metric in outcome.metrics:
            reached.append((outcome.metrics[metric], group.label))
    texts = [f"{_loss(value)} ({label})" for value, label in reached]
    summary = " against ".join(texts)
    if len(reached) > MOST_OUTCOMES:
        order = sorted(range(len(reached)), key=lambda index: _rank(reached[index][0]))
        best = texts[order[0]]
        worst = texts[order[-1]]
        summary = f"from {best} to {worst}"
    return f"{differ}: at {samples.pop():,} samples {metric} is {summary}"


def _rank(value: Spread) -> float:
    """Ascending from the best. A run that diverged is the worst: NaN would be sorted anywhere."""
    return value.mean if math.isfinite(value.mean) else math.inf


def _differing_keys(comparison: Comparison) -> str:
    """`batch.effective, code differ`"""
    # The seed is no other mathematics here: it is averaged over.
    names = [key.name for key in comparison.keys if key.kind == MATHEMATICS and key.name != "seed"]
    if not names:
        return "the hashes over config and sources differ"
    text = ", ".join(names[:MOST_KEYS])
    if len(names) > MOST_KEYS:
        text += f" and {counted(len(names) - MOST_KEYS, 'more key')}"
    verb = "differs" if len(names) == 1 else "differ"
    return f"{text} {verb}"


def _loss(value: Spread) -> str:
    if not math.isfinite(value.mean):
        return "not finite"
    if value.deviation is None:
        return f"{value.mean:.4g}"
    return f"{value.mean:.4g} ± {value.deviation:.2g}"


def _memory(comparison: Comparison) -> str:
    """What the set-up with the least memory saves against that with the most, and what it costs."""
    memory = comparison.memory
    if memory is None or len(comparison.groups) == 1:
        return ""
    gib: dict[int, float] = {}
    for index in comparison.indices:
        spread = comparison.cost(index, memory.of)
        if spread:
            gib[index] = spread.mean
    if len(gib) < 2:
        return ""
    # Of equal ones, the set-up that was named first.
    smallest = min(gib, key=gib.__getitem__)
    largest = max(gib, key=gib.__getitem__)
    noise = 0.0
    if memory.is_process:
        noise = max(cost.noise_gib for cost in comparison.all_costs)
    # A difference within the noise of the process must not be sold as a saving.
    if gib[largest] - gib[smallest] <= max(noise, SAME_MEMORY * gib[largest]):
        verb = "are" if memory.name == ACTIVATIONS else "is"
        within = ""
        if noise:
            within = f" within the noise of the measurement, {format_gib(noise)}"
        return f"{memory.name} {verb} the same{within}"
    small = f"{comparison.groups[smallest].label} takes {format_gib(gib[smallest])}"
    large = f"{format_gib(gib[largest])} in {comparison.groups[largest].label}"
    speed = _throughput(comparison, smallest, largest)
    return f"{small} of {memory.name} instead of {large}{speed}"


def _throughput(comparison: Comparison, small: int, large: int) -> str:
    """What the smaller memory costs in throughput, where timing is precise enough to tell.

    `small`, `large`: indices of set-ups.
    """
    small_speed = comparison.cost(small, lambda cost: cost.samples_per_second)
    large_speed = comparison.cost(large, lambda cost: cost.samples_per_second)
    if not small_speed or not large_speed or not large_speed.mean:
        return ""
    # Of all runs of both: one that was disturbed spoils the comparison.
    costs = [*comparison.costs[small], *comparison.costs[large]]
    change = small_speed.mean / large_speed.mean - 1
    # Within two standard errors of the less precise timing, a difference is none.
    error = max(cost.step_error for cost in costs)
    is_same = abs(change) <= error
    remarks = []
    if is_same and error >= 0.005:
        remarks.append(f"to {100 * error:.0f} %")
    if any(cost.was_disturbed for cost in costs):
        remarks.append("timed under other load")
    if machines(comparison.runs):
        remarks.append("on different machines")
    remark = f" ({', '.join(remarks)})" if remarks else ""
    if is_same:
        return f", at the same throughput{remark}"
    direction = "less" if change < 0 else "more"
    return f", at {100 * abs(change):.0f} % {direction} throughput{remark}"
