"""Whether accumulation pays in a set-up, as its runs estimated it themselves: see
critical_batch.py. Pure.
"""

from statistics import fmean

from train import metric_names
from train.comparison.critical_batch import Estimate, Worth, advice, around
from train.comparison.group import Group
from train.comparison.run import Run
from train.errors import counted

ERRORS = {
    metric_names.NOISE_SCALE: metric_names.NOISE_SCALE_ERROR,
    metric_names.BREAK_EVEN: metric_names.BREAK_EVEN_ERROR,
}


def estimate(run: Run, metric: str) -> Estimate | None:
    """The last one. None: it has none, or none whose error was recorded."""
    value, error = run.last(metric), run.last(ERRORS[metric])
    return None if value is None or error is None else Estimate(value, error)


def range_of(group: Group, metric: str) -> tuple[float, float] | None:
    """Two standard errors of the estimate of each run, from the least to the largest of all runs
    that have one.
    """
    ends = [around(each.value, each.error) for run in group.runs if (each := estimate(run, metric))]
    return (min(least for least, _ in ends), max(most for _, most in ends)) if ends else None


def sentence(group: Group) -> str:
    """What the closing lines of its runs say, as one; empty where none of them could."""
    between, k = range_of(group, metric_names.BREAK_EVEN), group.of_derived("accumulation_steps")
    if between is None or not k or not group.of_derived("effective_batch"):
        return ""
    known = [
        worth
        for run in group.runs
        if (worth := _worth(run, group.of_derived("effective_batch") / k))
    ]
    best, longer = fmean(worth.best for worth in known), fmean(worth.longer(k) for worth in known)
    several = (
        f" (estimated in {counted(len(known), 'run')} of {len(group.runs)})"
        if len(group.runs) > 1
        else ""
    )
    return (
        f"accumulation in {group.label}: {advice(best, *between, longer, f'its {k}', k)}{several}"
    )


def _worth(run: Run, samples: float) -> Worth | None:
    """With the time of a micro-step as the unit: the best number of them and the noise scale tell
    that of an update.
    """
    noise, best = estimate(run, metric_names.NOISE_SCALE), estimate(run, metric_names.BREAK_EVEN)
    if noise is None or best is None:
        return None
    return Worth(noise, samples, 1.0, update_seconds=best.value**2 * samples / noise.value)
