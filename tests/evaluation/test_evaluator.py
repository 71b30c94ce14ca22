"""What is added up over batches and ranks: by name, with rank 0's buffers, in as many pieces as fit
in memory.
"""

import os
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers import rank_group
from train.batch.window import Batch
from train.distributed.ranks import Ranks
from train.evaluation.evaluator import Evaluation, EvaluationFailed, EvaluationOutOfMemory
from train.evaluation.sums import BadMetric, read_sums
from train.tasks.regression import Regression

CPU = torch.device("cpu")
META = torch.device("meta")  # a device that is not the host


@dataclass
class Table:
    """A set of samples, all in memory."""

    columns: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def batches(self, ids: NDArray[np.int64], size: int) -> Any:
        for start in range(0, len(ids), size):
            chosen = torch.from_numpy(ids[start : start + size])
            yield {name: column[chosen] for name, column in self.columns.items()}


class Task:
    """Gives what `sums(model, batch)` gives."""

    columns = ("x",)

    def __init__(self, sums: Any) -> None:
        self.eval_sums = sums


def evaluation(sets: Any, task: Any, ranks: Ranks | None = None, size: int = 4) -> Evaluation:
    given = sets if isinstance(sets, dict) else {"": sets}
    return Evaluation(
        sets=given,
        task=task,
        ranks=ranks or Ranks(),
        device=CPU,
        dtype=torch.float64,
        batch_size=size,
    )


def met() -> Ranks:
    """The ranks of this process, or the one that has no others."""
    return rank_group() if "RANK" in os.environ else Ranks()


# Host and device


class Copies(TorchDispatchMode):
    """Records what is copied from the host: on a GPU it would wait there for all that is still to
    be computed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        was_on_host = any(isinstance(each, Tensor) and each.device == CPU for each in args)
        if was_on_host and isinstance(result, Tensor) and result.device == META:
            self.found.append(str(function))
        return result


def test_a_number_of_the_host_is_not_copied_to_the_device() -> None:
    numbers = [5, 2.5, True, np.float32(3), torch.tensor(7.0), torch.tensor([9])]

    with Copies() as copies:
        sums = read_sums(
            {str(i): (torch.zeros((), device=META), n) for i, n in enumerate(numbers)}, META
        )

    assert not copies.found
    assert {mean.weight.device for mean in sums.values()} == {META}
    assert {mean.weight.dtype for mean in sums.values()} == {torch.float64}


# Names


LABELS = [0, 0, 0, 0, 1, 1, 0, 3, 1, 1, 0]  # class 2 never, class 3 once
GUESSES = [0, 1, 0, 0, 1, 0, 0, 0, 1, 1, 1]


def recall(model: Any, batch: Batch) -> dict[str, Any]:
    """Only for the classes of the batch, the rarest first: each batch has its own names in its own
    order.
    """
    labels, guesses = batch["labels"], batch["guesses"]
    found: dict[str, Any] = {}
    for label in sorted(set(labels.tolist()), key=lambda label: int((labels == label).sum())):
        of_class = labels == label
        found[f"recall_{label}"] = (
            int((guesses[of_class] == label).sum()),
            of_class.sum().to(torch.int32),
        )
    return found | {"all_right": (bool((labels == guesses).all()), 1)}


def recalls(count: int) -> dict[str, float]:
    ranks = met()
    whole = Table({"labels": torch.tensor(LABELS), "guesses": torch.tensor(GUESSES)})
    part = Table({name: column[:count] for name, column in whole.columns.items()})
    return evaluation({"": part, "again": whole}, Task(recall), ranks, size=2)(nn.Identity())


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_metrics_are_joined_by_name(run_ranks: Any, world_size: int) -> None:
    """On 3 ranks the main set of 2 samples leaves rank 2 without any."""
    results = run_ranks(world_size, recalls, 2) if world_size > 1 else [recalls(2)]

    expected = {"again/recall_0": 4 / 6, "again/recall_1": 3 / 4, "again/recall_3": 0.0}
    for metrics in results:
        assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-15)
        assert metrics["recall_0"] == 0.5
        assert {name for name in metrics if "/" not in name} == {"recall_0", "all_right", "samples"}
        assert (metrics["samples"], metrics["again/samples"]) == (2, 11)
        assert metrics == results[0]


@pytest.mark.parametrize(
    ("sums", "message"),
    [
        (
            {"loss": (torch.ones(3), 3)},
            "the sum of 'loss' must be one real number .* float32 tensor of shape (3,)",
        ),
        ({"f1": (1.0, None)}, "the weight of 'f1' must be one real number .* NoneType"),
        ({"f1": 0.5}, "'f1' must be a pair"),
        ({"z": (1j, 1)}, "the sum of 'z' must be one real number"),
        ({"samples": (1, 1)}, "'samples' cannot be the name"),
        ([("loss", 1)], "must return"),
    ],
)
def test_what_is_no_metric_is_named(sums: Any, message: str) -> None:
    with pytest.raises(BadMetric) as refused:
        evaluation(Table({"x": torch.zeros(4)}), Task(lambda model, batch: sums))(nn.Identity())

    for part in message.split(" .* "):
        assert part in str(refused.value)


def test_without_a_loss_there_is_none() -> None:
    metrics = evaluation(
        Table({"x": torch.zeros(4)}), Task(lambda model, batch: {"mine": (2.0, 4)})
    )(nn.Identity())

    assert metrics == {"mine": 0.5, "samples": 4}


# The spread of targets


class Off(nn.Module):
    """Predicts what it is fed."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


