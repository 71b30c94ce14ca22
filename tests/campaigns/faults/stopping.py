"""Rows about a run that is stopped or killed while it trains, and goes on."""

import itertools
import json
import os
import random
import shutil
import signal
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

from tests.campaigns.faults import compare, jobs, ranks
from tests.campaigns.faults.row import Row, check_same, command, folder, reference, train
from train.checkpoint.commit import candidates, complete
from train.checkpoint.manifest import step_of, verify

FULL = (50, 1500)  # kills, steps
FULL_STOPS = 100
INTERVAL = 5
STEP_SECONDS = 0.03


def killed_in_training(here: Path, full: bool) -> str:
    kills, steps = FULL if full else (2, 60)
    words = (f"duration.steps={steps}", f"checkpoint.every_steps={INTERVAL}")
    preserve_state = reference(here, 2, *words)
    random.seed(4)
    slow = partial(ranks.pause_steps, STEP_SECONDS)
    start = time.monotonic()
    job = jobs.start_elastic(
        here, 2, kills * 2 + 10, ranks.train_rank, command(here, *words), "accumulate", (slow,)
    )
    killed = 0
    while killed < kills and job.processes[0].is_alive():
        wanted = killed
        living = _ranks_of_attempt(here, wanted)
        if living is None:
            time.sleep(0.01)
            continue
        # on the average it is through in time
        time.sleep(random.uniform(0, steps * STEP_SECONDS * 1.1 / kills))
        killed += _kill(living[random.randrange(2)])
    codes = job.wait(300)
    seconds = time.monotonic() - start
    assert killed == kills, f"{killed} kills: the run ended first"
    assert codes == [0], job.told()[-3000:]
    assert json.loads((here / "told.json").read_text())["code"] == 0
    check_same(here, preserve_state, 2)
    lost, computed = _steps_lost(here)
    assert max(lost) <= INTERVAL, f"steps lost: {lost}"
    over = len([path for path in here.iterdir() if path.name.startswith("run.")])
    return (
        f"{killed} kills, {len(lost)} restarts ({over} from the start: no checkpoint yet); "
        f"bit-identical end; steps lost per kill: mean {statistics.mean(lost):.1f}, most "
        f"{max(lost)} (interval {INTERVAL}); goodput {steps / computed:.2f} of the steps computed, "
        f"{steps * STEP_SECONDS / seconds:.2f} of the time"
    )


def _ranks_of_attempt(here: Path, number: int) -> list[int] | None:
    """The processes of the so many-th attempt, as soon as both ranks train in it."""
    found = {}
    for rank, told in compare.windows(here, 2):
        if told["attempt"] >= number:
            found[rank] = told["pid"]
    return [found[0], found[1]] if len(found) == 2 else None


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _steps_lost(here: Path) -> tuple[list[int], int]:
    """(for each restart, the steps that were begun before it and had to be done again; all steps
    computed)
    """
    of_attempt: dict[int, list[int]] = {}
    for rank, told in compare.windows(here, 2):
        if rank == 0:
            of_attempt.setdefault(told["attempt"], []).append(told["k"])
    attempts = sorted(of_attempt)
    lost = [of_attempt[a][-1] - (of_attempt[b][0] - 1) for a, b in itertools.pairwise(attempts)]
    return lost, sum(map(len, of_attempt.values()))


def terminated(here: Path, full: bool) -> str:
    trials = FULL_STOPS if full else 4
    words = ("duration.steps=60",)
    preserve_state = reference(here, 2, *words)
    samples = compare.samples(preserve_state, 2)
    random.seed(12)
    seconds: list[float] = []
    ends: dict[int, int] = {}
    exact = 0
    for number in range(trials):
        own = folder(here, f"trial-{number}")
        code, took = _terminate_one(own, words, to_launcher=number % 2 == 0)
        ends[code] = ends.get(code, 0) + 1
        seconds.append(took)
        if code == 75 and (number < 2 or number % 5 == 0):
            codes, job = train(own, 2, command(own, *words))
            assert codes == [0, 0], job.told()
            apart = compare.differing(
                compare.state(preserve_state / "run"), compare.state(own / "run")
            )
            assert not apart, apart
            assert compare.samples(own, 2) == samples
            exact += 1
        shutil.rmtree(own)
    assert ends.get(75), f"no stop was saved: {ends}"
    assert exact, "no stop was gone on from"
    told = statistics.quantiles(seconds, n=100) if len(seconds) > 1 else seconds * 99
    return (
        f"{trials} times; ended "
        f"{', '.join(f'{code}: {count}' for code, count in sorted(ends.items()))}; p50 "
        f"{statistics.median(seconds):.2f} s, p99 {told[98]:.2f} s; {exact} of {exact} resumed, "
        "bit-identical; hangs: 0"
    )


def _terminate_one(own: Path, words: tuple[str, ...], to_launcher: bool) -> tuple[int, float]:
    """SIGTERM at a random moment between the first look at the config and the end: (code, seconds
    until all ended).
    """
    patches = (partial(ranks.pause_steps, 0.02), ranks.note_start)
    stopped = {"FAULTS_STOPPED_AGENT": "1"} if to_launcher else {}
    job = jobs.start_elastic(
        own, 2, 0, ranks.train_rank, command(own, *words), "accumulate", patches, **stopped
    )
    while len(compare.notes(own, "started.jsonl")) < 2:
        assert job.processes[0].is_alive(), job.told()
        time.sleep(0.005)
    time.sleep(random.uniform(0, 3.0))
    pids = [told["pid"] for told in compare.notes(own, "started.jsonl")]
    begun = time.monotonic()
    fired = job.send(0, signal.SIGTERM) if to_launcher else _terminate(random.choice(pids))
    job.wait(60)
    took = time.monotonic() - begun
    told: dict[str, Any] = (
        json.loads((own / "told.json").read_text()) if (own / "told.json").exists() else {}
    )
    code = told.get("code", 143)
    assert code in ((75, 0, 143) if fired else (0,)), f"{told}\n{job.told()}"
    trained = [path for path in own.glob("windows-*.jsonl") if path.stat().st_size]
    assert code != 143 or not trained, f"killed while it trained: {job.told()}"
    checkpoints = own / "run" / "checkpoints"
    if code == 75:
        newest = complete(checkpoints)[-1]
        verify(newest)
        assert step_of(newest) == told["step"], f"{newest}, but {told}"
        rows = compare.train_steps(own / "run")
        assert rows == list(range(1, told["step"] + 1)), rows
    for path in candidates(checkpoints):
        verify(path)
    assert not any(_alive(pid) for pid in pids), "a rank outlived its launcher"
    return code, took


def _terminate(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return False
    return True


def _alive(pid: int) -> bool:
    return (
        Path(f"/proc/{pid}/stat").exists()
        and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    )


ROWS = (
    Row(
        "4",
        "kill at random in training, elastic restart",
        "SIGKILL of a random rank of 2 at random moments; torchrun's agent restarts; saved every "
        f"{INTERVAL} steps",
        "the run completes, bit-identical",
        killed_in_training,
    ),
    Row(
        "12",
        "SIGTERM to the launcher or to one rank",
        "at random moments of start, training, saving and end; 2 ranks under torchrun's agent",
        "one agreed step saved, exact resume, exit 75",
        terminated,
    ),
)
