"""Rows about a run that is under way: a rank fails, a number is no number, data are damaged."""

import re
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pyarrow.parquet

from tests.campaigns.faults import compare, jobs, ranks
from tests.campaigns.faults.row import (
    Row,
    check_fired,
    check_same,
    command,
    folder,
    reference,
    seconds_since_fault,
    train,
)
from tests.helpers import tiny
from train.checkpoint.commit import complete
from train.checkpoint.manifest import name_of, verify

NEVER = 10**9


def rank_ends(here: Path, full: bool) -> str:
    told = []
    faults = {"exits": ranks.leave, "raises": ranks.fail, "is killed": ranks.kill}
    for name, action in faults.items():
        own = folder(here, name.replace(" ", "-"))
        codes, job = train(own, 2, command(own), partial(ranks.at_step, 7, action, 1))
        seconds = seconds_since_fault(own)
        assert all(codes), f"{name}: {codes}"
        assert seconds < 30, f"{name}: the other rank left after {seconds:.0f} s"
        assert [path.name for path in complete(own / "run" / "checkpoints")] == [name_of(5)]
        assert "Traceback" not in job.told(0), job.told(0)
        assert f"the last complete checkpoint is {own}/run/checkpoints/{name_of(5)}" in job.told(
            0
        ), job.told(0)
        assert name != "raises" or "RuntimeError: a fault of rank's own" in job.told(0), job.told(0)
        told.append(f"{name} {seconds:.1f} s")
    alone = [
        (name, place)
        for name in ("exits", "is killed")
        for place in ("building", "training", "saving")
    ]
    rounds = [
        (name, place, size) for name, place in [("raises", "training"), *alone] for size in (2, 3)
    ]
    rounds = rounds * 2 if full else rounds[::7]
    for number, (name, place, size) in enumerate(rounds):
        own = folder(here, f"agent-{number}")
        where = {
            "training": partial(ranks.at_step, 7),
            "saving": ranks.in_save,
            "building": ranks.while_building,
        }[place]
        patches = (partial(where, faults[name], size - 1),)
        agent = jobs.start_elastic(
            own, size, 0, ranks.train_rank, command(own), "accumulate", patches
        )
        assert agent.wait() == [1], agent.told()
        check_fired(own, {"exits": "leave", "raises": "fail", "is killed": "kill"}[name])
        last = f"rank +: {size - 1} \\(local_rank: {size - 1}\\)"
        assert re.search(last, agent.told()), (
            f"{name} while {place}: torchrun named another rank\n{agent.told()}"
        )
    return (
        f"the other left after: {', '.join(told)}; torchrun's agent named the true first rank in "
        f"{len(rounds)} of {len(rounds)} (the last of 2 or 3, while building, training or saving)"
    )


def out_of_memory(here: Path, full: bool) -> str:
    cases = [("first forward", 1, 1), ("last backward", None, 2)]
    if full:
        places = ("first forward", "first backward", "last forward", "last backward", "update")
        cases = [
            (where, only, micro) for where in places for only in (0, 1, None) for micro in (1, 2)
        ]
    slowest = 0.0
    for number, (where, only, micro) in enumerate(cases):
        own = folder(here, f"case-{number}")
        words = command(own, f"batch.micro={micro}")
        codes, job = train(own, 2, words, partial(ranks.short_of_memory, 7, where, only))
        name = f"{where} on rank {only}, micro-batch {micro}"
        assert codes == [1, 1], f"{name}: {codes}\n{job.told()}"
        check_fired(own, "out of memory", 2 if only is None else 1)
        slowest = max(slowest, seconds_since_fault(own))
        headline = f"rank {only or 0} ran out of memory in step 7, in "
        assert headline in job.told(0), f"{name}\n{job.told(0)}"
        assert only is None or headline in job.told(only), f"{name}\n{job.told(only)}"
        assert "Traceback" not in job.told(), f"{name}\n{job.told()}"
        smaller = "it resumes in micro-batches of 1" in job.told(0)
        assert smaller == (micro == 2 and where != "update"), f"{name}\n{job.told(0)}"
        newest = complete(own / "run" / "checkpoints")[-1]
        assert newest.name == name_of(6 if only is None else 5), f"{name}: {newest}"
    assert slowest < 30
    return (
        f"{len(cases)} of {len(cases)}: all ranks left within {slowest:.1f} s with what to type; "
        "hangs: 0"
    )


def not_a_number(here: Path, full: bool) -> str:
    words = ("batch.micro=2", "log.every_steps=1")
    skipping, stopping = folder(here, "skip"), folder(here, "stop")
    poison = partial(ranks.poison, 7, 1)
    codes, job = train(skipping, 2, command(skipping, *words), poison, ranks.note_weights)
    assert codes == [0, 0], job.told()
    check_fired(skipping, "poison")
    of_ranks = [dict(compare.notes(skipping, f"weights-{number}.jsonl")) for number in (0, 1)]
    assert of_ranks[0] == of_ranks[1], "the ranks have drifted apart"
    moved = [k for k in range(1, 20) if of_ranks[0][k] != of_ranks[0][k + 1]]
    assert moved == [k for k in range(1, 20) if k != 7], f"weights moved in {moved}"
    assert [row["train/skipped_steps"] for row in compare.rows(skipping / "run")] == [0] * 6 + [
        1
    ] * 14
    codes, job = train(stopping, 2, command(stopping, *words, "on_nonfinite=stop"), poison)
    assert codes == [1, 1], job.told()
    assert "on_nonfinite=stop: no update was made" in job.told(0)
    assert "Traceback" not in job.told()
    return (
        "skip: both ranks left out step 7 alone, weights bit-identical; stop: exit code 1 on both"
    )


