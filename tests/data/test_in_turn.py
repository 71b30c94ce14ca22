"""Samples that are read when their micro-batch's turn comes: the same gradient, in less memory, and
no rank that waits for one that cannot read.
"""

import json
import weakref
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.data.files import write
from tests.helpers import Trace, WeightedCE, argv, distance, record, rows, steps, whole_batch
from train.batch import make_plan, sample_ids
from train.batch.window import Batch, Place
from train.config import load
from train.data import open_datasets, read_in_turn
from train.data.deferred import cut_anew
from train.data.in_step import LateWeights
from train.data.loader import Loader
from train.data.rows import Rows
from train.data.shares import DataError, RankShare
from train.data.workers import TooLittleShared, check_shared_memory
from train.exactness.preflight import check_weight_columns
from train.main import main
from train.run import build
from train.tasks import TaskError, weight_columns
from train.tasks.classification import Classification

HERE = "tests.data.test_in_turn"
KNOWN = {
    "rows": (),
    "on the disk": ("data.preload=false", "data.workers=0"),
    "by workers": ("data.preload=false", "data.workers=2"),
}
LATE = {name: (*overrides, "task=tests.helpers.WeightedCE") for name, overrides in KNOWN.items()}
LATE["with a transform"] = (f"data.transform={HERE}.same", "data.workers=0")


def same(sample: Batch, generator: torch.Generator) -> Batch:
    return sample


def in_turn() -> None:
    """Also where samples are small."""
    module: Any = __import__("train.data.in_turn", fromlist=["SMALL_BYTES"])
    module.SMALL_BYTES = 0


def is_late(window: Any) -> bool:
    return isinstance(window.weights, LateWeights)


def weighted(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits, labels, weight=WeightedCE.class_weights)


@pytest.mark.parametrize(
    ("source", "world_size"),
    [
        *((source, 1) for source in (*KNOWN, *(f"late: {name}" for name in LATE))),
        *(
            (source, 3)
            for source in ("rows", "on the disk", "late: rows", "late: with a transform")
        ),
    ],
)
def test_the_gradient_is_that_of_the_whole_batch(
    run_ranks: Any, tmp_path: Path, source: str, world_size: int
) -> None:
    """By plain PyTorch in float64; a tail of 5 samples, which leaves ranks of 3 with fillers."""
    late = source.startswith("late: ")
    overrides = LATE[source.removeprefix("late: ")] if late else KNOWN[source]
    arguments = argv(tmp_path, "batch.micro=1", *overrides)

    traces = run_ranks(world_size, recorded_modes, arguments)

    loss = weighted if "task=tests.helpers.WeightedCE" in overrides else cross_entropy
    for trace, modes in traces:
        assert modes == {(True, late)}
        for number, ids in enumerate(steps(37, 8)):
            _, expected = whole_batch(arguments, trace.weights[number], ids, loss)
            assert distance(trace.gradients[number + 1], expected) <= 1e-12
    for number, row in enumerate(rows(tmp_path)):
        expected_loss, _ = whole_batch(
            arguments, traces[0][0].weights[number], steps(37, 8)[number], loss
        )
        assert row["train/loss"] == pytest.approx(expected_loss, rel=1e-12)
        assert row["train/loss_mean"] == pytest.approx(expected_loss, rel=1e-12)


def recorded_modes(arguments: Sequence[str]) -> tuple[Trace, set[tuple[bool, bool]]]:
    """What record gives, and of all windows: (whether samples are read in the step, whether weights
    are known late).
    """
    in_turn()
    modes = set()

    def look(run: Any, _: Trace) -> None:
        reading = run.learner.task, run.windows

        def watched() -> Any:
            for window in reading[1]:
                modes.add((not hasattr(window.micro_batches, "samples"), is_late(window)))
                yield window

        object.__setattr__(run, "windows", watched())

    return record(arguments, prepare=look), modes


def read_by(share: RankShare) -> Iterator[tuple[int, int]]:
    """(number of the micro-batch, samples that have been read by then)"""
    for number, _ in enumerate(share):
        yield number, len(READ)


READ: list[int] = []


def noted(sample: Batch, generator: torch.Generator) -> Batch:
    READ.append(1)
    return sample


def first_shares(tmp_path: Path, *overrides: str) -> Iterator[RankShare]:
    """Of steps of 8 samples, in micro-batches of 2, on one rank; read when their turn comes."""
    config = load(argv(tmp_path, "batch.micro=2", *overrides)).config
    train = open_datasets(config, ("inputs", "labels")).train
    plan = make_plan(8, 2, None, world_size=1, dataset_size=train.size)
    return train.deferred(("labels",)).shares(plan, 0, 0, Place(), None)


def test_the_first_micro_batch_does_not_wait_for_the_last(tmp_path: Path) -> None:
    shares = first_shares(tmp_path, f"data.transform={HERE}.noted", "data.workers=0")
    READ.clear()

    one, two = next(shares), next(shares)

    assert not READ, "samples of a step that is not trained yet"
    assert list(read_by(one)) == [(0, 2), (1, 4), (2, 6), (3, 8)]
    assert list(read_by(two)) == [(0, 10), (1, 12), (2, 14), (3, 16)]


