"""The losses of one step, as its row has them."""

from collections.abc import Sequence

from train import metric_names
from train.batch.window import Window
from train.step import Learner


def mean_losses(learner: Learner, window: Window, totals: Sequence[float]) -> dict[str, float]:
    """{metric: value} of each term of the loss, and of the optimised loss.

    `totals`: the sums of losses by term, over all micro-batches and ranks of the step. Empty where
    no sample has a weight.
    """
    metrics: dict[str, float] = {}
    loss = 0.0
    for (term, weight), total in zip(window.weights.items(), totals, strict=True):
        if weight:
            metrics[f"train/{term}"] = total / weight
            loss += learner.coefficients[term] * (total / weight)
    if metrics:
        metrics[metric_names.LOSS] = loss
    return metrics
