"""FSDP2 on real ranks: the same gradient, curve, evaluation and checkpoints as where each rank
holds everything.
"""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers import Array, Trace, argv, distance, record, rows, steps, whole_batch
from train import load as load_trained
from train import merge
from train.accumulate import compute_gradient
from train.batch.window import Window
from train.config import load
from train.distributed import sharded
from train.distributed.sharded import NotShardable, local
from train.errors import UserError
from train.run import Run, build
from train.step import Learner

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
RAGGED = ("data.args.size=37", "batch.effective=11", "batch.micro=2", "optimizer.lr=0.3")
BLOCKS = ("model.target=tests.distributed.test_sharded.Blocks", "model.args={}")
ADAMW = ("optimizer.target=adamw", "optimizer.lr=0.01", "optimizer.max_grad_norm=0.1")


def several(given: list[list[str]], **options: Any) -> list[Trace]:
    os.environ.update(FSDP2)
    return [record(arguments, **options) for arguments in given]


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_gradient_is_that_of_the_one_big_batch(
    run_ranks: Any, tmp_path: Path, world_size: int
) -> None:
    """Ragged steps, ranks without samples, any micro-batch; reduced once per step or at every
    micro-step.
    """
    given = {}
    for name, words in {
        "a": (),
        "micro": ("batch.sync=micro",),
        "one": ("batch.micro=all",),
    }.items():
        given[name] = argv(tmp_path, *RAGGED, *words, f"name={name}")

    traces = run_ranks(world_size, several, list(given.values()))

    for trace in traces[0]:
        for k, ids in enumerate(steps(37, 11), 1):
            expected = whole_batch(given["a"], trace.weights[k - 1], ids, cross_entropy)[1]
            assert distance(trace.gradients[k], expected) <= 1e-12
    for of_rank in traces[1:]:
        for ours, theirs in zip(traces[0], of_rank, strict=True):
            assert np.array_equal(ours.weights[-1], theirs.weights[-1])


def test_the_curve_the_evaluation_and_the_average_are_those_of_one_rank(
    run_ranks: Any, tmp_path: Path
) -> None:
    """AdamW, clipped at each step, with an average; a held-out set that the ranks cannot share
    evenly.
    """
    words = (
        *ADAMW,
        "duration.steps=9",
        "data.eval_fraction=0.2",
        "evaluate.every_steps=4",
        "ema.decay=0.8",
    )
    one = record(argv(tmp_path, *RAGGED, *ADAMW, *words, "name=one"))

    three = run_ranks(3, several, [argv(tmp_path, *RAGGED, *ADAMW, *words, "name=three")])[0][0]

    assert distance(three.weights[-1], one.weights[-1]) <= 1e-12
    for key in ("train/loss", "train/grad_norm", "eval/loss", "eval/accuracy", "eval/ema/loss"):
        ours, theirs = (
            [row[key] for row in rows(tmp_path, key, name)] for name in ("three", "one")
        )
        assert ours
        assert np.allclose(ours, theirs, rtol=1e-12, atol=0)
    for name in ("model", "ema"):
        ours, theirs = (load_trained(tmp_path / run, name).state_dict() for run in ("three", "one"))
        for key, value in theirs.items():
            assert torch.allclose(ours[key], value, rtol=1e-12, atol=1e-15)
    assert not (tmp_path / "three" / ".divided").exists()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, True), (1, False)),
        ((1, False), (2, True)),
        ((3, True), (2, True)),
        ((2, False), (2, True)),
    ],
)
def test_it_resumes_on_other_ranks_divided_or_not(
    run_ranks: Any, tmp_path: Path, before: tuple[int, bool], after: tuple[int, bool]
) -> None:
    words = (*RAGGED, *ADAMW, "ema.decay=0.8", "data.eval_fraction=0.2")
    expected = record(argv(tmp_path, *words, "duration.steps=8", "name=whole"))
    half = argv(
        tmp_path,
        *words,
        "duration.steps=8",
        "name=run",
        "checkpoint.every_steps=4",
        "checkpoint.resume=auto",
    )

    stopped = [*half, "duration.steps=4"]

    run_ranks(before[0], on_ranks, before[1], stopped)
    traces = run_ranks(after[0], on_ranks, after[1], half)

    assert len(traces[0].windows) == 4
    assert distance(traces[0].weights[-1], expected.weights[-1]) <= 1e-13
    assert rows(tmp_path, "eval/ema/loss")[-1]["eval/ema/loss"] == pytest.approx(
        rows(tmp_path, "eval/ema/loss", "whole")[-1]["eval/ema/loss"], rel=1e-12
    )


def on_ranks(divided: bool, arguments: list[str]) -> Trace:
    if divided:
        os.environ.update(FSDP2)
    return record(arguments)


