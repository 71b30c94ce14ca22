"""The explicit reduction: of bf16 parameters, whose gradients are summed in float32, and of unused
ones.
"""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from datasets import Dataset
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

import train.distributed.flat_buckets
from tests.helpers import Array, Trace, argv, distance, record, record_all, rows
from train import load as load_run
from train.accumulate import compute_gradient
from train.batch import sample_ids
from train.config import load
from train.distributed.flat_buckets import FlatBuckets
from train.run import Run, build
from train.step import update

BF16 = ("model.dtype=bf16", "precision=fp32")


class RanksApart(nn.Linear):
    """A model that is drawn otherwise on each rank."""

    def __init__(self) -> None:
        super().__init__(6, 3)
        nn.init.constant_(self.weight, float(os.environ["RANK"]))


def wide(tensors: Any) -> Array:
    return torch.cat([t.detach().double().flatten() for t in tensors]).numpy().copy()


def sums_of_a_window(arguments: list[str]) -> tuple[Array, Array, Array, Array]:
    """(float64 sum of this rank's micro-gradients, our sum before the cast, `.grad`, the naive
    `.grad`).
    """
    run = build(load(arguments), "accumulate")
    learner, window = run.learner, next(iter(run.windows))
    exact = {p: torch.zeros_like(p, dtype=torch.float64) for p in learner.parameters}

    def record_micro_gradient(parameter: nn.Parameter) -> None:
        exact[parameter] += parameter.grad.double()

    hooks = [
        p.register_post_accumulate_grad_hook(record_micro_gradient) for p in learner.parameters
    ]
    buckets = FlatBuckets(learner.parameters, run.ranks)
    buckets.around(compute_gradient)(learner, window)
    for hook in hooks:
        hook.remove()
    ours, gradients = wide(buckets.buckets), wide([p.grad for p in learner.parameters])
    learner.optimizer.zero_grad()
    compute_gradient(learner, window)
    run.report.close("finished", 0)
    return wide(exact.values()), ours, gradients, wide([p.grad for p in learner.parameters])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_256_micro_batches_are_summed_in_float32(
    run_ranks: Any, tmp_path: Path, world_size: int
) -> None:
    size = 256 * world_size
    arguments = argv(
        tmp_path, *BF16, f"data.args.size={size}", f"batch.effective={size}", "batch.micro=1"
    )

    ranks = run_ranks(world_size, sums_of_a_window, arguments)

    expected = sum(exact for exact, *_ in ranks) / world_size
    for exact, ours, gradient, naive in ranks:
        assert distance(ours, expected) <= 1e-3  # measured: 1e-8 to 4e-8
        assert distance(gradient, expected) <= 2**-8  # one rounding to bf16
        assert distance(naive, exact) >= 5e-3, "the fixture could not tell the two sums apart"
        assert np.array_equal(ours, ranks[0][1])


def test_the_norm_of_bf16_gradients_is_no_number_of_bf16(tmp_path: Path) -> None:
    """Nor is the coefficient of a clip: each clipped number is the exact one, rounded once."""
    given = (
        *BF16,
        "model.args.hidden=[2000, 20]",
        "optimizer.max_grad_norm=null",
        "duration={steps: 2}",
    )
    limit = 0.01
    several = [
        argv(tmp_path, *given),
        argv(tmp_path, *given, f"optimizer.max_grad_norm={limit}", "name=clipped"),
    ]

    plain, clipped = record_all(several)

    norms = {
        k: float(np.linalg.norm(gradient.astype(np.float64)))
        for k, gradient in plain.gradients.items()
    }
    logged = {
        row["train/global_step"]: row["train/grad_norm"]
        for row in rows(tmp_path, "train/grad_norm")
    }
    assert logged == pytest.approx(norms, rel=1e-6)
    bf16_norms = [float(torch.tensor(norm).bfloat16()) for norm in norms.values()]
    assert bf16_norms != pytest.approx([*norms.values()], rel=1e-4), (
        "the fixture could not tell the two apart"
    )
    # the 1e-6 is PyTorch's
    exact = torch.from_numpy(plain.gradients[1]).double() * (limit / (norms[1] + 1e-6))
    assert np.array_equal(clipped.gradients[1], exact.bfloat16().float().numpy())
    assert rows(tmp_path, "train/grad_norm", "clipped")[0]["train/grad_norm"] == logged[1]