def test_a_window_that_is_read_again_is_the_same_and_the_next_one_too(tmp_path: Path) -> None:
    """Left half-way, cut again, left out: what workers have read ahead of it is let go of."""
    options = (f"data.transform={HERE}.same", "data.workers=1")
    with_all = [ids_of(share) for share in islice(first_shares(tmp_path, *options), 5)]
    shares = first_shares(tmp_path, *options)

    steps = [next(shares), next(shares)]
    iterator = iter(steps[0])
    next(iterator)
    assert ids_of(steps[0].recut(3)) == with_all[0], "begun, and cut again"
    assert ids_of(steps[1].recut(3)) == with_all[1], "cut before it was read"
    assert [m.samples for m in steps[1].recut(3)] == [3, 3, 2]
    steps += [next(shares), next(shares), next(shares)]
    assert ids_of(steps[3]) == with_all[3], "the one before was left out"
    assert ids_of(steps[4]) == with_all[4]
    assert ids_of(steps[4]) == with_all[4], "a second time"


def ids_of(share: RankShare) -> list[int]:
    return [i for m in share for i in m.batch["sample_id"].tolist()]


class Unread(Rows):
    """The weight of sample 60 cannot be counted."""

    def only(self, names: Sequence[str]) -> Rows:
        return UnreadLabels(super().only(names).columns)


class UnreadLabels(Rows):
    def pick(self, ids: Any) -> Any:
        if 60 in ids:
            raise DataError("label 60 cannot be read")
        return super().pick(ids)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_step_before_one_that_cannot_be_weighed_has_its_own_samples(workers: int) -> None:
    """It is trained after the error was met, and saved."""
    held = Unread({"inputs": torch.arange(64), "labels": torch.zeros(64)})
    plan = make_plan(8, 2, None, world_size=1, dataset_size=64)
    expected = sample_ids(64, 0, 0, 0, 64).reshape(-1, 8)
    bad = [60 in ids for ids in expected].index(True)
    assert bad > 0
    loader = Loader(held, None, 0, workers, timeout_seconds=60).deferred(("labels",))
    shares = loader.shares(plan, 0, 0, Place(), None)

    before = next(shares)
    before.weights(one_each)
    for k in range(1, bad):
        share = next(shares)
        share.weights(one_each)
        assert ids_of(before) == expected[k - 1].tolist()
        before = share
    with pytest.raises(DataError, match="label 60"):
        next(shares).weights(one_each)

    assert ids_of(before) == expected[bad - 1].tolist()


def one_each(batch: Batch) -> dict[str, float]:
    return {"loss": float(len(batch["labels"]))}


def test_pieces_of_other_sizes() -> None:
    numbers = torch.arange(11)
    pieces = ({"x": piece} for piece in numbers.split(4))

    found = [batch["x"].tolist() for batch in cut_anew(pieces, (3, 3, 1, 4))]

    assert found == [piece.tolist() for piece in numbers.split([3, 3, 1, 4])]


ALIVE: list["weakref.ref[Tensor]"] = []
MOST: list[int] = []


class Seen(Classification):
    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        ALIVE.append(weakref.ref(batch["inputs"]))
        MOST.append(sum(reference() is not None for reference in ALIVE))
        return super().loss_sum(model, batch)


def test_few_micro_batches_are_in_memory_at_once(tmp_path: Path) -> None:
    """Also on steps whose activations are counted, for a row."""
    own = (
        f"data.transform={HERE}.same",
        "data.workers=0",
        f"task={HERE}.Seen",
        "batch.micro=1",
        "precision=fp32",
    )

    record(argv(tmp_path, *own), prepare=lambda run, trace: (ALIVE.clear(), MOST.clear()))

    assert len(MOST) >= 37
    assert max(MOST) <= 4, "of eight, or of all since the last row"


# What cannot be read in the midst of a step

LATER = 5 * 8 + 4 + 2
"""Of step 6, where two ranks have four samples each: the third one of rank 1. It is none of those
that are tried.
"""


def bad(sample: Batch, generator: torch.Generator) -> Batch:
    if sample["labels"] == 2:
        raise DataError("this sample cannot be read")
    return sample


def with_a_bad_one(tmp_path: Path, place: int) -> list[str]:
    """Steps of 8 samples; the one at this place of the order of the data has label 2."""
    labels = [0] * 64
    labels[sample_ids(64, 0, 0, 0, 64)[place]] = 2
    path = write(
        tmp_path / "own.csv",
        {"a": [float(i) for i in range(64)], "b": [2.0] * 64, "labels": labels},
    )
    columns = (
        "data.columns={inputs: [a, b]}",
        "model.args={inputs: 2, hidden: [4], outputs: 3}",
        "batch.micro=1",
    )
    own = (
        f"data.source={path}",
        f"data.transform={HERE}.bad",
        "data.workers=0",
        "checkpoint.every_steps=1",
    )
    return argv(
        tmp_path, *own, *columns, "optimizer.target=sgd", "duration.steps=8", "checkpoint.keep=100"
    )


