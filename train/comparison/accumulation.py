"""Whether accumulation pays in a set-up, as its runs estimated it. Pure.

The arithmetic is in critical_batch.py.
"""

from statistics import fmean

from train import metric_names
from train.comparison.critical_batch import BreakEven, Estimate, advice, error_interval
from train.comparison.group import Group
from train.comparison.run import Run
from train.errors import counted

ERRORS = {
    metric_names.NOISE_SCALE: metric_names.NOISE_SCALE_ERROR,
    metric_names.BREAK_EVEN: metric_names.BREAK_EVEN_ERROR,
}
"""{estimate: its relative standard error}"""


def last_estimate(run: Run, metric: str) -> Estimate | None:
    """None: it has none, or none whose error was logged."""
    # The last of each: averages reach back about 1,000 measurements, so it is the best that there
    # is.
    value = run.last(metric)
    error = run.last(ERRORS[metric])
    if value is None or error is None:
        return None
    return Estimate(value, error)


def interval_over_runs(group: Group, metric: str) -> tuple[float, float] | None:
    """The interval that holds those of all runs: two standard errors to both sides of each."""
    lower = []
    upper = []
    # From the least to the largest over runs: seeds estimate apart, and none of them is the right
    # one.
    for run in group.runs:
        estimate = last_estimate(run, metric)
        if estimate:
            least, most = error_interval(estimate.value, estimate.error)
            lower.append(least)
            upper.append(most)
    if not lower:
        return None
    return min(lower), max(upper)


def accumulation_sentence(group: Group) -> str:
    """The closing lines of its runs as one; empty where no run had an estimate."""
    interval = interval_over_runs(group, metric_names.BREAK_EVEN)
    micro_steps = group.derived("accumulation_steps")
    effective = group.derived("effective_batch")
    # A run with a schedule of the batch has no one number of either.
    if interval is None or not micro_steps or not effective:
        return ""
    break_evens = []
    for run in group.runs:
        break_even = _break_even(run, effective / micro_steps)
        if break_even:
            break_evens.append(break_even)
    if not break_evens:  # a break-even was logged, and no noise scale
        return ""
    # The advice is on the mean over runs, the interval is the widest.
    best = fmean(each.best for each in break_evens)
    longer = fmean(each.longer(micro_steps) for each in break_evens)
    text = advice(
        best=best,
        least=interval[0],
        most=interval[1],
        longer=longer,
        current=f"its {micro_steps}",
        micro_steps=micro_steps,
    )
    of_runs = ""
    if len(group.runs) > 1:
        of_runs = f" (estimated in {counted(len(break_evens), 'run')} of {len(group.runs)})"
    return f"accumulation in {group.label}: {text}{of_runs}"


def _break_even(run: Run, samples: float) -> BreakEven | None:
    """`samples`: of a micro-step, over all ranks. The unit of time is a micro-step.

    The run's own break-even and noise scale give the time of an update: the formula of
    `BreakEven.best`, solved for it.
    """
    noise = last_estimate(run, metric_names.NOISE_SCALE)
    best = last_estimate(run, metric_names.BREAK_EVEN)
    if noise is None or best is None:
        return None
    # break_even^2 = noise / samples * update / micro (BreakEven.best), with a micro-step as the
    # unit.
    return BreakEven(
        noise=noise,
        samples=samples,
        micro_seconds=1.0,
        update_seconds=best.value**2 * samples / noise.value,
    )