def counting(arguments: list[str]) -> tuple[Trace, Counter[int], int]:
    """(trace, reductions of each step, buckets): every all-reduce of a tensor larger than the
    ranks' messages.
    """
    train.distributed.flat_buckets.BUCKET_ELEMENTS = 2**18
    reductions: Counter[int] = Counter()
    sizes: list[int] = []

    def prepare(run: Run, trace: Trace) -> None:
        original = dist.all_reduce

        def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if tensor.numel() > 100:
                reductions[trace.windows[-1].k] += 1
                assert tensor.dtype is torch.float32
            return original(tensor, *args, **kwargs)

        dist.all_reduce = counted
        buckets = FlatBuckets(run.learner.parameters, run.ranks)
        buckets.around(compute_gradient)
        sizes.append(len(buckets.buckets))

    return record(arguments, prepare=prepare), reductions, sizes[0]


@pytest.mark.parametrize(("hidden", "several"), [("[20]", False), ("[600, 600, 600]", True)])
def test_one_reduction_of_each_bucket_per_step(
    run_ranks: Any, tmp_path: Path, hidden: str, several: bool
) -> None:
    found = []
    for micro_steps in (1, 4, 8):
        batch = (
            "data.args.size=96",
            "batch.effective=32",
            f"batch.accumulation_steps={micro_steps}",
        )
        given = (*BF16, f"model.args.hidden={hidden}", f"name=k{micro_steps}")
        ranks = run_ranks(2, counting, argv(tmp_path, *given, *batch))
        for trace, reductions, buckets in ranks:
            assert [len(sizes) for sizes in trace.sizes] == [micro_steps] * 3
            assert reductions == {1: buckets, 2: buckets, 3: buckets}
            found.append(buckets)
            for k in (1, 2, 3):
                assert np.array_equal(trace.gradients[k], ranks[0][0].gradients[k])
            assert np.array_equal(trace.weights[-1], ranks[0][0].weights[-1])
    assert len(set(found)) == 1
    assert (found[0] > 1) is several


def test_the_curve_is_that_of_other_splits(run_ranks: Any, tmp_path: Path) -> None:
    """Weights are rounded to bf16 after each step, so that curves part slowly."""
    given = (
        *BF16,
        "data.args.size=64",
        "duration={epochs: 3}",
        "optimizer={target: adamw, lr: 0.01}",
    )
    curves, weights = [], []
    for ranks in (1, 2, 3):
        several = [
            argv(tmp_path, *given, f"batch.micro={m}", f"name=r{ranks}m{m}") for m in ("all", 3, 1)
        ]
        for traces in zip(*run_ranks(ranks, record_all, several), strict=True):
            assert all(np.array_equal(trace.weights[-1], traces[0].weights[-1]) for trace in traces)
            weights.append(traces[0].weights[-1])
        curves += [
            [row["train/loss"] for row in rows(tmp_path, name=f"r{ranks}m{m}")]
            for m in ("all", 3, 1)
        ]

    assert all(len(curve) == 24 for curve in curves)
    apart = max(abs(a / b - 1) for curve in curves for a, b in zip(curve, curves[0], strict=True))
    assert apart <= 1e-2  # measured: 2e-3, and 5e-3 for the weights
    assert max(distance(w, weights[0]) for w in weights) <= 2e-2


