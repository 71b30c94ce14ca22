"""One gradient reduction per step, whatever the number of micro-steps: counted, since values are
right either way.
"""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

import train.run
from tests.helpers import Trace, argv, record
from train.batch.window import Window
from train.run import Run
from train.step import Learner, forward_backward

# 5 MB; DDP's first bucket holds 1 MB
SEVERAL_BUCKETS = ("model.args.hidden=[800, 800, 800]", "precision=fp32")


def counting(
    arguments: list[str], compute_gradient: Any = None
) -> tuple[Trace, dict[int, int], dict[int, int]]:
    """(trace, reductions of each step, buckets that they were for): a hook counts what DDP sends."""
    reductions: Counter[int] = Counter()
    buckets: dict[int, set[int]] = {}

    def install(run: Run, trace: Trace) -> None:
        def hook(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            # 0: where the order of the buckets is fixed
            k = trace.windows[-1].k if trace.windows else 0
            reductions[k] += 1
            buckets.setdefault(k, set()).add(bucket.index())
            return allreduce_hook(None, bucket)

        run.learner.model.register_comm_hook(None, hook)

    # on_oom=shrink reduces the first two steps itself: tests/gradients/test_shrink.py.
    trace = record(
        [*arguments, "batch.on_oom=stop"], compute_gradient=compute_gradient, prepare=install
    )
    del reductions[0], buckets[0]
    return trace, dict(reductions), {k: len(found) for k, found in buckets.items()}


def forward_outside(learner: Learner, window: Window) -> torch.Tensor:
    """What one must not write: DDP decides in the forward pass whether the backward pass reduces."""
    *earlier, last = window.micro_batches
    for micro_batch in earlier:
        losses = learner.task.loss_sum(learner.model, learner.feed.take(micro_batch))
        with learner.accelerator.no_sync(learner.model):
            learner.accelerator.backward(losses * learner.world_size / window.weights["loss"])
    return forward_backward(learner, last, window)


def always_synchronised(learner: Learner, window: Window) -> torch.Tensor:
    """What one must not write either."""
    return sum(
        forward_backward(learner, micro_batch, window) for micro_batch in window.micro_batches
    )


@pytest.mark.parametrize("micro_steps", [1, 4, 8])
@pytest.mark.parametrize(("model", "buckets"), [((), 1), (SEVERAL_BUCKETS, 2)])
def test_one_reduction_of_each_bucket_per_step(
    run_ranks: Any, tmp_path: Path, micro_steps: int, model: tuple[str, ...], buckets: int
) -> None:
    batch = ("data.args.size=96", "batch.effective=32", f"batch.accumulation_steps={micro_steps}")

    ranks = run_ranks(2, counting, argv(tmp_path, *model, *batch))

    for trace, reductions, found in ranks:
        assert [len(sizes) for sizes in trace.sizes] == [micro_steps] * 3
        assert found[1] == found[2] == found[3] >= buckets
        assert reductions == found
        for k in (1, 2, 3):
            assert np.array_equal(trace.gradients[k], ranks[0][0].gradients[k])


@pytest.mark.parametrize("wrong", [forward_outside, always_synchronised])
@pytest.mark.parametrize(("model", "buckets"), [((), 1), (SEVERAL_BUCKETS, 2)])
def test_the_count_sees_a_reduction_too_many(
    run_ranks: Any, tmp_path: Path, wrong: Any, model: tuple[str, ...], buckets: int
) -> None:
    right, mistaken = (
        argv(tmp_path, *model, f"name={name}", "data.args.size=24", "batch.micro=1")
        for name in "ab"
    )

    expected = run_ranks(2, record, right)[0]
    trace, reductions, found = run_ranks(2, counting, mistaken, wrong)[0]

    assert found[2] >= buckets
    assert reductions[2] == 4 * found[2]  # K = 4
    assert np.allclose(trace.weights[-1], expected.weights[-1], rtol=1e-5), "the values do not tell"


def collectives(arguments: list[str]) -> Counter[str]:
    """What the run's own code starts during its steps, beside DDP's reductions."""
    counts: Counter[str] = Counter()

    def counted(name: str, function: Any) -> Any:
        def call(first: Any = None, *args: Any, **kwargs: Any) -> Any:
            counts[f"{name} of {first.numel()}" if isinstance(first, torch.Tensor) else name] += 1
            return function(*([] if first is None else [first]), *args, **kwargs)

        return call

    def install(run: Run, trace: Trace) -> None:
        for name in (
            "all_reduce",
            "broadcast",
            "all_gather",
            "all_gather_object",
            "broadcast_object_list",
            "barrier",
        ):
            setattr(dist, name, counted(name, getattr(dist, name)))

    record(arguments, prepare=install)
    return counts


def test_one_small_message_per_window_and_nothing_else(run_ranks: Any, tmp_path: Path) -> None:
    arguments = argv(
        *(
            tmp_path,
            "data.args.size=160",
            "batch.micro=1",
            "log.every_steps=20",
            "noise_scale.every_steps=20",
        ),
        "batch.on_oom=stop",
    )

    for counts in run_ranks(2, collectives, arguments):
        assert counts.pop("all_reduce of 5") == 20  # windows
        # with the one row: one measurement of the noise scale
        assert counts.pop("all_reduce of 2") == 1
        # the guard at steps 1 to 3, and the one row: its loss, the mean loss, its gauges
        assert counts.total() <= 6


def with_accumulation_in_the_environment(plain: list[str], other: list[str]) -> list[Trace]:
    before = record(plain)
    os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = "4"
    # it would be refused: here is what lies behind that
    train.run.check_launcher = lambda config: None
    return [before, record(other)]


def test_accelerates_own_accumulation_is_closed(run_ranks: Any, tmp_path: Path) -> None:
    plain, other = (
        argv(tmp_path, f"name={name}", "data.args.size=24", "batch.micro=2") for name in "ab"
    )

    for before, after in run_ranks(2, with_accumulation_in_the_environment, plain, other):
        assert all(np.array_equal(before.gradients[k], after.gradients[k]) for k in (1, 2, 3))
