"""Rows about ranks that wait: for one that is stuck, for data that are uneven, for a worker, for a
cache.
"""

import json
import signal
import time
from functools import partial
from pathlib import Path

from tests.campaigns.faults import compare, data, jobs, ranks
from tests.campaigns.faults.row import Row, check_fired, command, folder, seconds_since_fault, train
from tests.data.files import write

DEADLINE = 4
HERE = "tests.campaigns.faults.data"


def stuck(here: Path, full: bool) -> str:
    told = []
    for number in (1, 0) if full else (1,):  # rank 0 holds the store by which they talk
        seconds = _stopped(folder(here, f"stopped-{number}"), number)
        told.append(f"rank {number} stopped: {DEADLINE} + {seconds - DEADLINE:.1f} s")
    own = folder(here, "sleepy")
    words = (
        f"data.source={HERE}.sleepy",
        "data.shuffle_buffer=0",
        f"runtime.timeout_seconds={DEADLINE}",
    )
    codes, job = train(own, 2, command(own, *words, "duration.steps=1000000"))
    assert codes == [1, 1], job.told()
    assert compare.notes(own, "fired.jsonl"), job.told()
    seconds = seconds_since_fault(own)
    assert "the others wait for rank(s) 0" in job.told(0), job.told(0)
    assert "data.py" in job.told(0), job.told(0)
    for number in (0, 1):
        assert "stacks" in job.told(number)
        assert "Thread" in (own / "run" / f"stacks-rank{number}.txt").read_text()
    assert DEADLINE <= seconds < DEADLINE + 30, seconds
    told.append(
        f"the rank that reads for both does so for ever: {DEADLINE} + {seconds - DEADLINE:.1f} s, stacks of both ranks"
    )
    return f"{'; '.join(told)}; the rank waited for was named each time"


def _stopped(own: Path, number: int) -> float:
    """Seconds from SIGSTOP on one rank to the end of the other."""
    words = command(
        own, "duration.steps=1000000", f"runtime.timeout_seconds={DEADLINE}", "log.every_steps=1000"
    )
    job, other = jobs.start_ranks(own, 2, ranks.train_rank, words), 1 - number
    while len(compare.notes(own, "windows-0.jsonl")) < 20:
        assert all(process.is_alive() for process in job.processes), job.told()
        time.sleep(0.05)
    assert job.send(number, signal.SIGSTOP)
    begun = time.monotonic()
    job.processes[other].join(DEADLINE + 60)
    seconds = time.monotonic() - begun
    assert job.processes[number].is_alive(), "the fault did not hold"
    job.end(number)
    assert job.wait(1)[other] == 1, job.told()
    assert DEADLINE <= seconds < DEADLINE + 30, seconds
    said = "what holds their store" if number == 0 else "rank(s) 1 no longer answer"
    assert said in job.told(other), job.told(other)
    assert "train/loop.py" in (own / "run" / f"stacks-rank{other}.txt").read_text()
    if number == 1:
        ended = json.loads((own / "run" / "ended.json").read_text())
        assert (ended["code"], ended["step"] > 0) == (1, True)
    return seconds


