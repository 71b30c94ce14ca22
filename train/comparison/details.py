"""The figures behind the headline of a comparison. Pure."""

from collections.abc import Callable

from train.comparison.comparison import Comparison
from train.comparison.cost import Cost
from train.comparison.keys import machines
from train.errors import counted, some


def details(comparison: Comparison) -> str:
    """Empty for a run alone."""
    parts = [_curves(comparison), _exactness(comparison), _costs(comparison)]
    text = "; ".join(filter(None, parts))
    return f"{text}." if text else ""


def _curves(comparison: Comparison) -> str:
    distances = " and ".join(map(str, comparison.distances))
    # Other mathematics: distances are then of repetitions only.
    if not comparison.same_mathematics:
        seeds = _seeds(comparison)
        if not distances:
            return seeds
        return f"Where mathematics and seed are the same, {distances}; {seeds}"
    if len(comparison.runs) == 1:
        return ""
    num_groups = len(comparison.groups)
    set_ups = "one set-up" if num_groups == 1 else counted(num_groups, "set-up")
    text = f"Same mathematics in {counted(len(comparison.runs), 'run')} of {set_ups}"
    if not distances:
        return text
    return f"{text}; with the same seed {distances}"


def _seeds(comparison: Comparison) -> str:
    counts = [len(group.seeds) for group in comparison.groups]
    if min(counts) == max(counts):
        return f"{counted(counts[0], 'seed')} each"
    return f"{min(counts)} to {max(counts)} seeds each"


def _exactness(comparison: Comparison) -> str:
    names = list(dict.fromkeys(run.name for run in comparison.runs if run.is_exact is False))
    if not names:
        return ""
    whose = "its" if len(names) == 1 else "their"
    return f"NOT exact by {whose} own word: {some(names)}"


def _costs(comparison: Comparison) -> str:
    if len(comparison.groups) == 1:
        return ""
    changes = []
    memory = comparison.memory
    if memory:
        changes.append(_change(comparison, memory.name, memory.of))
    changes.append(_change(comparison, "throughput", lambda cost: cost.samples_per_second))
    text = ", ".join(filter(None, changes))
    if not text:
        return ""
    elsewhere = " (on different machines)" if machines(comparison.runs) else ""
    return f"against {comparison.groups[0].label}: {text}{elsewhere}"


def _change(comparison: Comparison, name: str, number: Callable[[Cost], float | None]) -> str:
    """`throughput -40.1 %`, or the range over several set-ups with who is at its ends."""
    first = comparison.cost(0, number)
    if not first or not first.mean:
        return ""
    changes = []
    for index in comparison.indices[1:]:
        value = comparison.cost(index, number)
        # A set-up without the number is absent from the range.
        if value:
            percent = 100 * (value.mean / first.mean - 1)
            changes.append((percent, comparison.groups[index].label))
    if not changes:
        return ""
    if len(changes) == 1:
        return f"{name} {changes[0][0]:+.1f} %"
    # By value, then by label: equal changes give the same sentence each time.
    least, least_label = min(changes)
    most, most_label = max(changes)
    return f"{name} {least:+.1f} % ({least_label}) to {most:+.1f} % ({most_label})"