def test_a_compiled_model_trains_as_it_does_uncompiled(run_ranks: Any, tmp_path: Path) -> None:
    compiled = "model.compile=aot_eager"
    given = [
        argv(tmp_path, *RAGGED, *ADAMW, *words) for words in (["name=a"], [compiled, "name=b"])
    ]
    given += [
        argv(tmp_path, *RAGGED, *ADAMW, *BLOCKS, *words)
        for words in (["name=c"], [compiled, "name=d"])
    ]

    traces = run_ranks(2, several, given)[0]

    for plain, ours in (traces[:2], traces[2:]):
        assert distance(ours.weights[-1], plain.weights[-1]) <= 1e-12
    assert rows(tmp_path, "compile/training_graphs", "b")[-1]["compile/training_graphs"] >= 1


class Counting(TorchDispatchMode):
    """The messages between ranks inside, by the name of their operator."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.counts[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def collectives(arguments: list[str]) -> list[Counter[str]]:
    """Of each step, in its gradient."""
    os.environ.update(FSDP2)
    of_steps: list[Counter[str]] = []

    def counted(learner: Learner, window: Window) -> Tensor:
        with Counting() as found:
            losses = compute_gradient(learner, window)
        of_steps.append(found.counts)
        return losses

    record(arguments, compute_gradient=counted)
    return of_steps


@pytest.mark.parametrize(("sync", "expected"), [("step", 1), ("micro", 4)])
def test_one_reduction_per_block_and_step_or_micro_step(
    run_ranks: Any, tmp_path: Path, sync: str, expected: int
) -> None:
    words = ("batch.effective=16", "batch.micro=2", "duration.steps=3", f"batch.sync={sync}")

    found = run_ranks(2, collectives, argv(tmp_path, *words, *BLOCKS))

    assert len(found[0]) == 3
    for step in found[0][:2]:  # the last one has fewer samples
        # two blocks, and the rest of the model
        assert step["c10d::_reduce_scatter_base_"] == expected * 3


class Blocks(nn.Module):
    """Two blocks in a list, tied weights across it, an odd number of rows, what nothing uses, a
    buffer of 16 bits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5, bias=False)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(5, 5), nn.Tanh()) for _ in range(2))
        self.head = nn.Linear(5, 3)
        self.other = nn.Linear(6, 5, bias=False)
        self.other.weight = self.first.weight
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("table", torch.arange(5).to(torch.uint16))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs) + 0.5 * self.other(inputs.flip(1))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.head(hidden)


class Coupled(nn.Module):
    """Each sample sees the mean of its micro-batch: the gradient depends on how a batch is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.far = nn.Parameter(torch.zeros(3))  # the loss stays the same, the gradient does not

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs) + self.far * inputs[:, :3].mean(0)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.last = nn.Linear(6, 6)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.last(self.inside(inputs))


class Nested(nn.Module):
    """Blocks inside of blocks, all of classes that the launcher file names, and the model's own
    among them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()
        self.head = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.pair(inputs))


def by_class(arguments: list[str]) -> list[Counter[str]]:
    os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"] = "Nested, Pair, Sequential"
    return collectives(arguments)


def test_blocks_are_the_classes_that_the_launcher_names(run_ranks: Any, tmp_path: Path) -> None:
    words = ("batch.effective=8", "batch.micro=2", "duration.steps=1")
    nested = ("model.target=tests.distributed.test_sharded.Nested", "model.args={}")

    found = run_ranks(2, by_class, argv(tmp_path, *words, *nested))

    assert found[0][0]["c10d::_reduce_scatter_base_"] == 3


def test_tied_weights_are_stored_once_and_loaded_again(run_ranks: Any, tmp_path: Path) -> None:
    words = (*BLOCKS, *ADAMW, "batch.micro=2", "duration.steps=4", "data.eval_fraction=0.2")
    one = record(argv(tmp_path, *words, "name=one"))

    two = run_ranks(2, on_ranks, True, argv(tmp_path, *words))[0]

    assert distance(two.weights[-1], one.weights[-1]) <= 1e-13
    again = load_trained(tmp_path / "run", trust=True)
    assert again.first.weight is again.other.weight
    merged = torch.cat([p.detach().flatten() for p in again.parameters()]).numpy()
    assert distance(merged, one.weights[-1]) <= 1e-13
    assert merge.main([str(tmp_path / "run"), str(tmp_path / "merged"), "--trust"]) == 0
    assert (tmp_path / "merged" / "final" / "model.safetensors").stat().st_size < 2000
    from_checkpoint = load_trained(tmp_path / "merged", trust=True).state_dict()
    assert all(
        torch.equal(from_checkpoint[key], value) for key, value in again.state_dict().items()
    )
    assert merge.main([str(tmp_path / "run"), str(tmp_path / "merged"), "--trust"]) == 2
    names = sorted(
        path.name for path in next((tmp_path / "run" / "checkpoints").iterdir()).iterdir()
    )
    assert [name for name in names if name.startswith("model")] == [
        "model-rank-00000.safetensors",
        "model-rank-00001.safetensors",
        "model.safetensors",
    ]


