"""The mean loss over all applied steps since the last row.

Of each term the sum of losses over the sum of weights; the terms are then added up. `train/loss` is
that of one step, with the noise of one batch.
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
    """Costs one dict entry per step.

    Losses stay on the device until the skipped steps are read from there (SkippedSteps.watchers).
    """

    def __init__(self, learner: Learner, ranks: Ranks) -> None:
        self._coefficients = learner.coefficients
        self._skips = learner.skips
        self._ranks = ranks
        # {step: (losses, weights)} since the last read. By step: a gradient that is computed twice
        # counts once.
        self._steps: dict[int, tuple[Tensor, Mapping[str, float]]] = {}
        # By term, of the applied steps since the last row: losses of this rank, weights of all.
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
        """(steps, terms), to be read from the device."""
        if not self._steps:
            return None
        return torch.stack([losses for losses, _ in self._steps.values()])

    def count(self, applied: Sequence[bool], numbers: Sequence[float]) -> None:
        """Add up the losses of applied steps; `numbers`: `pending`, flat.

        A step that ended the run before its update is not in `applied`.
        """
        losses = iter(numbers)
        for i, (_, weights) in enumerate(self._steps.values()):
            was_applied = i < len(applied) and applied[i]
            for term, weight in weights.items():
                loss = next(losses)
                if was_applied:
                    self._losses[term] = self._losses.get(term, 0.0) + loss
                    self._weights[term] = self._weights.get(term, 0.0) + weight
        self._steps.clear()

    def metrics(self, metrics: Metrics) -> Metrics:
        """Absent where no step was applied.

        All ranks call it together, after the skipped steps were read from the device.
        """
        weights = {term: weight for term, weight in self._weights.items() if weight}
        losses = [self._losses[term] for term in weights]
        self._losses.clear()
        self._weights.clear()
        if not weights:
            return metrics
        mean = 0.0
        for (term, weight), total in zip(weights.items(), self._ranks.sum(losses), strict=True):
            mean += self._coefficients[term] * (total / weight)
        return {**metrics, metric_names.LOSS_MEAN: mean}

    def state_dict(self) -> dict[str, Any]:
        self._skips.look()
        return {"losses": self._ranks.gather(self._losses), "weights": self._weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Each rank resumes with its own sums; with another world size, rank 0 has those of all."""
        by_rank = state["losses"]
        self._weights = dict(state["weights"])
        if len(by_rank) == self._ranks.world_size:
            self._losses = dict(by_rank[self._ranks.rank])
            return
        # The sums over the ranks stay the same.
        self._losses = {}
        for term in self._weights:
            total = sum(losses[term] for losses in by_rank)
            self._losses[term] = total if self._ranks.is_main else 0
