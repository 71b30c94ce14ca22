"""What set-ups reached at equal samples seen, and how long they took to a target loss. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from train import metric_names
from train.comparison.agree import Agreement, agreement
from train.comparison.curve import common
from train.comparison.group import Group, Spread, common_metrics, spread
from train.comparison.paying import range_of
from train.comparison.run import Run


@dataclass(frozen=True)
class Outcome:
    """Of one set-up; `samples` differ between set-ups only where they share no row. None: its runs
    ended apart.
    """

    samples: int | None
    steps: float | None
    metrics: dict[str, Spread]
    noise_scale: Spread | None  # the last that each run estimated
    # of these estimates, as are those below: see paying.range_of
    noise_scale_range: tuple[float, float] | None
    # the number of micro-steps per step that the run itself estimated last to be the fastest
    break_even: Spread | None
    break_even_range: tuple[float, float] | None
    # from the first set-up, by loss: over the whole curve, where seeds are shared
    apart: dict[str, Agreement]


@dataclass(frozen=True)
class Target:
    metric: str
    loss: float
    was_given: bool
    hours: tuple[Spread | None, ...]  # of each set-up
    reached: tuple[int, ...]  # runs of each set-up


def equal_samples(groups: Sequence[Group]) -> int | None:
    """The last samples seen at which all runs have an evaluation, or else a training loss."""
    for metric in (metric_names.EVAL_LOSS, metric_names.LOSS):
        shared = common([run.curve(metric) for group in groups for run in group.runs])
        if len(shared):
            return int(shared[-1])
    return None


def outcomes(groups: Sequence[Group], metrics: Sequence[str]) -> list[Outcome]:
    """`metrics`: the losses whose curves are compared."""
    shared, found = equal_samples(groups), []
    evaluated = [
        m for m in common_metrics(groups, metric_names.EVAL) if m != metric_names.EVAL_SAMPLES
    ]
    for group in groups:
        samples = shared if shared is not None else _end(group)
        here = {
            metric: group.spread_at(metric, samples)
            for metric in [*evaluated, metric_names.LOSS]
            if samples is not None
        }
        others = [*groups[0].runs, *group.runs] if group is not groups[0] else []
        apart = {metric: agreed for metric in metrics if (agreed := agreement(others, metric))}
        known = {metric: value for metric, value in here.items() if value}
        steps = None if samples is None else group.mean_at("steps", samples)
        noise, best = (
            [run.last(metric) for run in group.runs]
            for metric in (metric_names.NOISE_SCALE, metric_names.BREAK_EVEN)
        )
        found.append(
            Outcome(
                samples=samples,
                steps=steps,
                metrics=known,
                noise_scale=spread(noise),
                noise_scale_range=range_of(group, metric_names.NOISE_SCALE),
                break_even=spread(best),
                break_even_range=range_of(group, metric_names.BREAK_EVEN),
                apart=apart,
            )
        )
    return found


def _end(group: Group) -> int | None:
    """The last samples seen at which all of its runs have a loss; without any loss, those of their
    last rows.
    """
    common_end = equal_samples([group])
    ends = {int(run.rows.values(metric_names.SAMPLES_SEEN)[-1]) for run in group.runs}
    return ends.pop() if common_end is None and len(ends) == 1 else common_end


def target_of(groups: Sequence[Group], given: float | None) -> Target | None:
    """Unless it is given: the lowest evaluation loss that every run reached. None: some run has no
    evaluation.
    """
    runs = [run for group in groups for run in group.runs]
    lowest = list(map(_lowest, runs))
    known = [loss for loss in lowest if loss is not None]
    if not known or (given is None and len(known) < len(lowest)):
        return None
    loss = max(known) if given is None else given
    several = [
        [run.hours_to(metric_names.EVAL_LOSS, loss) for run in group.runs] for group in groups
    ]
    hours = tuple(spread(of_group) for of_group in several)
    reaches = [
        [low is not None and low <= loss for low in map(_lowest, group.runs)] for group in groups
    ]
    reached = tuple(map(sum, reaches))
    return Target(metric_names.EVAL_LOSS, loss, given is not None, hours, reached)


def _lowest(run: Run) -> float | None:
    return run.lowest(metric_names.EVAL_LOSS)
