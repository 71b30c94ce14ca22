"""Divides the gradient of a step once, where what its losses are divided by is known with its last
micro-batch.

So it is where samples are read when their turn comes, and nothing says beforehand which labels of
them count.
"""

import torch
from torch import Tensor

from train.batch.window import Window
from train.data.in_step import LateWeights
from train.parts import Part
from train.step import ComputeGradient, Learner


def part(is_late: bool) -> Part:
    return Part(name="late_weights", gradient=divided) if is_late else Part(name="late_weights")


def divided(compute_gradient: ComputeGradient) -> ComputeGradient:
    """The same function, its gradient that of the step's own weight."""

    def late(learner: Learner, window: Window) -> Tensor:
        losses = compute_gradient(learner, window)
        assert isinstance(window.weights, LateWeights)
        factor = window.weights.settle()
        torch._foreach_mul_([p.grad for p in learner.parameters if p.grad is not None], factor)
        return losses

    return late