def damaged_data(here: Path, full: bool) -> str:
    damages = {
        "truncated": lambda data: data[: len(data) // 2],
        "footer flipped": lambda data: (
            data[:-200] + bytes(byte ^ 0xFF for byte in data[-200:-8]) + data[-8:]
        ),
        "empty": lambda data: b"",
        "missing": None,
    }
    good, slowest, tried = here / "good.parquet", 0.0, 0
    pyarrow.parquet.write_table(tiny(400).data.table, good)
    for name, damage in damages.items():
        bad = here / f"{name.replace(' ', '-')}.parquet"
        if damage:
            bad.write_bytes(damage(good.read_bytes()))
        for streaming in (False, True):
            for files in ((bad, bad), (good, bad)) if full or name == "empty" else ((good, bad),):
                own = folder(here, f"{name}-{streaming}-{files[0].stem}".replace(" ", "-"))
                words = [
                    "data.source=parquet",
                    "data.args.data_files=${oc.env:DATA}",
                    f"data.streaming={streaming}",
                ]
                words += [] if streaming else [f"data.args.cache_dir={own}/cache"]
                start = time.monotonic()
                port = jobs.free_port()
                environments = [
                    jobs.rank_environment(number, 2, port)
                    | {"DATA": str(file), "FAULTS_RECORD": str(own)}
                    for number, file in enumerate(files)
                ]
                job = jobs.start(own, environments, ranks.train_rank, command(own, *words))
                codes = job.wait()
                slowest = max(slowest, time.monotonic() - start)
                assert all(codes), f"{name}: {codes}\n{job.told()}"
                assert str(bad) in job.told(0) + job.told(1), (
                    f"{name}: no word of the file\n{job.told()}"
                )
                assert files[0] == bad or "rank 1" in job.told(0), (
                    f"{name}: the rank is not named\n{job.told(0)}"
                )
                tried += 1
    return (
        f"{tried} of {tried} (on all ranks, and on one): file and rank named; all left within "
        f"{slowest:.0f} s"
    )


def back_to_an_older_one(here: Path, full: bool) -> str:
    words = (
        "duration.steps=60",
        "checkpoint.every_steps=10",
        "checkpoint.keep=5",
        "wandb.mode=offline",
    )
    preserve_state = reference(here, 2, *words[:-1])
    codes, job = train(here, 2, command(here, *words), partial(ranks.at_step, 56, ranks.kill))
    assert codes == [-signal.SIGKILL] * 2, job.told()
    for step in (30, 40, 50):
        path = here / "run" / "checkpoints" / name_of(step) / "trainer.json"
        path.write_text(path.read_text().replace('"step"', '"Step"', 1))
    codes, job = train(here, 2, command(here, *words))
    assert codes == [0, 0], job.told()
    assert job.told(0).count("checkpoint passed over") == 3, job.told(0)
    check_same(here, preserve_state, 2)
    ids = [path.name.split("-")[3] for path in (here / "run" / "wandb").glob("offline-run-*")]
    assert len(ids) == 2, f"W&B runs: {ids}"
    assert len(set(ids)) == 1, f"W&B runs: {ids}"
    return (
        "from step 56 back to 20: 60 rows of 60, each once, bit-identical; the same W&B run id "
        "(offline mode)"
    )


def inside_a_window(here: Path, full: bool) -> str:
    words = ("batch.micro=1",)
    preserve_state = reference(here, 2, *words)
    steps = []
    for name, action in {"SIGTERM": ranks.terminate, "SIGKILL": ranks.kill}.items():
        for only in (0, 1) if full else (1,):
            own = folder(here, f"{name}-{only}")
            codes, job = train(
                own, 2, command(own, *words), partial(ranks.in_micro_step, 8, 3, action, only)
            )
            check_fired(own, "terminate" if name == "SIGTERM" else "kill")
            assert (codes == [75, 75]) if name == "SIGTERM" else all(codes), (
                f"{name}: {codes}\n{job.told()}"
            )
            newest = complete(own / "run" / "checkpoints")[-1]
            verify(newest)
            steps.append(f"{name} on rank {only}: from {newest.name}")
            codes, job = train(own, 2, command(own, *words))
            assert codes == [0, 0], job.told()
            check_same(own, preserve_state, 2)
            shutil.rmtree(own)
    return (
        f"in micro-step 3 of 4 of step 8; {'; '.join(steps)}; bit-identical, each sample as often "
        "as in the reference"
    )


ROWS = (
    Row(
        "16",
        "a rank exits, raises, is killed",
        "all three, on the last of 2 or 3 ranks in step 7; exits and is killed also while building "
        "and saving",
        "the others leave; non-zero exit; the true first rank is named",
        rank_ends,
    ),
    Row(
        "20",
        "out of memory",
        "in step 7: forward or backward of the first or last micro-step, the update; on each rank "
        "and on all",
        "all ranks leave with one sentence that says what is kept and what to type",
        out_of_memory,
    ),
    Row(
        "21",
        "NaN on one rank, one micro-batch",
        "an input of rank 1 in step 7",
        "all ranks skip the same step or stop, by config; weights bit-identical to before",
        not_a_number,
    ),
    Row(
        "24",
        "stopped inside a window",
        "SIGTERM or SIGKILL in micro-step 3 of 4",
        "resume at the step boundary; no sample lost or used twice",
        inside_a_window,
    ),
    Row(
        "25",
        "damaged data",
        "parquet truncated, with a flipped footer, empty, missing; loaded and streamed",
        "the error names file and rank, all ranks leave",
        damaged_data,
    ),
    Row(
        "29",
        "W&B after falling back to an older checkpoint",
        "the three newest damaged: resume 36 steps back",
        "same run id; metrics.jsonl without a duplicate or a hole",
        back_to_an_older_one,
    ),
)
