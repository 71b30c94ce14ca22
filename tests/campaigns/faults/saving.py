"""Rows about the save itself: killed, failing, damaged."""

import random
import shutil
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path

from safetensors.torch import load_file

from tests.campaigns.faults import jobs, saver
from tests.campaigns.faults.compare import notes
from tests.campaigns.faults.row import Row, folder
from train.checkpoint import newest
from train.checkpoint.commit import candidates
from train.checkpoint.files import MODEL, read_state
from train.checkpoint.manifest import Damaged, name_of, step_of, verify


def load_newest(checkpoints: Path) -> int:
    """The step of the checkpoint that a start would go on from, loaded and compared with what was
    saved.
    """
    path = newest(checkpoints, None, print, ())
    assert path is not None, "no checkpoint is left"
    step = step_of(path)
    state, weights = read_state(path)["holder"], load_file(str(path / MODEL))["weight"]
    assert state["step"] == step, f"{path} holds the state of step {state['step']}"
    assert (state["tensor"] == step).all(), "a torn state was loaded"
    assert (weights == step).all(), "torn weights were loaded"
    return step


def killed_in_a_save(here: Path, full: bool) -> str:
    of_ranks = {1: 160, 2: 40} if full else {1: 6, 2: 2}
    where: Counter[str] = Counter()
    for world_size, kills in of_ranks.items():
        random.seed(world_size)
        own = folder(here, f"{world_size}-ranks")
        own_checkpoints = own / "checkpoints"
        unharmed = jobs.start_ranks(own, world_size, saver.save_for_ever, own_checkpoints, 5)
        assert unharmed.wait() == [0] * world_size, unharmed.told()
        times = [told["time"] for told in notes(own, "saved.jsonl")]
        one_save = (times[-1] - times[0]) / (len(times) - 1)
        for number in range(kills):
            where[_kill_one(own, world_size, number, one_save)] += 1
        assert notes(own, "saved.jsonl")[-1]["swept"], "leftovers stayed after the next save"
    told = ", ".join(f"{name} {count}" for name, count in where.most_common())
    return (
        f"{of_ranks[1]} kills on 1 rank, {of_ranks[2]} on 2; torn loaded 0, lost complete 0; fell "
        f"in: {told}"
    )


def _kill_one(own: Path, world_size: int, number: int, one_save: float) -> str:
    """Kill one rank at a random moment of a save; returns where that was."""
    checkpoints, before = own / "checkpoints", len(notes(own, "saved.jsonl"))
    job = jobs.start_ranks(own, world_size, saver.save_for_ever, checkpoints, None)
    # its first save has swept what the last kill left
    while len(notes(own, "saved.jsonl")) == before:
        assert all(process.is_alive() for process in job.processes), job.told()
        time.sleep(0.002)
    assert notes(own, "saved.jsonl")[-1]["swept"], "leftovers stayed after the next save"
    time.sleep(random.uniform(0, 2 * one_save))
    victim = number % world_size
    assert job.send(victim, signal.SIGKILL), "the fault did not fire"
    codes = job.wait(30)
    assert codes[victim] == -signal.SIGKILL, codes
    assert all(code != 0 for code in codes), f"a rank did not notice: {codes}"
    done = notes(own, "saved.jsonl")[-1]["step"]
    for path in candidates(checkpoints):
        verify(path)  # nothing torn under the name of a checkpoint
    step = load_newest(checkpoints)
    assert step >= done, f"step {done} was complete and is lost: {step}"
    return str(notes(own, f"point-{victim}.jsonl")[-1])