def uneven(here: Path, full: bool) -> str:
    small, large = (list(shard) for shard in data.SHARDS)
    words = (f"data.source={HERE}.uneven", "data.shuffle_buffer=0")
    own, steps = folder(here, "own-shards"), 10
    codes, job = train(
        own,
        2,
        command(own, *words, "data.split_by_node=true", "duration.steps=10"),
        ranks.note_inputs,
    )
    assert codes == [0, 0], job.told()
    # the rule: who is through with its own begins again
    for number, shard in enumerate((small, large)):
        taken = compare.notes(own, f"inputs-{number}.jsonl")
        assert len(taken) == steps, f"rank {number}: {len(taken)} steps"
        expected = shard * (steps * 4 // len(shard))
        assert [n for ids in taken for n in ids] == expected, f"rank {number}: {taken}"
    apart, epochs = folder(here, "one-order"), 3
    codes, job = train(
        apart, 2, command(apart, *words, f"duration.steps={4 * epochs}"), ranks.note_inputs
    )
    assert codes == [0, 0], job.told()
    of_ranks = [compare.notes(apart, f"inputs-{number}.jsonl") for number in (0, 1)]
    together = [[*one, *other] for one, other in zip(*of_ranks, strict=True)]
    assert [len(step) for step in together] == [8, 8, 8, 6] * epochs, together
    for epoch in range(epochs):  # the rule: every sample once
        assert sorted(n for step in together[4 * epoch : 4 * epoch + 4] for n in step) == [
            *small,
            *large,
        ]
    return (
        f"each rank its own shards: {steps} steps on both, the shard of 10 begun 4 times, that of "
        f"20 twice; one order for all, its length unknown: {len(together)} steps on both, every "
        f"sample once in each of {epochs} epochs; hangs: 0"
    )


def worker_lost(here: Path, full: bool) -> str:
    told, timeout = [], 20
    training = [
        (how, (f"data.transform={HERE}.{how}",))
        for how in ("killed", "stuck", "stopped")[: 3 if full else 2]
    ]
    held_out = (
        "data.args={size: 200}",
        "data.eval_fraction=0.5",
        f"data.eval_transform={HERE}.killed",
    )
    for how, where in [
        *training,
        ("killed in an evaluation", (*held_out, "evaluate.at_start=true")),
    ]:
        own = folder(here, how.replace(" ", "-"))
        words = (*where, "data.workers=1", f"runtime.timeout_seconds={timeout}")
        codes, job = train(own, 2, command(own, *words))
        assert codes == [1, 1], f"{how}: {codes}\n{job.told()}"
        seconds = seconds_since_fault(own)
        assert "rank 1: loading samples: " in job.told(0), f"{how}: {job.told()}"
        assert "Traceback" not in job.told(), f"{how}: {job.told()}"
        ended = json.loads((own / "run" / "ended.json").read_text())
        assert (ended["code"], "loading samples: " in ended["reason"]) == (1, True), (
            f"{how}: {ended}"
        )
        assert seconds < (timeout if "killed" in how else timeout / 2 + 10), f"{how}: {seconds}"
        told.append(f"{how} {seconds:.1f} s")
    return (
        f"all ranks left, with one sentence: {', '.join(told)} (the loader waits for "
        f"{timeout // 2} s); hangs: 0"
    )


def cold_cache(here: Path, full: bool) -> str:
    rounds, sizes = (20, (2, 3, 4)) if full else (2, (2, 4))
    kills = 0
    for world_size in sizes:
        for number in range(rounds):
            own = folder(here, f"{world_size}-{number}")
            source = write(own / "own.csv", {"inputs": [0.5] * 2000, "labels": [1] * 2000})
            words = command(own, f"data.source={source}", f"data.args={{cache_dir: {own}/cache}}")
            if number % 2:
                _kill_builder(own, world_size, words)
                kills += 1
            begun = len(compare.notes(own, "prepared.jsonl"))
            job = jobs.start_ranks(own, world_size, ranks.load_rank, words)
            assert job.wait() == [0] * world_size, job.told()
            lengths = [told["length"] for told in compare.notes(own, "loaded.jsonl")]
            assert lengths == [2000] * world_size, lengths
            prepared = compare.notes(own, "prepared.jsonl")[begun:]
            assert prepared == [{"rank": 0}], f"prepared by {prepared}"
            _check_order(own)
    return (
        f"{rounds} rounds each on {', '.join(map(str, sizes))} ranks: rank 0 prepared, the others "
        f"waited and found it; {kills} killed while building, rebuilt by the next run; wrong "
        "lengths: 0"
    )


def _kill_builder(own: Path, world_size: int, words: list[str]) -> None:
    job = jobs.start_ranks(own, world_size, ranks.load_rank, words, (partial(ranks.kill_builder),))
    codes = job.wait()
    check_fired(own, "kill")
    assert codes[0] == -signal.SIGKILL, codes
    assert all(codes), f"a rank went on: {codes}"
    assert not compare.notes(own, "loaded.jsonl"), "somebody took what was half built"


def _check_order(own: Path) -> None:
    """Rank 0 was through before another began."""
    told = {entry["rank"]: entry for entry in compare.notes(own, "loaded.jsonl")}
    assert all(told[0]["ended"] <= other["begun"] for rank, other in told.items() if rank), told


ROWS = (
    Row(
        "17",
        "a rank is stuck",
        "SIGSTOP to one of 2 ranks; a source that sleeps on the rank that reads; runtime.timeout_seconds=4",
        "abort at the configured deadline, stacks of all ranks that still run",
        stuck,
        slow=True,
    ),
    Row(
        "18",
        "uneven data",
        "shards of 10 and 20 samples in a stream of unknown length, 2 ranks",
        "no hang; same number of steps; the stated rule",
        uneven,
    ),
    Row(
        "26",
        "data worker killed or stuck",
        "SIGKILL, SIGSTOP or sleep in the transform of rank 1, in training; SIGKILL in an "
        "evaluation",
        "error on all ranks within the loader's time-out",
        worker_lost,
        slow=True,
    ),
    Row(
        "27",
        "shared dataset cache",
        "2 to 4 ranks load cold; SIGKILL of rank 0 while it builds",
        "one rank prepares, the others wait; a later run rebuilds",
        cold_cache,
    ),
)
