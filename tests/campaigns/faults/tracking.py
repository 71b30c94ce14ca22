"""Rows on W&B and on what is printed: the server is one on the loopback, the disk is limited from outside."""

import os
import subprocess
import sys
from pathlib import Path

from tests.campaigns.faults.row import Row, folder
from tests.report.test_tracker import clean_environ, in_process, online, steps_of
from tests.report.test_wandb_run import beside, by_name, end, on_a_full_disk
from tests.wandb_server import WandbServer

ROOT = Path(__file__).parents[3]
STATES = {0: "finished", 1: "failed", 2: "failed", 75: "preempted"}


def ends_and_strangers(here: Path, full: bool) -> str:
    """Every end as W&B has it, and runs of the user's own beside ours."""
    times = 10 if full else 1
    with WandbServer() as server:
        own = folder(here, "ends")
        in_process(end, online(server, own), own, folder=str(own), codes=[*STATES] * times)
        told = [(run.exit_code, run.state, run.preempting) for run in server.runs.values()]
    assert sorted(told) == sorted([(code, state, code == 75) for code, state in STATES.items()] * times)
    ways = ["before", "apart", "ends first"]
    strays = 0
    for number in range(times):
        with WandbServer() as server:
            own = folder(here, f"strangers-{number}")
            ended = in_process(beside, online(server, own, WANDB_SILENT="true"), own, folder=str(own), ways=ways)
            runs = by_name(server)
        assert ended.stderr == ""
        assert ended.result == {"before": True, "apart": False, "ends first": True}  # theirs is wandb.run still
        for how in ways:
            ours, theirs = runs[f"ours {how}"], runs[f"theirs {how}"]
            assert steps_of(ours.history) == [1, 2]
            assert (ours.state, theirs.state) == ("preempted", "finished")
            assert [row["mine"] for row in theirs.history] == ([1] if how == "ends first" else [1, 2])
            assert "train/global_step" not in str(theirs.config)
            strays += sum("train/loss" in row for row in theirs.history)
    assert not strays
    return f"{len(told)} ends, each with its state; {3 * times} runs beside one of the user's own: rows astray: 0"


def disk_full_offline(here: Path, full: bool) -> str:
    times = 10 if full else 1
    for number in range(times):
        own = folder(here, str(number))
        ended = in_process(on_a_full_disk, clean_environ(own), own, folder=str(own))
        assert ended.stderr.count("\n") == 1, ended.stderr
        assert "as on a full disk" in ended.stderr
    return f"{times} runs: 1 warning each, silent: 0"


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
        started.append(subprocess.Popen([sys.executable, "-c", code, str(rank)], cwd=ROOT, env=environ, stderr=writer))
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
        "29t",
        "messages of several processes",
        "all print at once into one pipe",
        "whole messages, each with its rank",
        torn_messages,
    ),
)
