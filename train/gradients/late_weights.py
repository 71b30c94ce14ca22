"""Divides the gradient of a step once, where the divisor is known with its last micro-batch only.

So it is where samples are read when their turn comes, and nothing says beforehand which of their
labels count.
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
    """The same function, its gradient divided by the weight of the step."""

    def compute_divided(learner: Learner, window: Window) -> Tensor:
        losses = compute_gradient(learner, window)
        assert isinstance(window.weights, LateWeights)
        # Until here losses were divided by a power of two that is near to the weight.
        # One more message, after the reduction: a rank that failed before it would send its
        # messages in another order than the others, and leave them waiting.
        factor = window.weights.settle()
        gradients = [p.grad for p in learner.parameters if p.grad is not None]
        torch._foreach_mul_(gradients, factor)
        return losses

    return compute_divided
