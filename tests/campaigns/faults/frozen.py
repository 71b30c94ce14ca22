"""Rows about time that does not count: a job that is frozen as a whole, a save that is slow and
goes on.
"""

import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil

import train.checkpoint.files
from tests.campaigns.faults import compare, jobs, ranks
from tests.campaigns.faults.row import Row, command, folder
from tests.campaigns.faults.row import train as start

DEADLINE = 2
OF_WORKERS = 6  # a worker that starts on a busy machine may need 1 s, and has half of the time-out
TIMES = 3


def frozen(here: Path, full: bool) -> str:
    cases: list[tuple[int, int, tuple[str, ...]]] = [(1, DEADLINE, ())]
    if full:
        workers = ("data.workers=1", "data.transform=tests.campaigns.faults.data.noisy")
        cases += [(2, DEADLINE, ()), (2, OF_WORKERS, workers), (4, DEADLINE, ())]
    launched = 3 if full else 1  # torchrun's agent, which is frozen with its ranks
    for number in range(launched):
        _freeze_launched(folder(here, f"launched-{number}"), 2, TIMES * DEADLINE)
    rounds = 5 if full else 1
    for number in range(rounds):
        for case, (world_size, deadline, words) in enumerate(cases):
            given = (f"runtime.timeout_seconds={deadline}", *words)
            _freeze(folder(here, f"{case}-{number}"), world_size, given, TIMES * deadline)
    if full:  # longer than the process groups wait before the watchdog looks
        _freeze(
            folder(here, "long"), 2, (f"runtime.timeout_seconds={DEADLINE}",), 3 * DEADLINE + 70
        )
    also = ", 1 for 76 s" if full else ""
    return (
        f"{rounds * len(cases)} jobs of 1 to {cases[-1][0]} ranks frozen for {TIMES} x the "
        f"time-out{also}, {launched} of 2 ranks with their launcher: all finished"
    )


def _freeze(own: Path, world_size: int, words: tuple[str, ...], seconds: float) -> None:
    given = command(own, "duration.steps=60", *words)
    slow = partial(ranks.pause_steps, 0.05)
    job = jobs.start_ranks(own, world_size, ranks.train_rank, given, "accumulate", (slow,))
    while len(compare.notes(own, "windows-0.jsonl")) < 10:
        assert all(process.is_alive() for process in job.processes), job.told()
        time.sleep(0.05)
    for number in range(world_size):
        assert job.send(number, signal.SIGSTOP)
    before = len(compare.notes(own, "windows-0.jsonl"))
    time.sleep(seconds)
    assert len(compare.notes(own, "windows-0.jsonl")) == before, "the fault did not hold"
    for number in range(world_size):
        assert job.send(number, signal.SIGCONT)
    assert job.wait() == [0] * world_size, job.told()
    assert not list((own / "run").glob("stacks*"))


def _freeze_launched(own: Path, world_size: int, seconds: float) -> None:
    given = command(own, "duration.steps=60", f"runtime.timeout_seconds={DEADLINE}")
    slow = partial(ranks.pause_steps, 0.05)
    job = jobs.start_elastic(own, world_size, 0, ranks.train_rank, given, "accumulate", (slow,))
    while len(compare.notes(own, "windows-0.jsonl")) < 10:
        assert job.processes[0].is_alive(), job.told()
        time.sleep(0.05)
    agent = psutil.Process(job.pid(0))
    tree = [agent, *agent.children(recursive=True)]
    assert len(tree) > world_size
    for process in tree:
        process.suspend()
    before = len(compare.notes(own, "windows-0.jsonl"))
    time.sleep(seconds)
    assert len(compare.notes(own, "windows-0.jsonl")) <= before + 1, "the fault did not hold"
    for process in tree:
        process.resume()
    assert job.wait() == [0], job.told()
    assert compare.train_steps(own / "run")[-1] == 60
    assert not list((own / "run").glob("stacks*"))


def slow_save(here: Path, full: bool) -> str:
    seconds = 3 * DEADLINE if not full else 10 * DEADLINE
    given = ("duration.steps=4", "checkpoint.every_steps=2", f"runtime.timeout_seconds={DEADLINE}")
    own = folder(here, "slow")
    codes, job = start(own, 2, command(own, *given), partial(write_slowly, seconds, 2**17))
    assert codes == [0, 0], job.told()
    assert compare.notes(own, "fired.jsonl"), job.told()
    stuck = folder(here, "stuck")
    codes, job = start(stuck, 2, command(stuck, *given), partial(write_slowly, 1e6, 0))
    assert 0 not in codes, job.told()
    assert "no progress" in job.told(), job.told()
    return (
        f"a save of {seconds} s with a time-out of {DEADLINE} s: finished; one that writes "
        "nothing: ended"
    )


def write_slowly(seconds: float, piece: int) -> None:
    """On rank 0, once: what is written before a checkpoint takes so long, and moves `piece` bytes
    each 0.05 s.
    """
    ours = train.checkpoint.files.write_tensors

    def slow(file: Path, *args: Any) -> None:
        if ranks.rank() == 0 and not compare.notes(Path(file.parents[3]), "fired.jsonl"):
            ranks.fired("slow write")
            end = time.monotonic() + seconds
            with file.open("wb", buffering=0) as opened:
                while time.monotonic() < end:
                    opened.write(bytes(piece))
                    time.sleep(0.05)
        ours(file, *args)

    train.checkpoint.files.write_tensors = slow


ROWS = (
    Row(
        "36",
        "a job is frozen as a whole",
        f"SIGSTOP to all ranks, and to a launcher with its ranks, for {TIMES} x "
        "runtime.timeout_seconds, then SIGCONT",
        "it goes on to its end; no stacks",
        frozen,
        slow=True,
    ),
    Row(
        "37",
        "a save longer than the time-out",
        "rank 0 writes slowly; rank 0 writes nothing any more",
        "the first goes on, the second is ended with stacks",
        slow_save,
        slow=True,
    ),
)
