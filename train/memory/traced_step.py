"""Full optimizer steps on fake tensors, watched by the tracer: all bytes, without the memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from train.batch.window import Batch, MicroBatch, Window
from train.distributed.flat_buckets import FlatBuckets
from train.distributed.ranks import Ranks
from train.memory.sizes import parameters_and_buffers, tensors_of
from train.memory.tracer import (
    GRADIENTS,
    KINDS,
    OPTIMIZER,
    SAMPLES,
    WEIGHTS,
    LiveStorages,
    onednn_bytes,
)
from train.step import ComputeGradient, Learner, forward_backward, update

CUDA_BLOCK = 512
"""Bytes: torch's allocator on a GPU gives multiples of it."""


@dataclass(frozen=True)
class RecordedStep:
    """One optimizer step."""

    samples: int  # of a micro-batch
    operations: Sequence[str]
    live: Sequence[Sequence[int]]  # bytes of each of tracer.KINDS after each operation

    def anatomy(self) -> dict[str, int]:
        """{kind: bytes} at the peak."""
        return dict(zip(KINDS, max(self.live, key=sum), strict=True))

    @property
    def peak(self) -> int:
        return sum(self.anatomy().values())


@dataclass(frozen=True)
class Stepper:
    """Takes full optimizer steps with a learner, as a run does."""

    learner: Learner
    terms: Sequence[str]
    gradient: ComputeGradient
    buckets: Sequence[Tensor] = ()

    @classmethod
    def of(cls, learner: Learner, terms: Sequence[str]) -> "Stepper":
        is_wide = torch.promote_types(learner.dtype, torch.float32) == learner.dtype
        if is_wide:
            return cls(learner, terms, _compute_gradient)
        # bf16 gradients are summed in float32, in flat buckets.
        # The run's own buckets: they are as large as the model in float32, and stay.
        buckets = FlatBuckets(learner.parameters, Ranks())
        return cls(learner, terms, buckets.around(_compute_gradient), buckets.buckets)

    def step(
        self, batches: Sequence[Batch], before_update: Callable[[], object] = lambda: None
    ) -> None:
        """One step with these micro-batches."""
        micro_batches = [MicroBatch(batch, len(next(iter(batch.values())))) for batch in batches]
        self.gradient(self.learner, _window(micro_batches, self.terms))
        before_update()
        update(self.learner, 0.0)  # rate 0: the step is not kept


def _window(micro_batches: Sequence[MicroBatch], terms: Sequence[str]) -> Window:
    as_given: Any = tuple(micro_batches)
    weights: Mapping[str, float] = dict.fromkeys(terms, 1.0)
    samples = sum(each.samples for each in micro_batches)
    return Window(
        k=1, epoch=0, micro_batches=as_given, samples=samples, weights=weights, last_of_epoch=False
    )


def _compute_gradient(learner: Learner, window: Window) -> Tensor:
    """As the loops compute it on one rank."""
    losses = [forward_backward(learner, each, window) for each in window.micro_batches]
    return torch.stack(losses).sum(0)


def record(
    learner: Learner, like: Batch, terms: Sequence[str], samples: int, target: str
) -> dict[int, RecordedStep]:
    """{micro-batches in the step: what was live in it}, for 2 (so for any more) and for 1.

    Each micro-batch has `samples` samples. `target`: cpu or cuda. Call it inside the FakeTensorMode
    in which `learner` was made; the learner is changed.
    """
    tracer = LiveStorages(CUDA_BLOCK)
    if target == "cpu":
        tracer = LiveStorages(extra_bytes=onednn_bytes)
    steps = {}
    with tracer:
        tracer.count_as(parameters_and_buffers(learner.module), WEIGHTS)
        tracer.count_as(tensors_of(learner.optimizer.state), OPTIMIZER)
        stepper = Stepper.of(learner, terms)
        tracer.count_as(stepper.buckets, GRADIENTS)
        # Counted as they appear: made by an operation like any other, they would be taken for
        # activations.
        hooks = [_count_gradient(parameter, tracer) for parameter in learner.parameters]
        try:
            # A first step makes the optimizer's state, which later ones find.
            _record_step(tracer, stepper, [_empty_batch(like, samples)])
            for micro_batches in (2, 1):
                batches = [_empty_batch(like, samples) for _ in range(micro_batches)]
                names, live = _record_step(tracer, stepper, batches)
                steps[micro_batches] = RecordedStep(samples, names, live)
        finally:
            for hook in hooks:
                hook.remove()
    return steps


def _record_step(
    tracer: LiveStorages, stepper: Stepper, batches: Sequence[Batch]
) -> tuple[Sequence[str], Sequence[Sequence[int]]]:
    for batch in batches:
        tracer.count_as(batch.values(), SAMPLES)
    tracer.record()
    # Only in the update, which reads from the device whether the gradient is finite. Where the
    # model itself reads a number, its course depends on it: the trace must fail there.
    tracer.makes_up_numbers = False
    stepper.step(batches, partial(setattr, tracer, "makes_up_numbers", True))
    recorded = tracer.recorded()
    tracer.count_as(tensors_of(stepper.learner.optimizer.state), OPTIMIZER)
    return recorded


def _empty_batch(like: Batch, samples: int) -> Batch:
    """A batch of `samples`, each of the shape of those in `like`, without values."""
    batch = {}
    for name, column in like.items():
        batch[name] = torch.empty((samples, *column.shape[1:]), dtype=column.dtype)
    return batch


def _count_gradient(parameter: nn.Parameter, tracer: LiveStorages) -> Any:
    def on_gradient(changed: Tensor) -> None:
        if changed.grad is not None:
            tracer.count_as([changed.grad], GRADIENTS)

    return parameter.register_post_accumulate_grad_hook(on_gradient)
