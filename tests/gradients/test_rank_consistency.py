"""The guard stops a run before the update that would let the ranks drift apart. The ranks are real."""

import contextlib
import io
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers import argv, flat, rank_group
from train.accumulate import compute_gradient
from train.batch.window import Window
from train.config import load
from train.errors import RanksDisagree
from train.gradients.rank_consistency import PIECE, _checksums, _joined
from train.loop import fit
from train.run import build
from train.step import Learner


def never_reduced(learner: Learner, window: Window) -> Tensor:
    with learner.accelerator.no_sync(learner.model):
        return compute_gradient(learner, window)


def shifted(gradients: list[Tensor]) -> None:
    gradients[0].view(-1)[0] += 1e-9


def all_negated(gradients: list[Tensor]) -> None:
    for gradient in gradients:
        gradient.neg_()


def one_negated(gradients: list[Tensor]) -> None:
    gradients[0].view(-1)[3].neg_()


def two_swapped(gradients: list[Tensor]) -> None:
    first, second = gradients[0].view(-1)[[0, 5]].tolist()
    assert first != second
    gradients[0].view(-1)[[0, 5]] = torch.tensor([second, first], dtype=gradients[0].dtype)


def all_moved(gradients: list[Tensor]) -> None:
    for gradient in gradients:
        gradient += 1


def fit_until_stopped(
    arguments: list[str],
    tamper: Callable[[list[Tensor]], None] | None = None,
    at_step: int = 1,
    gradient: Any = compute_gradient,
) -> tuple[str, str, bool]:
    """(what stopped the run, its message, whether the last window left the weights as they were)."""
    # From the first step on by DDP itself: what is inside of a late reduction is reduced once more.
    run = build(load([*arguments, "batch.on_oom=stop"]), "accumulate")
    before = flat(run.learner.parameters)

    def tampered(learner: Learner, window: Window) -> Tensor:
        nonlocal before
        before = flat(learner.parameters)
        losses = gradient(learner, window)
        if tamper and run.ranks.rank == 1 and window.k == at_step:
            tamper([p.grad for p in learner.parameters if p.grad is not None])
        return losses

    stopped_by = ("", "")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            fit(run, run.watch(tampered))
            run.finish()
    except RanksDisagree as error:
        stopped_by = (type(error).__name__, str(error))
    run.report.close("stopped", 1)
    return (*stopped_by, np.array_equal(before, flat(run.learner.parameters)))


def fit_each(several: list[tuple[Any, ...]]) -> list[tuple[str, str, bool]]:
    return [fit_until_stopped(*arguments) for arguments in several]


@pytest.mark.parametrize(("world_size", "precision"), [(3, "fp32")])
def test_one_rank_holds_another_gradient(
    run_ranks: Any, tmp_path: Path, world_size: int, precision: str
) -> None:
    tampers = (shifted, all_negated, one_negated, two_swapped)
    runs = [(argv(tmp_path, f"name={t.__name__}", f"precision={precision}"), t) for t in tampers]

    for results in run_ranks(world_size, fit_each, runs):
        for tamper, (kind, message, unchanged) in zip(tampers, results, strict=True):
            assert kind == "RanksDisagree", tamper
            assert "step 1: rank(s) 1 differ from rank 0 in layers.0.weight.grad" in message
            assert "no update was made" in message
            assert unchanged


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1, 4, 12, PIECE + 3])
def test_what_a_checksum_sees(dtype: torch.dtype, size: int) -> None:
    mine = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype)
    mine[-1] = -2.0
    others = {"all negated": -mine, "zero and -zero": mine.clone(), "one element": mine.clone()}
    mine[0], others["zero and -zero"][0] = 0.0, -0.0
    others["one element"][-1] = 2.0
    if size > 1:
        others["two swapped"] = mine.clone()
        others["two swapped"][[0, -1]] = mine[[-1, 0]]

    assert checksums(mine) == checksums(mine.clone())
    for what, other in others.items():
        assert checksums(mine) != checksums(other), what


def test_no_pattern_of_signs_hides_that_all_are_wrong() -> None:
    for signs in product([1.0, -1.0], repeat=4):
        assert checksums(torch.tensor(signs)) != checksums(-torch.tensor(signs)), signs


def checksums(tensor: Tensor) -> list[int]:
    return _checksums(list(_joined([tensor], PIECE)))