def verdict(arguments: list[str]) -> tuple[str, tuple[str, ...], float]:
    os.environ.update(FSDP2)
    run = build(load(arguments), "accumulate")
    told = (run.folder.path / "plan.json").read_text()
    run.close("finished", 0)
    return told


def held(arguments: list[str]) -> tuple[int, int, int]:
    """Bytes of weights, of gradients and of the optimizer's moments on this rank, after a step."""
    os.environ.update(FSDP2)
    sizes: list[tuple[int, int, int]] = []

    def prepare(run: Run, trace: Trace) -> None:
        def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            moments = [
                value
                for state in optimizer.state.values()
                for value in state.values()
                if value.dim()
            ]
            gradients = [p.grad for p in run.learner.parameters]
            kinds = (run.learner.parameters, gradients, moments)
            sizes.append(
                tuple(sum(local(tensor).nbytes for tensor in tensors) for tensors in kinds)
            )

        run.learner.optimizer.register_step_post_hook(look)

    record(arguments, prepare=prepare)
    return sizes[-1]


def test_each_rank_holds_its_part(run_ranks: Any, tmp_path: Path) -> None:
    """By hand: 60 x 6 + 60 and 2 x 60 + 2 numbers of 8 bytes, cut by rows among 2 ranks."""
    words = ("model.args.hidden=[60]", "model.args.outputs=4", *ADAMW, "duration.steps=2")

    found = run_ranks(2, held, argv(tmp_path, *words))

    numbers = (30 * 6 + 30) + (2 * 60 + 2)
    assert found == [(8 * numbers, 8 * numbers, 16 * numbers)] * 2


class Scalar(nn.Linear):
    def __init__(self) -> None:
        super().__init__(6, 3)
        self.temperature = nn.Parameter(torch.tensor(1.0))


def refused(arguments: list[str]) -> str:
    os.environ.update(FSDP2)
    with pytest.raises(UserError) as error:
        build(load(arguments), "accumulate")
    return str(error.value)


def test_what_cannot_be_divided_ends_in_a_sentence(run_ranks: Any, tmp_path: Path) -> None:
    here = "tests.distributed.test_sharded"
    said = run_ranks(2, refused, argv(tmp_path, f"model.target={here}.Scalar", "model.args={}"))

    assert "temperature has none" in said[0]
    assert "LAUNCHER=configs/accelerate/ddp.yaml" in said[0]

    said = run_ranks(2, refused, argv(tmp_path, f"model.target={here}.RanksApart", "model.args={}"))
    assert "rank 1 begins with other weights than rank 0" in said[0]


def test_an_older_torch_is_refused_by_name() -> None:
    sharded._check_torch(torch.__version__)
    with pytest.raises(NotShardable, match=r"needs torch 2\.13 or later"):
        sharded._check_torch("2.9.0+cu128")


class RanksApart(nn.Linear):
    def __init__(self) -> None:
        super().__init__(6, 3)
        nn.init.constant_(self.weight, float(os.environ["RANK"]))


def test_the_trial_looks_at_gradients_of_parts(run_ranks: Any, tmp_path: Path) -> None:
    """autograd.grad gives zeros for them: whatever the model does would be "verified"."""
    told = run_ranks(
        2,
        verdict,
        argv(tmp_path, "model.target=tests.distributed.test_sharded.Coupled", "model.args={}"),
    )

    assert '"exact": "false"' in told[0]


@pytest.mark.parametrize("optimizer", [("optimizer.target=sgd",), ADAMW])
def test_a_gradient_that_is_not_finite_is_left_out_on_all_ranks(
    run_ranks: Any, tmp_path: Path, optimizer: tuple[str, ...]
) -> None:
    """In the first step too, whose moments are not there yet."""
    words = ("data.args.nan=[0]", "duration.steps=3", "data.args.size=64", *optimizer)

    found = run_ranks(2, nan_first, argv(tmp_path, *words))

    for first, second, last, skipped in found:
        assert np.array_equal(first, second)
        assert not np.array_equal(second, last)
        assert np.isfinite(last).all()
        assert skipped == 1


def nan_first(arguments: list[str]) -> tuple[Array, Array, Array, int]:
    trace = on_ranks(True, arguments)
    return trace.weights[0], trace.weights[1], trace.weights[-1], trace.skipped_steps
