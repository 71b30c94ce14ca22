"""The eight panels of a page in W&B: what runs gained, and what they cost. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from train import metric_names
from train.comparison.cost import KINDS, PHASES


@dataclass(frozen=True)
class Panel:
    """Lines over `x`, of each of the metrics `y` that a run has."""

    title: str
    y: tuple[str, ...]
    x: str = metric_names.SAMPLES_SEEN
    log_y: bool = False


def panels(metrics: Iterable[str]) -> list[Panel]:
    """`metrics`: those that the runs have, as evaluations differ from task to task."""
    # A dictionary as a set that keeps its order.
    evaluated: dict[str, None] = {}
    for metric in metrics:
        # The size of an evaluation set is no curve.
        if metric.startswith(metric_names.EVAL) and metric.rpartition("/")[2] != "samples":
            evaluated[metric] = None
    return [
        Panel("Training loss over samples", (metric_names.LOSS,)),
        Panel("Training loss over hours of training", (metric_names.LOSS,), x=metric_names.HOURS),
        # Where no run has an evaluation yet, the panel waits for the loss.
        Panel("Evaluation", tuple(evaluated) or (metric_names.EVAL_LOSS,)),
        Panel("Effective batch (samples)", (metric_names.EFFECTIVE_SIZE,)),
        Panel("Peak memory (GiB)", tuple(KINDS)),
        Panel("Samples per second", (metric_names.SAMPLES_PER_SECOND,)),
        Panel("Where a step's time goes (s); sync is a part of forward + backward", tuple(PHASES)),
        Panel(
            "Learning rate, and gradient norm before clipping",
            (metric_names.LEARNING_RATE, metric_names.GRAD_NORM),
            log_y=True,
        ),
    ]