def explicit_beside_ddp(arguments: list[str], explicit: list[str]) -> tuple[Trace, Trace, int]:
    """(as DDP reduces, as the explicit reduction does for the same wrapped model, buckets that DDP
    sent then).
    """
    plain, sent = record(arguments), 0

    def hook(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        nonlocal sent
        sent += 1
        return allreduce_hook(None, bucket)

    run: list[Run] = []

    def prepare(built: Run, trace: Trace) -> None:
        built.learner.model.register_comm_hook(None, hook)
        run.append(built)

    def reducing(learner: Any, window: Any) -> Tensor:
        nonlocal sent
        if window.k == 1:
            # from here on: what is sent before the first step fixes the order of the buckets
            sent = 0
        return FlatBuckets(learner.parameters, run[0].ranks).around(compute_gradient)(
            learner, window
        )

    return plain, record(explicit, compute_gradient=reducing, prepare=prepare), sent


def test_it_also_reduces_for_a_model_inside_ddp(run_ranks: Any, tmp_path: Path) -> None:
    """As is needed where a micro-batch may fail on one rank: DDP itself then reduces nothing."""
    several = [argv(tmp_path, "batch.micro=2", f"name={name}") for name in ("a", "b")]

    for plain, explicit, sent in run_ranks(2, explicit_beside_ddp, *several):
        assert sent == 0
        assert (
            max(distance(explicit.gradients[k], plain.gradients[k]) for k in plain.gradients)
            <= 1e-12
        )


def test_all_ranks_start_from_the_weights_of_rank_0(run_ranks: Any, tmp_path: Path) -> None:
    model = "model={target: tests.distributed.test_parallel.RanksApart, dtype: bf16}"

    ranks = run_ranks(2, record, argv(tmp_path, model, "precision=fp32"))

    assert np.array_equal(ranks[0].weights[0], ranks[1].weights[0])
    assert (ranks[1].weights[0][:18] == 0).all()


class Routed(nn.Module):
    """Two experts: the sign of a sample's first input decides which one it goes to. A third one is
    never used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.positive, self.negative, self.unused = (nn.Linear(6, 3) for _ in range(3))

    def forward(self, inputs: Tensor) -> Tensor:
        chosen = inputs[:, 0] > 0
        outputs = inputs.new_zeros(len(inputs), 3)
        if chosen.any():
            outputs[chosen] = self.positive(inputs[chosen])
        if not chosen.all():
            outputs[~chosen] = self.negative(inputs[~chosen])
        return outputs


def sorted_by_expert(size: int = 8) -> Dataset:
    """In the order of epoch 0, seed 0, the first half of the samples goes to one expert, the second
    to the other.
    """
    random, order = np.random.default_rng(0), sample_ids(size, 0, 0, 0, size)
    inputs = np.abs(random.normal(size=(size, 6))).astype(np.float32)
    inputs[order[size // 2 :], 0] *= -1
    return Dataset.from_dict({"inputs": inputs, "labels": random.integers(0, 3, size)})


def routed(several: list[list[str]]) -> list[tuple[dict[str, Array], dict[str, Array], list[str]]]:
    """Of each: (weights before, weights after, parameters without a gradient) of one step."""
    return [routed_once(arguments) for arguments in several]


def routed_once(arguments: list[str]) -> tuple[dict[str, Array], dict[str, Array], list[str]]:
    run = build(load(arguments), "accumulate")
    learner, window = run.learner, next(iter(run.windows))
    before = {name: wide([p]) for name, p in learner.module.named_parameters()}
    run.watch(compute_gradient)(learner, window)
    without = [name for name, p in learner.module.named_parameters() if p.grad is None]
    update(learner, 0.1)
    run.close("finished", 0)
    return before, {name: wide([p]) for name, p in learner.module.named_parameters()}, without


def test_an_expert_that_one_rank_uses_is_updated_on_all(run_ranks: Any, tmp_path: Path) -> None:
    """Rank 0 uses one expert, rank 1 the other. The one that nobody uses keeps None: AdamW would
    decay it for zeros.
    """
    here = "tests.distributed.test_parallel"
    data = f"data={{source: {here}.sorted_by_expert}}"
    optimizer = "optimizer={target: adamw, lr: 0.1, args: {weight_decay: 0.5}}"
    several, tolerances = [], (1e-12, 2**-7)  # bf16: one rounding of weight and gradient
    for precision, dtype in (("fp64", "null"), ("fp32", "bf16")):
        model = f"model={{target: {here}.Routed, dtype: {dtype}}}"
        several.append(
            argv(tmp_path, data, model, optimizer, f"precision={precision}", "batch.exact=ignore")
        )

    (alone,) = run_ranks(
        1, routed, [[*arguments, f"name=one{i}"] for i, arguments in enumerate(several)]
    )
    ranks = run_ranks(
        2, routed, [[*arguments, f"name=two{i}"] for i, arguments in enumerate(several)]
    )

    for of_rank in ranks:
        for i, (before, after, without) in enumerate(of_rank):
            assert without == ["unused.weight", "unused.bias"]
            for name in before:
                moved = bool((before[name] != after[name]).any())
                assert moved is not name.startswith("unused"), name
                assert np.array_equal(after[name], ranks[0][i][1][name]), (
                    "the ranks hold different weights"
                )
                assert distance(after[name], alone[i][1][name]) <= tolerances[i]


def fail_on_one_rank(arguments: list[str], failing: int) -> str:
    def compute(learner: Any, window: Any) -> Tensor:
        if learner.accelerator.process_index == failing and window.k == 2:
            raise torch.OutOfMemoryError("no room")
        return compute_gradient(learner, window)

    with pytest.raises(RuntimeError) as error:
        record(arguments, compute_gradient=compute)
    return f"{type(error.value).__name__}: {error.value}"


def test_a_rank_that_fails_leaves_no_other_waiting(run_ranks: Any, tmp_path: Path) -> None:
    said = run_ranks(3, fail_on_one_rank, argv(tmp_path, *BF16), 1)

    other = "ShortOfMemory: rank 1 ran out of memory"
    assert said == [other, "OutOfMemoryError: no room", other]


def test_what_is_saved_is_bf16(tmp_path: Path) -> None:
    from train.main import main

    assert (
        main(argv(tmp_path, *BF16, "data.eval_fraction=0.2"), "accumulate", compute_gradient) == 0
    )

    assert {p.dtype for p in load_run(tmp_path / "run").parameters()} == {torch.bfloat16}
    assert "fp32, parameters in bf16" in (tmp_path / "run" / "log.txt").read_text()