def ends(arguments: Sequence[str]) -> int:
    from train.accumulate import compute_gradient

    return int(main(arguments, "accumulate", compute_gradient) or 0)


@pytest.mark.parametrize("more", ["on_nonfinite=skip", "on_nonfinite=stop"])
def test_no_rank_updates_where_one_cannot_read_and_all_say_why(
    run_ranks: Any, tmp_path: Path, more: str
) -> None:
    """Both ranks end by it, and nothing after step 5 is saved."""
    codes = run_ranks(2, ends, [*with_a_bad_one(tmp_path, LATER), more])

    assert codes == [2, 2]
    ended = json.loads((tmp_path / "run" / "ended.json").read_text())
    assert ended["reason"].startswith("rank 1: this sample cannot be read")
    newest = tmp_path / "run" / "checkpoints" / "step-00000005"
    assert (
        f"Its step was not applied: the last complete checkpoint is {newest}. " in ended["reason"]
    )
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved == [f"step-{step:08}" for step in range(1, 6)]


def test_one_rank_alone_keeps_what_it_has_trained(tmp_path: Path, run_ranks: Any) -> None:
    (code,) = run_ranks(1, ends, [*with_a_bad_one(tmp_path, LATER), "checkpoint.every_steps=1000"])

    assert code == 2
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000005"]


# What a task says of its weights


class Counting(Classification):
    def loss_weight(self, batch: Batch) -> float:
        return float((batch["labels"] >= 0).sum())


class Masked(Classification):
    weight_columns = ("labels",)

    def loss_weight(self, batch: Batch) -> float:
        return float(batch["mask"].sum())


class Guessing(Classification):
    weight_columns = ("labels",)

    def loss_weight(self, batch: Batch) -> float:
        return float(len(batch["labels"]) + ("inputs" in batch))


def test_a_class_that_counts_otherwise_inherits_no_columns() -> None:
    assert weight_columns(Classification()) == ("labels",)
    assert weight_columns(Counting()) == ()
    assert weight_columns(Masked()) == ("labels",)


def test_columns_that_do_not_do_are_named() -> None:
    trial = {"inputs": torch.ones(2, 1), "labels": torch.ones(2), "mask": torch.ones(2)}

    check_weight_columns(Classification(), ("labels",), trial)
    with pytest.raises(TaskError, match="loss_weight reads 'mask'"):
        check_weight_columns(Masked(), ("labels",), trial)
    with pytest.raises(TaskError, match="from these alone loss_weight gives"):
        check_weight_columns(Guessing(), ("labels",), trial)


class TwoTerms(Classification):
    def loss_weight(self, batch: Batch) -> Any:
        return {"a": float(len(batch["labels"])), "b": 1.0}

    def loss_sum(self, model: Any, batch: Batch) -> Any:
        loss = super().loss_sum(model, batch)
        return {"a": loss, "b": loss / len(batch["labels"])}


def test_several_terms_without_columns_are_held_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_turn()
    arguments = argv(tmp_path, f"task={HERE}.TwoTerms", "batch.micro=2", "batch.exact=ignore")

    run = build(load(arguments), "accumulate")
    window = next(iter(run.windows))
    run.close("finished", 0)

    assert isinstance(window.micro_batches, RankShare)
    assert not window.micro_batches.is_deferred
    assert (
        "at once, all of a rank's samples of a step: the loss has several terms"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("micro", "takes"), [("2", ": about 2 MiB of host memory per rank"), ("auto", "")]
)
def test_what_a_micro_batch_takes_is_said_where_its_size_is_known(
    tmp_path: Path, micro: str, takes: str
) -> None:
    held = Rows({"inputs": torch.zeros(64, 2**16), "labels": torch.zeros(64)})  # 256 KiB a sample
    config = load(argv(tmp_path, "batch.effective=32", f"batch.micro={micro}")).config
    plan = make_plan(32, 2 if micro == "2" else "auto", None, world_size=1, dataset_size=64)

    reading = read_in_turn(held, {"inputs": torch.zeros(1, 2**16)}, ("labels",), 1, plan, config)

    assert reading.notes == (f"reading   a micro-batch at a time{takes}",)


def test_too_little_shared_memory_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 64 * 2**20})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)

    check_shared_memory(2, 12 * 2**20)  # five requests
    check_shared_memory(0, 2**40)
    with pytest.raises(
        TooLittleShared, match=r"up to 65 MiB .* has 64 MiB free.*data.workers=1.*--shm-size=1g"
    ):
        check_shared_memory(2, 13 * 2**20)


def test_the_columns_of_weights_are_not_taken_for_whole_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """64 KiB a sample: 0.4 MiB for micro-batches of 2, and 6 MiB for all of a step, of which
    weights alone are read.
    """
    held = Rows({"inputs": torch.zeros(64, 2**14), "labels": torch.zeros(64)})
    plan = make_plan(32, 2, None, world_size=1, dataset_size=64)
    shares = (
        Loader(held, None, 0, 1, timeout_seconds=60)
        .deferred(("labels",))
        .shares(plan, 0, 0, Place(), None)
    )
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2**20}))

    assert next(shares).weights(one_each) == {"loss": 32.0}