def killed_at_every_point(here: Path, full: bool) -> str:
    template = folder(here, "template")
    start = partial(jobs.start_ranks, template, 1)
    assert start(saver.save_steps, template / "checkpoints", [1, 2]).wait() == [0]
    shutil.copytree(template, here / "counted")
    counted = jobs.start_ranks(
        here / "counted", 1, saver.save_steps, here / "counted" / "checkpoints", [3]
    )
    assert counted.wait() == [0], counted.told()
    points = notes(here / "counted", "point-0.jsonl")[len(notes(template, "point-0.jsonl")) :]
    chosen = range(len(points)) if full else range(0, len(points), 9)
    for number in chosen:
        own = here / f"point-{number}"
        shutil.copytree(template, own)
        job = jobs.start_ranks(own, 1, saver.save_steps, own / "checkpoints", [3], number)
        assert job.wait() == [-signal.SIGKILL], f"not killed at {points[number]}: {job.told()}"
        committed = points.index("after commit") <= number
        renamed = points.index("after rename") <= number
        step = load_newest(own / "checkpoints")
        assert step == 3 if renamed or committed else step == 2, (
            f"step {step} after a kill at {points[number]}"
        )
        assert jobs.start_ranks(own, 1, saver.save_steps, own / "checkpoints", [4]).wait() == [0]
        left = sorted(path.name for path in (own / "checkpoints").iterdir())
        assert left == [name_of(3 if step == 3 else 2), name_of(4)], (
            f"after {points[number]}: {left}"
        )
        shutil.rmtree(own)
    return (
        f"{len(chosen)} of {len(chosen)} points ({len(points)} there are); torn 0, lost 0, left "
        "over 0"
    )


def keep_one(here: Path, full: bool) -> str:
    checkpoints = here / "checkpoints"
    job = jobs.start_ranks(here, 1, saver.save_counting, checkpoints, 5, 4)
    assert job.wait() == [0], job.told()
    told = notes(here, "counts.jsonl")
    failed = list(notes(here, "failed.jsonl"))
    assert failed == [4], "the fault did not fire"
    fewest = min(count for step, count in told if step > 1)
    assert fewest >= 1, "there was a moment without a complete checkpoint"
    assert [path.name for path in candidates(checkpoints)] == [name_of(5)]
    return f"looked at {len(told)} points: complete checkpoints never fewer than {fewest}"


def flipped_bits(here: Path, full: bool) -> str:
    checkpoints = here / "checkpoints"
    assert jobs.start_ranks(here, 1, saver.save_steps, checkpoints, [1, 2]).wait() == [0]
    path = checkpoints / name_of(2)
    files = sorted(path.iterdir())
    random.seed(0)
    number = 200 if full else 60
    hit: Counter[str] = Counter()
    for i in range(number):
        file = files[i % len(files)]
        place, bit = random.randrange(file.stat().st_size), 1 << random.randrange(8)
        _flip(file, place, bit)
        try:
            verify(path)
        except Damaged:
            hit[file.name] += 1
        _flip(file, place, bit)
    verify(path)
    assert sum(hit.values()) == number, f"found {sum(hit.values())} of {number}"
    return (
        f"{number} of {number} found: "
        f"{', '.join(f'{count} in {name}' for name, count in hit.items())}"
    )


def _flip(file: Path, place: int, bit: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(place)
        byte = opened.read(1)[0] ^ bit
        opened.seek(place)
        opened.write(bytes([byte]))


ROWS = (
    Row(
        "1",
        "kill inside a save",
        "SIGKILL, uniform over saves that follow each other, rotation included",
        "the newest complete checkpoint loads, the rest is swept",
        killed_in_a_save,
    ),
    Row(
        "2",
        "kill at every named point of a save",
        "SIGKILL before and after each file, hash, fsync, rename and removal",
        "the newest complete checkpoint loads, the rest is swept",
        killed_at_every_point,
    ),
    Row(
        "9",
        "keep = 1 while the next save fails",
        "fsync says EIO in one save; complete checkpoints are counted at each point of all",
        "the old one stays",
        keep_one,
    ),
    Row(
        "bits",
        "a flipped bit",
        "random bits of all files of a checkpoint",
        "found before it is read",
        flipped_bits,
    ),
)
