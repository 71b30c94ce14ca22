"""What set-ups reached at equal samples seen, and how long they took to a target loss. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from train import metric_names
from train.comparison.accumulation import interval_over_runs
from train.comparison.curve import common_samples
from train.comparison.curve_distance import CurveDistance, curve_distance
from train.comparison.group import Group, metrics_with_prefix, runs_of
from train.comparison.run import Run
from train.comparison.spread import Spread


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of one set-up."""

    samples: int | None
    """Samples seen: the same of all set-ups, unless they share no row. None: its runs ended at
    different samples seen.
    """
    steps: float | None
    metrics: dict[str, Spread]
    noise_scale: Spread | None
    """The last that each run estimated."""
    noise_scale_range: tuple[float, float] | None
    break_even: Spread | None
    """The fastest number of micro-steps per step, the last that each run estimated."""
    break_even_range: tuple[float, float] | None
    distances: dict[str, CurveDistance]
    """{loss: from the first set-up, over the whole curve, where seeds are shared}"""


@dataclass(frozen=True, kw_only=True)
class Target:
    metric: str
    loss: float
    is_configured: bool
    """By --target; else it follows from the runs."""
    hours: tuple[Spread | None, ...]
    """Of training, of each set-up."""
    reached: tuple[int, ...]
    """Number of runs of each set-up."""


def equal_samples(groups: Sequence[Group]) -> int | None:
    """The last samples seen at which all runs have an evaluation, or else a training loss."""
    # An evaluation is over all of the held-out data, a training loss of one batch.
    for metric in (metric_names.EVAL_LOSS, metric_names.LOSS):
        samples = common_samples([run.curve(metric) for run in runs_of(groups)])
        if len(samples):
            return int(samples[-1])
    return None


def outcomes(groups: Sequence[Group], losses: Sequence[str]) -> list[Outcome]:
    """`losses`: metrics whose curves are compared."""
    evaluated = metrics_with_prefix(groups, metric_names.EVAL)
    metrics = [metric for metric in evaluated if metric != metric_names.EVAL_SAMPLES]
    # Last: the headline gives the first that there is, an evaluation where one was made.
    metrics.append(metric_names.LOSS)
    shared = equal_samples(groups)
    results = []
    for group in groups:
        # Without any common row each set-up is shown at its own end, which the title says.
        samples = shared if shared is not None else _last_samples(group)
        results.append(
            Outcome(
                samples=samples,
                steps=None if samples is None else group.mean_steps_at(samples),
                metrics=_metrics_at(group, metrics, samples),
                noise_scale=group.spread(lambda run: run.last(metric_names.NOISE_SCALE)),
                noise_scale_range=interval_over_runs(group, metric_names.NOISE_SCALE),
                break_even=group.spread(lambda run: run.last(metric_names.BREAK_EVEN)),
                break_even_range=interval_over_runs(group, metric_names.BREAK_EVEN),
                distances={} if group is groups[0] else _distances(groups[0], group, losses),
            )
        )
    return results


def _metrics_at(group: Group, metrics: Sequence[str], samples: int | None) -> dict[str, Spread]:
    values = {}
    if samples is not None:
        for metric in metrics:
            spread = group.spread_at(metric, samples)
            if spread:
                values[metric] = spread
    return values


def _distances(first: Group, group: Group, losses: Sequence[str]) -> dict[str, CurveDistance]:
    distances = {}
    for metric in losses:
        distance = curve_distance([*first.runs, *group.runs], metric)
        if distance:
            distances[metric] = distance
    return distances


def _last_samples(group: Group) -> int | None:
    """The last samples seen at which all of its runs have a loss, or else at which all end."""
    samples = equal_samples([group])
    if samples is not None:
        return samples
    # Runs that ended apart have no end in common.
    ends = {int(run.rows.values(metric_names.SAMPLES_SEEN)[-1]) for run in group.runs}
    return ends.pop() if len(ends) == 1 else None


def target_of(groups: Sequence[Group], configured: float | None) -> Target | None:
    """Unless it is configured: the lowest evaluation loss that every run reached.

    None: some run has no evaluation.
    """
    per_run = list(map(_lowest_loss, runs_of(groups)))
    # None means no evaluation, and a run that has none can reach no target.
    lowest = [loss for loss in per_run if loss is not None]
    # A loss that some run may never reach is no target that follows from the runs.
    if not lowest or (configured is None and len(lowest) < len(per_run)):
        return None
    loss = max(lowest) if configured is None else configured
    hours = []
    reached = []
    for group in groups:
        # Over the runs that reached it: how many did stands beside the mean.
        hours.append(group.spread(lambda run: run.hours_to(metric_names.EVAL_LOSS, loss)))
        reached.append(sum(_has_reached(run, loss) for run in group.runs))
    return Target(
        metric=metric_names.EVAL_LOSS,
        loss=loss,
        is_configured=configured is not None,
        hours=tuple(hours),
        reached=tuple(reached),
    )


def _has_reached(run: Run, loss: float) -> bool:
    lowest = _lowest_loss(run)
    return lowest is not None and lowest <= loss


def _lowest_loss(run: Run) -> float | None:
    return run.lowest(metric_names.EVAL_LOSS)
