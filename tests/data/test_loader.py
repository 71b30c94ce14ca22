"""What is read when it is needed: the same samples, whoever reads them; and an end where nobody
can.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from tests.data.files import FLOWERS, SIDE_BY_SIDE, opened, pictures, write
from tests.helpers import argv, record, rows
from train.batch import make_plan, sample_ids
from train.batch.window import Batch, Place
from train.data import Rows
from train.data.loader import Loader
from train.data.rows import Table
from train.data.shares import RankShare
from train.data.workers import WorkerLost
from train.launching import STOP_SIGNALS

IMAGES = "data.columns={inputs: image, labels: label}"
HERE = "tests.data.test_loader"


# Transforms


def noisy(sample: Batch, generator: torch.Generator) -> Batch:
    return sample | {
        "inputs": sample["inputs"] + torch.randn(sample["inputs"].shape, generator=generator)
    }


def killed(sample: Batch, generator: torch.Generator) -> Batch:
    if sample["labels"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return sample


def uneven(sample: Batch, generator: torch.Generator) -> Batch:
    return sample | {
        "inputs": sample["inputs"].repeat(2) if sample["labels"] == 2 else sample["inputs"]
    }


def test_a_transform_is_a_function_of_seed_epoch_and_sample(tmp_path: Path) -> None:
    path = write(
        tmp_path / "own.csv", {"inputs": [float(i) for i in range(23)], "labels": list(range(23))}
    )
    overrides = (f"data.transform={HERE}.noisy",)
    seen: dict[tuple[int, int], float] = {}

    for ranks, micro, workers, preload in ((1, "all", 0, True), (2, 3, 2, False), (3, 1, 1, True)):
        options = (f"data.workers={workers}", f"data.preload={preload}", f"batch.micro={micro}")
        train = opened(tmp_path, path, *overrides, *options).train
        plan = make_plan(8, micro, None, world_size=ranks, dataset_size=23)
        parts = [
            list(islice(train.shares(plan, 0, rank, Place(), None), 6)) for rank in range(ranks)
        ]
        resumed = [
            list(islice(train.shares(plan, 0, rank, Place(1, 8), None), 2)) for rank in range(ranks)
        ]

        for part in (part for of_rank in [*parts, *resumed] for part in of_rank):
            for i, value in zip(
                part.samples["sample_id"].tolist(), part.samples["inputs"].tolist(), strict=True
            ):
                assert seen.setdefault((part.epoch, i), value) == value
        assert [p.samples["sample_id"].tolist() for p in resumed[0]] == [
            p.samples["sample_id"].tolist() for p in parts[0][4:]
        ]

    assert len(seen) == len(set(seen.values())) == 46, "each sample, twice, with noise of its own"
    other = opened(tmp_path, path, *overrides, "seed=1").train.first(1, 23)
    assert not set(other["inputs"].tolist()) & set(seen.values())


def test_reading_from_the_disk_gives_what_memory_gives(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "own", 7)
    plan = make_plan(6, 4, None, world_size=1, dataset_size=11)
    first = None

    for options in (
        ("data.preload=true",),
        ("data.preload=false", "data.workers=0"),
        ("data.preload=false", "data.workers=2"),
    ):
        sets = opened(tmp_path, folder, IMAGES, "data.eval_fraction=0.2", *options)
        shares = [part.samples for part in islice(sets.train.shares(plan, 0, 0, Place(), None), 4)]
        held_out = list(sets.evaluation[""].batches(np.arange(3), 2))
        assert isinstance(sets.train, Rows if options[0].endswith("true") else Loader)
        first = first or [*shares, *held_out]
        for expected, found in zip(first, [*shares, *held_out], strict=True):
            assert expected.keys() == found.keys()
            assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_rank_with_no_samples_gets_a_filler(tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv", FLOWERS)
    train = opened(tmp_path, path, SIDE_BY_SIDE, "data.preload=false").train
    plan = make_plan(2, "all", None, world_size=3, dataset_size=6)

    part = next(train.shares(plan, 0, 2, Place(), None))

    assert part.sizes == (0,)
    assert {name: len(column) for name, column in part.samples.items()} == {
        "inputs": 0,
        "labels": 0,
        "sample_id": 0,
    }
    assert {name: len(column) for name, column in part.filler.items()} == {
        "inputs": 1,
        "labels": 1,
        "sample_id": 1,
    }


def test_what_does_not_fit_is_read_when_needed_and_the_screen_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "own.csv", FLOWERS)
    monkeypatch.setattr("train.data.opener.memory_of_a_rank", lambda: 100.0)

    sets = opened(tmp_path, path, SIDE_BY_SIDE)

    assert isinstance(sets.train, Loader)
    assert isinstance(sets.train.samples, Table)
    assert "loading   from the disk, as needed, by 2 workers per rank (about" in sets.notes[1]
    assert isinstance(opened(tmp_path, path, SIDE_BY_SIDE, "data.preload=true").train, Rows)


def test_an_evaluation_has_a_transform_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv", FLOWERS)
    sets = [
        opened(
            tmp_path,
            path,
            SIDE_BY_SIDE,
            "data.eval_fraction=0.5",
            f"data.eval_transform={HERE}.noisy",
            f"seed={seed}",
        )
        for seed in (0, 1)
    ]

    batches = [next(iter(found.evaluation[""].batches(np.arange(3), 3))) for found in sets]

    assert torch.equal(batches[0]["inputs"], batches[1]["inputs"]), "not the run's seed"
    assert isinstance(sets[0].train, Rows)


def curve(
    folder: Path, source: Path, world_size: int, run_ranks: Any, *overrides: str
) -> list[float]:
    folder.mkdir()
    model = "model.args={inputs: 60, hidden: [8], outputs: 2}"
    run_ranks(
        world_size,
        record,
        argv(folder, f"data.source={source}", IMAGES, model, "duration.epochs=2", *overrides),
    )
    return [row["train/loss"] for row in rows(folder)]


def test_the_curve_is_that_of_one_rank_without_workers(run_ranks: Any, tmp_path: Path) -> None:
    source, noise = (
        pictures(tmp_path / "own", 10),
        (f"data.transform={HERE}.noisy", "data.preload=false"),
    )

    alone = curve(tmp_path / "1", source, 1, run_ranks, *noise, "data.workers=0")
    several = curve(tmp_path / "2", source, 2, run_ranks, *noise, "data.workers=2", "batch.micro=2")

    assert len(alone) == 6
    np.testing.assert_allclose(several, alone, rtol=1e-10)


def test_a_lost_worker_is_told_when_its_samples_are_asked_for(tmp_path: Path) -> None:
    """Not before: the rank may be in the midst of a message to the others."""
    labels = np.zeros(16, dtype=int)
    # of the third step, asked for when the first has come
    labels[sample_ids(16, 0, 0, 0, 16)[8]] = 2
    path = write(tmp_path / "own.csv", {"inputs": [1.0] * 16, "labels": labels.tolist()})
    options = (f"data.transform={HERE}.killed", "data.workers=1", "data.preload=true")
    train = opened(tmp_path, path, *options).train
    parts = train.shares(
        make_plan(4, "all", None, world_size=1, dataset_size=16), 0, 0, Place(), None
    )

    next(parts)
    while multiprocessing.active_children():
        time.sleep(0.01)
    with pytest.raises(
        WorkerLost, match=r"loading samples: DataLoader worker .* exited unexpectedly"
    ):
        list(islice(parts, 2))


def many_parts(tmp_path: Path) -> Iterator[RankShare]:
    """Sixteen, read by a worker, which is ahead by two."""
    path = write(tmp_path / "own.csv", {"inputs": [1.0] * 64, "labels": [0] * 64})
    train = opened(tmp_path, path, f"data.transform={HERE}.noisy", "data.workers=1").train
    return train.shares(
        make_plan(4, "all", None, world_size=1, dataset_size=64), 0, 0, Place(), None
    )


KEPT = []


def reads_while_others_are_told_to_stop(tmp_path: Path) -> tuple[int, float]:
    """What could be read then; and when. It leaves with a worker that runs."""
    # of data workers: as in a rank that nobody has forked
    multiprocessing.set_start_method("fork", force=True)
    os.environ["JOB"] = str(tmp_path)
    parts = many_parts(tmp_path)
    KEPT.append(parts)
    next(parts)
    managers = [
        each for each in psutil.process_iter(["name"]) if each.info["name"] == "torch_shm_manager"
    ]
    others = [each for each in managers if each.environ().get("JOB") == str(tmp_path)]
    assert len(others) == 1
    for other in [*others, *psutil.Process().children()]:
        for name in STOP_SIGNALS:
            other.send_signal(getattr(signal, name))
    read = list(islice(parts, 2))
    assert multiprocessing.active_children()
    return len(read), time.monotonic()


def test_a_stop_signal_to_every_process_of_a_job_is_for_the_rank_alone(
    run_ranks: Any, tmp_path: Path
) -> None:
    """As scancel sends it: to the workers, and to what holds the samples that they have read."""
    ((read, left),) = run_ranks(1, reads_while_others_are_told_to_stop, tmp_path)

    assert read == 2
    assert time.monotonic() - left < 9, (
        "it waited for its worker, which a SIGTERM no longer ends, and was killed"
    )


def fails(arguments: list[str]) -> tuple[str, str, float]:
    start = time.monotonic()
    try:
        record(arguments)
    except Exception as error:
        return type(error).__name__, str(error), time.monotonic() - start
    return "", "", 0


def labelled(tmp_path: Path) -> Path:
    """The last of 16 samples in the order of the first epoch has label 2: it falls to rank 1, in
    the second step.
    """
    labels = np.zeros(16, dtype=int)
    labels[sample_ids(16, 0, 0, 0, 16)[15]] = 2
    return write(
        tmp_path / "own.csv", {"a": [1.0] * 16, "b": [2.0] * 16, "labels": labels.tolist()}
    )


def overrides(tmp_path: Path, transform: str) -> list[str]:
    columns = ("data.columns={inputs: [a, b]}", "model.args={inputs: 2, hidden: [4], outputs: 3}")
    own = (
        f"data.source={labelled(tmp_path)}",
        f"data.transform={HERE}.{transform}",
        "data.workers=1",
    )
    return argv(tmp_path, *own, *columns, "duration.epochs=3")


def test_an_error_of_the_data_is_told_by_all_ranks_without_a_workers_traceback(
    run_ranks: Any, tmp_path: Path
) -> None:
    [(one, first, _), (other, second, _)] = run_ranks(2, fails, overrides(tmp_path, "uneven"))

    assert one == other == "DataError", first
    assert first.removeprefix("rank 1: ") == second
    assert "is of shape (4,), row" in second
