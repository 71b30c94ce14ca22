"""Full optimizer steps of a learner without values, watched by the tracer: every byte, and no
memory.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from train.batch.window import Batch, MicroBatch, Window
from train.distributed.flat_buckets import FlatBuckets
from train.distributed.ranks import Ranks
from train.memory.sizes import tensors_of
from train.memory.tracer import (
    GRADIENTS,
    KINDS,
    OPTIMIZER,
    SAMPLES,
    WEIGHTS,
    LiveStorages,
    inside_onednn,
)
from train.step import ComputeGradient, Learner, forward_backward, update

CUDA_BLOCK = 512
"""Bytes: torch's allocator on a GPU gives multiples of it."""


@dataclass(frozen=True)
class Recorded:
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


def of_samples(like: Batch, samples: int) -> Batch:
    """A batch of `samples`, each of the shape of those in `like`, without anything in it."""
    return {
        name: torch.empty((samples, *column.shape[1:]), dtype=column.dtype)
        for name, column in like.items()
    }


def window_of(micro_batches: Sequence[MicroBatch], terms: Sequence[str]) -> Window:
    cut: Any = tuple(micro_batches)
    weights: Mapping[str, float] = dict.fromkeys(terms, 1.0)
    samples = sum(each.samples for each in micro_batches)
    return Window(
        k=1, epoch=0, micro_batches=cut, samples=samples, weights=weights, last_of_epoch=False
    )


def compute_gradient(learner: Learner, window: Window) -> Tensor:
    """As the loops do it on one rank."""
    return torch.stack(
        [forward_backward(learner, each, window) for each in window.micro_batches]
    ).sum(0)


@dataclass(frozen=True)
class Stepper:
    """Takes full optimizer steps with a learner, as a run does."""

    learner: Learner
    terms: Sequence[str]
    gradient: ComputeGradient
    buckets: Sequence[Tensor] = ()

    @classmethod
    def of(cls, learner: Learner, terms: Sequence[str]) -> "Stepper":
        if torch.promote_types(learner.dtype, torch.float32) == learner.dtype:
            return cls(learner, terms, compute_gradient)
        # narrow gradients are summed in wide ones
        buckets = FlatBuckets(learner.parameters, Ranks())
        return cls(learner, terms, buckets.around(compute_gradient), buckets.buckets)

    def step(
        self, batches: Sequence[Batch], before_update: Callable[[], object] = lambda: None
    ) -> None:
        """One step of so many micro-batches."""
        micro_batches = [MicroBatch(batch, len(next(iter(batch.values())))) for batch in batches]
        self.gradient(self.learner, window_of(micro_batches, self.terms))
        before_update()
        update(self.learner, 0.0)  # no step is kept


def record(
    learner: Learner, like: Batch, terms: Sequence[str], samples: int, target: str
) -> dict[int, Recorded]:
    """{micro-batches in the step: what was live in it}, for 2 (so for any more) and for 1, each of
    `samples`.

    Call it inside of the FakeTensorMode in which `learner` was made, which is another one
    afterwards. The first step, in which the optimizer makes its state, is not recorded. `target`:
    cpu or cuda.
    """
    found = {}
    on_cpu = target == "cpu"
    with LiveStorages(inside=inside_onednn) if on_cpu else LiveStorages(CUDA_BLOCK) as tracer:
        tracer.hold([*learner.module.parameters(), *learner.module.buffers()], WEIGHTS)
        tracer.hold(tensors_of(learner.optimizer.state), OPTIMIZER)
        stepper = Stepper.of(learner, terms)
        tracer.hold(stepper.buckets, GRADIENTS)
        hooks = [_told(parameter, tracer) for parameter in learner.parameters]
        try:
            for micro_steps in (0, 2, 1):
                batches = [of_samples(like, samples) for _ in range(micro_steps or 1)]
                tracer.hold([column for batch in batches for column in batch.values()], SAMPLES)
                tracer.record()
                tracer.answers = False
                stepper.step(batches, partial(setattr, tracer, "answers", True))
                names, live = tracer.recorded()
                tracer.hold(tensors_of(learner.optimizer.state), OPTIMIZER)
                if micro_steps:
                    found[micro_steps] = Recorded(samples, names, live)
        finally:
            for hook in hooks:
                hook.remove()
    return found


def _told(parameter: nn.Parameter, tracer: LiveStorages) -> Any:
    def arrived(changed: Tensor) -> None:
        if changed.grad is not None:
            tracer.hold([changed.grad], GRADIENTS)

    return parameter.register_post_accumulate_grad_hook(arrived)
