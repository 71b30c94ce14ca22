"""Rows on W&B and on what is printed: the server is one on the loopback, the disk is limited from
outside.
"""

import os
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from itertools import count
from pathlib import Path
from random import Random

from tests.campaigns.faults.row import Row, folder
from tests.helpers import argv
from tests.report.test_columns import counted
from tests.report.test_tracker import clean_environ, in_process, online, steps_of
from tests.report.test_wandb_run import beside, by_name, end, on_a_full_disk
from tests.wandb_server import WandbServer
from train.accumulate import compute_gradient
from train.main import main

ROOT = Path(__file__).parents[3]
STATES = {0: "finished", 1: "failed", 2: "failed", 75: "preempted"}


def ends_and_strangers(here: Path, full: bool) -> str:
    """Every end as W&B has it, and runs of the user's own beside ours."""
    times = 10 if full else 1
    with WandbServer() as server:
        own = folder(here, "ends")
        in_process(end, online(server, own), own, folder=str(own), codes=[*STATES] * times)
        told = [(run.exit_code, run.state, run.preempting) for run in server.runs.values()]
    assert sorted(told) == sorted(
        [(code, state, code == 75) for code, state in STATES.items()] * times
    )
    ways = ["before", "apart", "ends first"]
    strays = 0
    for number in range(times):
        with WandbServer() as server:
            own = folder(here, f"strangers-{number}")
            ended = in_process(
                beside, online(server, own, WANDB_SILENT="true"), own, folder=str(own), ways=ways
            )
            runs = by_name(server)
        assert ended.stderr == ""
        # theirs is wandb.run still
        assert ended.result == {"before": True, "apart": False, "ends first": True}
        for how in ways:
            ours, theirs = runs[f"ours {how}"], runs[f"theirs {how}"]
            assert steps_of(ours.history) == [1, 2]
            assert (ours.state, theirs.state) == ("preempted", "finished")
            assert [row["mine"] for row in theirs.history] == (
                [1] if how == "ends first" else [1, 2]
            )
            assert "train/global_step" not in str(theirs.config)
            strays += sum("train/loss" in row for row in theirs.history)
    assert not strays
    return (
        f"{len(told)} ends, each with its state; {3 * times} runs beside one of the user's own: "
        "rows astray: 0"
    )


def disk_full_offline(here: Path, full: bool) -> str:
    times = 10 if full else 1
    for number in range(times):
        own = folder(here, str(number))
        ended = in_process(on_a_full_disk, clean_environ(own), own, folder=str(own))
        assert ended.stderr.count("\n") == 1, ended.stderr
        assert "as on a full disk" in ended.stderr
    return f"{times} runs: 1 warning each, silent: 0"


def columns_through_resumes(here: Path, full: bool) -> str:
    """Each start goes on from an older checkpoint than the newest: rows that W&B has are of a lost
    future.
    """
    starts = 12 if full else 3
    with WandbServer() as server:
        in_process(go_on_from_older, online(server, here), here, folder=str(here), starts=starts)
        summary = server.run.summary
    expected = counted(here)
    apart = [name for name, value in expected.items() if not close(summary.get(name), value)]
    assert not apart, (apart, summary, expected)
    assert summary["ended/reason"] == "finished"
    return (
        f"{starts} starts of one run: {len(expected)} columns, each as counted over metrics.jsonl"
    )


def close(told: float | None, expected: float) -> bool:
    return told is not None and abs(told - expected) <= 1e-12 * abs(expected)


def go_on_from_older(folder: str, starts: int) -> None:
    """In another process. The peak of memory falls from row to row: its maximum is of the first
    start.
    """
    from train.memory import peaks

    falling = count(400 * 2**30, -(2**30))
    vars(peaks).update(peak_rss_bytes=lambda: next(falling), reset_peak_rss=lambda: True)
    draw = Random(0)
    with redirect_stdout(StringIO()):
        for start in range(1, starts + 1):
            said = [f"duration={{steps: {6 * start}}}", "wandb={mode: online}", "checkpoint.keep=6"]
            assert train_on(Path(folder), *said) == 0
            saved = sorted(Path(folder, "run", "checkpoints").glob("step-*"))
            for newest in saved[draw.randint(1, len(saved)) :] if start < starts else []:
                shutil.rmtree(newest)


def train_on(folder: Path, *more: str) -> int:
    said = [
        "data.eval_fraction=0.2",
        "checkpoint={resume: auto, every_steps: 1}",
        "evaluate.every_steps=1",
        *more,
    ]
    return main(argv(folder, *said), "accumulate", compute_gradient)


def torn_messages(here: Path, full: bool) -> str:
    """Several processes print messages of five lines into one pipe."""
    processes, messages = (8, 2_000) if full else (3, 300)
    code = (
        "import sys; from train.errors import print_error\n"
        f"for _ in range({messages}): print_error('\\n'.join([sys.argv[1] * 40] * 5))"
    )
    reader, writer = os.pipe()
    started = []
    for rank in range(1, processes + 1):
        environ = os.environ | {"RANK": str(rank), "LOCAL_RANK": "0"}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code, str(rank)], cwd=ROOT, env=environ, stderr=writer
            )
        )
    os.close(writer)
    with os.fdopen(reader) as pipe:
        lines = pipe.read().splitlines()
    assert [process.wait() for process in started] == [0] * processes
    told = [lines[start : start + 5] for start in range(0, len(lines), 5)]
    torn = 0
    for first, *rest in told:
        rank = rest[0][0]
        torn += first != f"rank {rank}: " + rank * 40 or rest != [rank * 40] * 4
    assert (len(told), torn) == (processes * messages, 0)
    return f"{len(told):,} messages of {processes} processes: torn 0"


ROWS = (
    Row(
        "29b",
        "W&B: ends, and runs of the user's own",
        "exit codes 0, 1, 2, 75; wandb.init by other code before ours, apart from it, ending first",
        "the state of each end; no row of ours in another run, none of theirs in ours",
        ends_and_strangers,
        slow=True,
    ),
    Row(
        "29s",
        "W&B offline, disk full",
        "wandb-core can write no more from the middle of a run on",
        "one warning at the end, not one per row, and no silence",
        disk_full_offline,
        slow=True,
    ),
    Row(
        "29u",
        "W&B: the table of runs through resumes",
        "every start goes on from a checkpoint drawn among those that are left; the peak of memory "
        "falls all the time",
        "peak, throughput, best and its step as counted over metrics.jsonl",
        columns_through_resumes,
        slow=True,
    ),
    Row(
        "29t",
        "messages of several processes",
        "all print at once into one pipe",
        "whole messages, each with its rank",
        torn_messages,
    ),
)