def spread(mean: float, columns: int, outlier: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    random = np.random.default_rng(0)
    targets = mean + random.normal(size=(101, columns))
    guesses = targets + 0.5 * random.normal(size=targets.shape)
    if outlier:
        targets[0] = 0.0  # what is first must not be what all others are measured from
    return targets, guesses


def r2_of_all(cases: list[tuple[float, int, bool, int]]) -> list[float]:
    targets_of = []
    ranks = met()
    for mean, columns, outlier, size in cases:
        targets, guesses = spread(mean, columns, outlier)
        held = Table({"inputs": torch.from_numpy(guesses), "targets": torch.from_numpy(targets)})
        targets_of.append(evaluation(held, Regression(), ranks, size)(Off())["r2"])
    return targets_of


def exact_r2(targets: NDArray[Any], guesses: NDArray[Any]) -> Fraction:
    """In rational numbers; several columns: their sums are added up."""
    errors = spreads = Fraction(0)
    for of_column, guessed in zip(targets.T, guesses.T, strict=True):
        numbers = [Fraction(x) for x in of_column.tolist()]
        mean = sum(numbers, Fraction(0)) / len(numbers)
        spreads += sum((x - mean) ** 2 for x in numbers)
        errors += sum(
            (x - Fraction(g)) ** 2 for x, g in zip(numbers, guessed.tolist(), strict=True)
        )
    return 1 - errors / spreads


SPREADS = [
    (mean, columns, outlier, size)
    for mean in (0.0, 1e6, -1e9)
    for columns in (1, 3)
    for outlier in (False, True)
    for size in (1, 7, 101)
]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_r2_has_its_digits_at_any_mean(run_ranks: Any, world_size: int) -> None:
    results = run_ranks(world_size, r2_of_all, SPREADS) if world_size > 1 else [r2_of_all(SPREADS)]

    for (mean, columns, outlier, _), ours in zip(SPREADS, results[0], strict=True):
        expected = exact_r2(*spread(mean, columns, outlier))
        assert 1 - ours == pytest.approx(float(1 - expected), rel=1e-12)
    assert all(of_rank == results[0] for of_rank in results)


@pytest.mark.parametrize("value", [0.1, 1e6 + 0.3])
def test_targets_that_are_all_the_same_have_no_r2(value: float) -> None:
    held = Table(
        {"inputs": torch.zeros(100, 2), "targets": torch.full((100, 2), value, dtype=torch.float64)}
    )

    assert "r2" not in evaluation(held, Regression(), size=3)(Off())


# Memory, and what fails


class Hungry:
    """Its device holds `room` samples at once on rank 0, all elsewhere."""

    columns = ("x",)

    def __init__(self, room: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self.room, self.error = room, error
        self.taken: list[int] = []

    def eval_sums(self, model: Any, batch: Batch) -> dict[str, Any]:
        self.taken.append(len(batch["x"]))
        if len(batch["x"]) > self.room:
            raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB")
        return {"loss": (batch["x"].sum(), len(batch["x"]))}


def fed(room: int) -> tuple[list[float], list[int], int]:
    ranks = met()
    task = Hungry(room if ranks.is_main else 100)
    several = evaluation(Table({"x": torch.arange(23.0)}), task, ranks, size=8)
    losses = [several(nn.Identity())["loss"] for _ in range(2)]
    return losses, task.taken, several.batch_size


@pytest.mark.parametrize("world_size", [1, 2])
def test_where_the_memory_is_full_all_ranks_take_half(run_ranks: Any, world_size: int) -> None:
    results = run_ranks(world_size, fed, 3) if world_size > 1 else [fed(3)]

    for losses, taken, size in results:
        assert losses == [11.0, 11.0]
        assert size == 2
        assert max(taken[-(23 // 2 // world_size) :]) == 2, (
            "the second evaluation begins with what fitted"
        )


def starving() -> str:
    ranks = met()
    task = Hungry(0 if ranks.rank == ranks.world_size - 1 else 100, MemoryError)
    with pytest.raises(EvaluationOutOfMemory) as full:
        evaluation(Table({"x": torch.arange(5.0)}), task, ranks)(nn.Identity())
    return str(full.value)


def test_one_sample_that_does_not_fit_ends_it_on_all_ranks(run_ranks: Any) -> None:
    for message in run_ranks(2, starving):
        assert "one sample at a time" in message


def test_what_a_task_raises_is_told_with_its_line() -> None:
    def broken(model: Any, batch: Batch) -> dict[str, Any]:
        return {"loss": batch["y"]}

    with pytest.raises(
        EvaluationFailed,
        match=r"eval_sums of task Task raised: KeyError: 'y' .*test_evaluator\.py:\d+",
    ):
        evaluation(Table({"x": torch.zeros(4)}), Task(broken))(nn.Identity())


# Random numbers, buffers


def test_draws_depend_on_the_place_in_the_set() -> None:
    def drawing(model: Any, batch: Batch) -> dict[str, Any]:
        drawn = torch.rand(()).item() + np.random.rand()
        return {f"at_{int(batch['x'][0])}": (drawn, 1)}

    several = evaluation(Table({"x": torch.arange(8.0)}), Task(drawing), size=2)
    first = several(nn.Identity())
    torch.rand(7)
    state = torch.get_rng_state()

    assert several(nn.Identity()) == first
    assert len({value for name, value in first.items() if name != "samples"}) == 4
    assert torch.equal(torch.get_rng_state(), state)


class Keeper(nn.Module):
    """Buffers of all kinds; those of each rank are its own."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([float("nan"), -0.0, 1.5 + rank]))
        self.register_buffer("count", torch.tensor(rank))
        self.register_buffer("seen", torch.tensor([rank == 0, True]))
        self.register_buffer(
            "phase", torch.tensor([1j * rank], dtype=torch.complex128), persistent=False
        )
        self.register_buffer("wide", torch.full((4, 3), rank, dtype=torch.bfloat16).T)
        self.register_buffer("none", torch.zeros(0))

    def forward(self) -> Tensor:
        number: Tensor = (
            self.mean[2] + self.count + self.seen[0] + self.phase.abs()[0] + self.wide.sum()
        )
        return number


def kept() -> tuple[float, bool]:
    ranks = rank_group()
    module = Keeper(ranks.rank)
    task = Task(lambda model, batch: {"loss": (model(), 1)})
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    loss = evaluation(Table({"x": torch.zeros(4)}), task, ranks, size=1)(module)["loss"]
    same = [torch.equal(_bits(b), _bits(before[n])) for n, b in module.named_buffers()]
    return loss, all(same)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def test_all_ranks_evaluate_with_rank_0s_buffers_and_keep_their_own(run_ranks: Any) -> None:
    assert run_ranks(3, kept) == [(2.5, True)] * 3
