"""One optimizer step: forward_backward for each micro-batch, then one update."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from train.batch.window import MicroBatch, Window
from train.data.device_prefetch import Feed
from train.distributed.parallel import Parallel
from train.errors import UserError
from train.optim.skipped_steps import SkippedSteps, is_not_finite, stop_at
from train.tasks import Task, by_term, stacked


@dataclass
class Learner:
    """What a step works on, on this rank."""

    accelerator: Accelerator
    device: torch.device
    world_size: int
    parallel: Parallel  # how the ranks share the work on the model
    model: Any  # parallel.model: calling it is what makes the ranks reduce their gradients
    module: nn.Module  # the user's own, inside any wrapper
    parameters: Sequence[nn.Parameter]  # those that are trained
    dtype: torch.dtype  # of the parameters, and of the arguments that the model gets
    feed: Feed
    task: Task
    # by which the terms of the loss are added up; 1 where the task names none
    coefficients: Mapping[str, float]
    optimizer: Any  # a torch.optim.Optimizer, whose fused kind also reads the attribute found_inf
    # of the loss in float16, whose small gradients would be 0; disabled in all else
    scaler: torch.amp.GradScaler
    skips_on_device: bool  # the optimizer leaves out an update where a flag on the device says so
    max_grad_norm: float | None
    stop_at_nonfinite: bool
    skips: SkippedSteps
    notes: Sequence[str] = ()  # for the screen: what was decided about the model


ComputeGradient = Callable[[Learner, Window], Tensor]
"""Leaves the gradient of a window in `.grad`, reduced over the ranks; returns this rank's sums of
losses, by term.
"""


class NoGradient(UserError):
    """The loss does not depend on any trainable parameter."""


def forward_backward(learner: Learner, micro_batch: MicroBatch, window: Window) -> Tensor:
    """Add this micro-batch's part of the step's gradient to `.grad`.

    Returns its sums of losses, detached: (terms,).

    The loss of a step is sum(losses) / weight over all micro-batches and ranks, so each micro-batch
    is scaled by the weight of the whole window, however its own samples are distributed. DDP
    divides the sum over the ranks by their number R: the factor R undoes it. A filler counts 0, and
    still takes part in the reduction.
    """
    sums = by_term(learner.task.loss_sum(learner.model, learner.feed.take(micro_batch)))
    ranks = learner.world_size if micro_batch.samples else micro_batch.filler_factor
    losses = []
    for term, weight in window.weights.items():
        # Weight 0: no sample of the step has this term. Its sums are 0, and 0 / 0 would be NaN.
        factor = learner.coefficients[term] * ranks / weight if weight else 0.0
        losses.append(sums[term] * factor)
    loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
    # accelerator.backward does the same, and divides by its own accumulation steps, which are 1.
    torch.autograd.backward(learner.scaler.scale(loss))
    detached = stacked([sums[term].detach() for term in window.weights])
    if micro_batch.samples:
        return detached
    # A filler's loss counts nowhere; its 0 may be NaN, where a sample could not be read.
    return torch.full_like(detached, micro_batch.filler_factor)


def update(learner: Learner, rate: float) -> Tensor:
    """Clip the gradient once, apply it unless it is not finite, and clear it.

    Returns its norm before clipping: 0-dim, on the device.

    After the reduction a gradient that is not finite is so on every rank: the norm alone is a flag
    on which all agree.
    """
    gradients = [p.grad for p in learner.parameters if p.grad is not None]
    if not gradients:
        raise NoGradient(
            "no parameter has a gradient: does the loss depend on the model's trainable parameters?"
        )
    learner.scaler.unscale_(learner.optimizer)
    norm = learner.parallel.total_norm(gradients)
    skipped = is_not_finite(norm)
    if learner.max_grad_norm is not None:
        learner.parallel.clip(gradients, learner.max_grad_norm, norm)
    for group in learner.optimizer.param_groups:
        group["lr"] = rate * group["lr_multiplier"]
    # The host waits for the device here: the price of on_nonfinite=stop.
    if learner.stop_at_nonfinite and not math.isfinite(norm):
        raise stop_at(norm)
    if learner.skips_on_device:
        learner.optimizer.found_inf = skipped
        learner.optimizer.step()
    elif math.isfinite(norm):
        # On a GPU the host has waited for the flag: these optimizers cannot skip on the device.
        learner.optimizer.step()
    learner.scaler.update()  # on the device: halved where the gradient was not finite
    learner.optimizer.zero_grad(set_to_none=learner.parallel.frees_gradients)
    learner.skips.add(skipped)
    return norm
