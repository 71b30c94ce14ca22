"""A run that stands still ends by itself, with the stacks of all ranks, and names the rank that the others wait for."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import free_port, rank_environment
from tests.helpers import argv
from train.watchdog import diagnosis

ROOT = Path(__file__).parents[1]
DEADLINE = 4


def start(folder: Path, world_size: int, *overrides: str) -> list[subprocess.Popen[str]]:
    port = free_port()
    arguments = argv(folder, "duration={steps: 1000000}", f"runtime.timeout_seconds={DEADLINE}", *overrides)
    return [
        subprocess.Popen(
            [sys.executable, "-m", "train.accumulate", *arguments],
            cwd=ROOT,
            env=os.environ | rank_environment(rank, world_size, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]


def wait_for_rows(folder: Path) -> None:
    journal = folder / "run" / "metrics.jsonl"
    for _ in range(600):
        if journal.exists() and len(journal.read_text().splitlines()) > 3:
            return
        time.sleep(0.1)
    raise AssertionError("no rows within 60 s")


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])  # rank 0 holds the store by which they talk
def test_a_stopped_rank_is_named(tmp_path: Path, stopped: int) -> None:
    ranks, other = start(tmp_path, 2), 1 - stopped
    try:
        wait_for_rows(tmp_path)
        ranks[stopped].send_signal(signal.SIGSTOP)
        began = time.monotonic()
        _, told = ranks[other].communicate(timeout=90)
        seconds = time.monotonic() - began
    finally:
        for process in ranks:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.communicate()

    assert ranks[other].returncode == 1
    assert DEADLINE <= seconds < DEADLINE + 30
    assert ("what holds their store" if stopped == 0 else "rank(s) 1 no longer answer") in told
    assert "train/loop.py" in (tmp_path / "run" / f"stacks-rank{other}.txt").read_text()
    if stopped == 1:
        ended = json.loads((tmp_path / "run" / "ended.json").read_text())
        assert (ended["code"], ended["step"] > 0) == (1, True)
    print(f"{seconds:.1f} s after a deadline of {DEADLINE} s")


@pytest.mark.slow
def test_the_rank_that_reads_for_ever_is_named(tmp_path: Path) -> None:
    ranks = start(tmp_path, 2, "data.source=tests.test_watchdog.sleepy", "data.shuffle_buffer=0")
    try:
        told = [process.communicate(timeout=90)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.communicate()

    assert [process.returncode for process in ranks] == [1, 1]
    assert "the others wait for rank(s) 1" in told[0]
    assert "test_watchdog.py" in told[0]
    for rank in (0, 1):
        assert "stacks" in told[rank]
        assert "Thread" in (tmp_path / "run" / f"stacks-rank{rank}.txt").read_text()


def sleepy() -> object:
    """The samples of tiny, but rank 1 never gets those of the second epoch."""
    from datasets import IterableDataset

    from tests.helpers import tiny

    starts = []

    def some() -> object:
        starts.append(1)
        for i, sample in enumerate(tiny()):
            if os.environ.get("RANK") == "1" and len(starts) > 4 and i == 10:
                time.sleep(3600)
            yield sample

    return IterableDataset.from_generator(some)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (["ranks.py:1 wait", "x.py:1 f"], [7, 7], "the others wait for rank(s) 1"),
        (["step.py:1 f", "x.py:1 f"], [8, 7], "the others wait for rank(s) 1"),
        (["step.py:1 f", "step.py:1 f"], [7, None], "rank(s) 1 no longer answer"),
        (["step.py:1 f", None], [7, None], "rank(s) 1 no longer answer"),
        (["step.py:1 f", "step.py:1 f"], [7, 7], "cannot be told"),
    ],
)
def test_whom_the_others_wait_for(
    before: list[str | None], after: list[int | None], expected: str, tmp_path: Path
) -> None:
    """`before`: places; `after`: the step that each rank says afterwards, None where it says nothing new."""
    then = [place and json.dumps({"told": 1, "step": 7, "place": place}) for place in before]
    now = [
        json.dumps({"told": 2, "step": step, "place": place}) if step else old
        for place, step, old in zip(before, after, then, strict=True)
    ]

    assert expected in diagnosis([then, now], 60, tmp_path)