class Kernels(TorchDispatchMode):
    """Counts the operators that a GPU would launch a kernel for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        self.count += not function.is_view
        return result


def test_many_small_tensors_cost_few_kernels() -> None:
    """Of 300 tensors in three types each took three kernels; joined in pieces all of them take 15."""
    types = (torch.float32, torch.bfloat16, torch.float64)
    tensors = [torch.randn(1000).to(types[i % 3]) for i in range(300)]

    with Kernels() as kernels:
        pieces = list(_joined(tensors, PIECE))
        _checksums(pieces)

    assert [len(piece) for piece in pieces] == [262000, 138000]
    assert kernels.count < 20


@pytest.mark.parametrize("position", [0, 6, 7, 8, 29])
def test_a_word_that_differs_is_seen_wherever_the_pieces_are_cut(position: int) -> None:
    mine, theirs = torch.zeros(3, 10), torch.zeros(3, 10)
    theirs.view(-1)[position] = -0.0

    sums = [_checksums(list(_joined(tensors, 7))) for tensors in (mine, theirs)]

    assert sums[0] != sums[1]


def test_weights_that_drift_apart_are_seen_every_100_steps(run_ranks: Any, tmp_path: Path) -> None:
    """The gradients of all later steps are the same on every rank again."""
    words = ("duration={steps: 300}", "checkpoint.every_steps=1000", "log.every_steps=1000")
    runs = [(argv(tmp_path, f"name={k}", *words), all_moved, k) for k in (4, 101)]

    for results in run_ranks(2, fit_each, runs):
        for seen_at, (kind, message, unchanged) in zip((100, 200), results, strict=True):
            assert (kind, unchanged) == ("RanksDisagree", True)
            assert (
                f"step {seen_at}: rank(s) 1 differ from rank 0 in layers.0.weight, layers.0.bias"
                in message
            )
            assert ".grad" not in message


def test_weights_that_have_drifted_apart_are_not_saved(run_ranks: Any, tmp_path: Path) -> None:
    """Before a save, in its step, in the last step."""
    words = ("duration={steps: 8}", "checkpoint.every_steps=5")
    runs = [(argv(tmp_path, f"name={k}", *words), all_moved, k) for k in (4, 5, 8)]

    for results in run_ranks(2, fit_each, runs):
        for seen_after, (kind, message, _) in zip((5, 5, 8), results, strict=True):
            assert kind == "RanksDisagree"
            assert (
                f"after step {seen_after}: rank(s) 1 differ from rank 0 in layers.0.weight"
                in message
            )
            assert "nothing was saved" in message
    saved = {
        k: [path.name for path in (tmp_path / k / "checkpoints").glob("step-*")] for k in "458"
    }
    assert (saved, list(tmp_path.glob("*/final"))) == (
        {"4": [], "5": [], "8": ["step-00000005"]},
        [],
    )


def test_the_first_step_after_a_resume(run_ranks: Any, tmp_path: Path) -> None:
    arguments = argv(
        tmp_path, "duration={steps: 8}", "checkpoint.every_steps=5", "checkpoint.resume=auto"
    )
    run_ranks(2, fit_until_stopped, arguments, all_moved, 8)

    for kind, message, unchanged in run_ranks(2, fit_until_stopped, arguments, shifted, 6):
        assert (kind, unchanged) == ("RanksDisagree", True)
        assert "step 6: rank(s) 1 differ" in message


def test_the_first_step_that_ddp_reduces_by_itself_is_looked_at(
    run_ranks: Any, tmp_path: Path
) -> None:
    for kind, message, unchanged in run_ranks(2, fit_until_stopped, argv(tmp_path), shifted, 3):
        assert (kind, unchanged) == ("RanksDisagree", True)
        assert "step 3: rank(s) 1 differ" in message


def test_no_reduction_at_all(run_ranks: Any, tmp_path: Path) -> None:
    results = run_ranks(
        2, fit_until_stopped, argv(tmp_path, "batch.micro=2"), None, 1, never_reduced
    )

    assert [(kind, unchanged) for kind, _, unchanged in results] == [("RanksDisagree", True)] * 2


@pytest.mark.parametrize("precision", [("fp64",), ("fp32",), ("bf16", "model.dtype=bf16")])
def test_silent_where_all_is_well(
    run_ranks: Any, tmp_path: Path, precision: tuple[str, ...]
) -> None:
    words = ("duration={steps: 5}", f"precision={precision[0]}", *precision[1:])
    nan = "data.args={nan: [0]}"  # in step 1: of one rank, until it is reduced
    runs = [(argv(tmp_path, "name=plain", *words),), (argv(tmp_path, "name=nan", nan, *words),)]

    for results in run_ranks(2, fit_each, runs):
        assert [(kind, unchanged) for kind, _, unchanged in results] == [("", False)] * 2


def bits_of_sums() -> list[bytes]:
    """Of an all-reduce in each precision: NaN and both zeros among what is added up."""
    ranks, sums = rank_group(), []
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        mine = torch.randn(1001, generator=torch.Generator().manual_seed(ranks.rank)).to(dtype)
        mine[ranks.rank] = torch.nan
        mine[10:20] = 0.0 if ranks.rank else -0.0
        dist.all_reduce(mine)
        sums.append(mine.view(torch.uint8).numpy().tobytes())
    return sums


@pytest.mark.parametrize("world_size", [2, 3])
def test_an_all_reduce_gives_every_rank_the_same_bits(run_ranks: Any, world_size: int) -> None:
    first, *others = run_ranks(world_size, bits_of_sums)

    assert others == [first] * (world_size - 1)
