"""The loss over all steps since the last row: of each term the sum of losses over the sum of
weights, then added up.

Only of steps that were applied. `train/loss` is that of one step, and its noise is that of one
batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from train import metric_names
from train.batch.window import Window
from train.distributed.ranks import Ranks
from train.parts import Metrics, Part
from train.step import ComputeGradient, Learner


def part(learner: Learner, ranks: Ranks) -> Part:
    mean = LossMean(learner, ranks)
    return Part(name="loss_mean", gradient=mean.gradient, metrics=mean.metrics, state=mean)


class LossMean:
    """A step costs one entry in a dict. What it holds stays on the device until somebody looks at
    the skipped steps.
    """

    def __init__(self, learner: Learner, ranks: Ranks) -> None:
        self._coefficients = learner.coefficients
        self._skips = learner.skips
        self._ranks = ranks
        # Of the steps since somebody looked, by number: a gradient that is computed twice counts
        # once.
        self._steps: dict[int, tuple[Tensor, Mapping[str, float]]] = {}
        # By term, of the applied steps since the last row. Losses are this rank's; weights are
        # those of all ranks.
        self._losses: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        self._skips.watchers.append(self)

    def gradient(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        steps = self._steps

        def watched(learner: Learner, window: Window) -> Tensor:
            losses = compute_gradient(learner, window)
            steps[window.k] = (losses, window.weights)
            return losses

        return watched

    def pending(self) -> Tensor | None:
        return torch.stack([losses for losses, _ in self._steps.values()]) if self._steps else None

    def count(self, applied: Sequence[bool], numbers: Sequence[float]) -> None:
        """Add up what was applied; a step that ended the run before its update is not among
        `applied`.
        """
        read = iter(numbers)
        for number, (_, weights) in enumerate(self._steps.values()):
            was_applied = number < len(applied) and applied[number]
            for term, weight in weights.items():
                loss = next(read)
                if was_applied:
                    self._losses[term] = self._losses.get(term, 0.0) + loss
                    self._weights[term] = self._weights.get(term, 0.0) + weight
        self._steps.clear()

    def metrics(self, metrics: Metrics) -> Metrics:
        """Absent where no step was applied. All ranks come here together; the skipped steps were
        looked at.
        """
        counted = {term: weight for term, weight in self._weights.items() if weight}
        totals = self._ranks.sum([self._losses[term] for term in counted]) if counted else []
        self._losses.clear()
        self._weights.clear()
        if not counted:
            return metrics
        mean = 0.0
        for (term, weight), total in zip(counted.items(), totals, strict=True):
            mean += self._coefficients[term] * (total / weight)
        return {**metrics, metric_names.LOSS_MEAN: mean}

    def state_dict(self) -> dict[str, Any]:
        self._skips.look()
        return {"losses": self._ranks.gather(self._losses), "weights": self._weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Each rank goes on with its own sums; on another number of ranks, rank 0 with those of
        all.
        """
        of_ranks = state["losses"]
        self._weights = dict(state["weights"])
        if len(of_ranks) == self._ranks.world_size:
            self._losses = dict(of_ranks[self._ranks.rank])
            return
        share = of_ranks if self._ranks.is_main else []
        self._losses = {term: sum(losses[term] for losses in share) for term in self._weights}
