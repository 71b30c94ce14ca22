"""Rows about what lies on the disk: failing, damaged, left over."""

import shutil
import signal
import time
from functools import partial
from pathlib import Path

from tests.campaigns.faults import compare, jobs, ranks
from tests.campaigns.faults.row import (
    Row,
    check_fired,
    check_same,
    command,
    folder,
    reference,
    train,
)
from train.checkpoint.commit import candidates, complete
from train.checkpoint.manifest import MANIFEST, name_of, step_of, verify
from train.report.folder import make_folder

STEP_5, STEP_10 = name_of(5), name_of(10)


def one_rank_cannot_save(here: Path, full: bool) -> str:
    faults = {
        "write on rank 1": partial(ranks.failing_write, 10, 1),
        "fsync of a file on rank 0": partial(ranks.failing_fsync, 10, 0),
        "fsync of the manifest": partial(ranks.failing_fsync, 10, 0, MANIFEST),
        "rename": partial(ranks.failing_rename, 10),
        "fsync of metrics.jsonl": partial(ranks.failing_journal, 7),
    }
    chosen = faults if full else {name: faults[name] for name in list(faults)[::2]}
    slowest = 0.0
    for name, fault in chosen.items():
        own = folder(here, name.replace(" ", "-"))
        start = time.monotonic()
        codes, job = train(own, 2, command(own), fault)
        slowest = max(slowest, time.monotonic() - start)
        check_fired(own, {"rename": "rename", "write on rank 1": "_write"}.get(name, "fsync"))
        assert codes == [1, 1], f"{name}: {codes}\n{job.told()}"
        assert "could not save" in job.told(0), f"{name}: {job.told()}"
        assert "Traceback" not in job.told(), f"{name}: a rank ended otherwise\n{job.told()}"
        left = sorted(path.name for path in (own / "run" / "checkpoints").iterdir())
        assert left == [STEP_5], f"{name}: {left}"
        verify(own / "run" / "checkpoints" / STEP_5)
    return (
        f"{len(chosen)} of {len(chosen)} faults: all ranks left alike, within {slowest:.0f} s; "
        "hangs: 0"
    )


def stopped_run(here: Path, world_size: int, step: int = 12) -> None:
    """A run that a kill ended in `step`: its checkpoints are those of steps 5 and 10."""
    codes, job = train(here, world_size, command(here), partial(ranks.at_step, step, ranks.kill, 0))
    assert codes[0] == -signal.SIGKILL, job.told()
    assert [path.name for path in complete(here / "run" / "checkpoints")] == [STEP_5, STEP_10]


def all_damaged(here: Path, full: bool) -> str:
    stopped_run(here, 2)
    checkpoints, before = (
        here / "run" / "checkpoints",
        (here / "run" / "metrics.jsonl").read_bytes(),
    )
    (checkpoints / STEP_5 / MANIFEST).unlink()
    with (checkpoints / STEP_10 / "model.safetensors").open("r+b") as file:
        file.truncate(50)
    # A person starts it again, twice; then a launcher that restarts whatever fails.
    for environment in ({}, {}, {"TORCHELASTIC_RUN_ID": "job", "TORCHELASTIC_RESTART_COUNT": "1"}):
        if environment:
            written = (here / "run" / "environment.json").read_text()
            (here / "run" / "environment.json").write_text(
                written.replace('"job": {}', '"job": {"TORCHELASTIC_RUN_ID": "job"}')
            )
        codes, job = train(here, 2, command(here), **environment)
        assert codes == [1, 1], f"{environment}: {codes}\n{job.told()}"
        assert "all 2 checkpoints" in job.told(0), job.told()
        assert "checkpoint.resume=never" in job.told(0), job.told()
    assert (here / "run" / "metrics.jsonl").read_bytes() == before
    assert not (here / "run.1").exists()
    assert len(list(checkpoints.iterdir())) == 2
    return "exit code 1, three times of three; nothing moved, nothing trained"


def leftovers(here: Path, full: bool) -> str:
    preserve_state, elsewhere = reference(here, 1), folder(here, "elsewhere")
    (elsewhere / "kept.txt").write_text("kept")
    stopped_run(here, 1)
    checkpoints = here / "run" / "checkpoints"
    for name in (".step-00000011.unfinished", ".step-00000002.removed", "step-00000012"):
        folder(checkpoints, name)
        (checkpoints / name / "half").write_bytes(bytes(100))
    folder(checkpoints, "step-00000013")  # empty
    folder(checkpoints, "step-00000020")  # empty, where a checkpoint will be
    (checkpoints / "step-00000014").symlink_to(elsewhere)
    (checkpoints / "step-00000015").symlink_to(here / "nowhere")  # where a checkpoint will be
    (checkpoints / ".step-00000016.unfinished").symlink_to(elsewhere)
    for name in ("notes.txt", "step-00000017", ".step-00000018.unfinished"):
        (checkpoints / name).write_text("a file")
    codes, job = train(here, 1, command(here))
    assert codes == [0], job.told()
    check_same(here, preserve_state, 1)
    assert not list(checkpoints.glob(".*")), "not swept"
    assert (checkpoints / "notes.txt").exists()
    assert (elsewhere / "kept.txt").exists()
    assert [path.name for path in complete(checkpoints)] == [
        STEP_10,
        name_of(15),
        name_of(20),
    ]  # the first: resumed from
    return "11 of 11 leftovers ignored, those of a save swept; bit-identical end"


def slow_save(here: Path, full: bool) -> str:
    preserve_state = reference(here, 2)
    slow = partial(ranks.slow_write, 10, 60.0)
    job = jobs.start_ranks(here, 2, ranks.train_rank, command(here), "accumulate", (slow,))
    while not compare.notes(here, "fired.jsonl"):
        assert all(process.is_alive() for process in job.processes), job.told()
        time.sleep(0.01)
    for what in (signal.SIGTERM, signal.SIGKILL):  # the grace period in between
        for number in (0, 1):
            assert job.send(number, what)
        time.sleep(1.0 if what == signal.SIGTERM else 0)
    assert job.wait(20) == [-signal.SIGKILL] * 2
    assert [path.name for path in complete(here / "run" / "checkpoints")] == [STEP_5]
    # It goes on, with a save of 0.4 s; the next start says what such saves need (the limit is set
    # to 0.2 s).
    steps = (partial(ranks.slow_write, 10, 0.4), partial(ranks.at_step, 17, ranks.kill))
    codes, _ = train(here, 2, command(here), *steps)
    assert codes == [-signal.SIGKILL] * 2
    codes, job = train(here, 2, command(here), partial(ranks.short_grace, 0.4))
    assert codes == [0, 0], job.told()
    assert "a stop takes two steps and a save" in job.told(0), job.told(0)
    check_same(here, preserve_state, 2)
    assert not [
        path
        for path in candidates(here / "run" / "checkpoints")
        if path.name not in (name_of(15), name_of(20))
    ]
    return (
        "killed 1 s after SIGTERM in a save of 60 s: step 5 of step 5 remained; warned at the "
        "next start"
    )


TAKEN = ("moved", "deleted", "replaced")


def take_away(own: Path, how: str) -> None:
    """What a person does to the folder of a run that still trains."""
    ranks.fired(how)
    if how == "deleted":
        shutil.rmtree(own / "run")
    else:
        (own / "run").rename(own / "elsewhere")
    if how == "replaced":
        make_folder(own / "run", None).close()
        (own / "run" / "metrics.jsonl").write_text("another's")


def taken_away(here: Path, full: bool) -> str:
    preserve_state, steps = reference(here, 2), range(1, 21) if full else (7,)
    tried = 0
    for step in steps:
        for how in TAKEN if full else TAKEN[2:]:
            own = folder(here, f"{how}-{step}")
            words = command(own, "log.every_steps=1")
            codes, job = train(
                own, 2, words, partial(ranks.at_step, step, partial(take_away, own, how), 0)
            )
            check_fired(own, how)
            assert codes == [1, 1], f"{how} at {step}: {codes}\n{job.told()}"
            assert "Traceback" not in job.told(), job.told()
            (beside,) = own.glob("run.displaced-*")
            (saved,) = complete(beside / "checkpoints")
            assert step_of(saved) >= min(step, 20), f"{how} at {step}: {saved}"
            if how == "replaced":
                left = sorted(path.name for path in (own / "run").iterdir())
                assert left == [".lock", "metrics.jsonl", "run.json"], left
                assert (own / "run" / "metrics.jsonl").read_text() == "another's"
            codes, job = train(own, 2, [*words, f"name={beside.name}"])
            assert codes == [0, 0], job.told()
            apart = compare.differing(compare.state(preserve_state / "run"), compare.state(beside))
            assert not apart, f"{how} at {step}: {apart[:5]}"
            tried += 1
    return (
        f"{tried} of {tried}: saved beside, steps lost: 0, another's folder untouched; resumed "
        "bit-identical"
    )


ROWS = (
    Row(
        "11b",
        "the run folder is taken away",
        "moved, deleted, replaced by another run's of the same name, while two ranks train",
        "saved beside under a name that says so; all ranks end with a sentence; nothing of the "
        "other changes",
        taken_away,
    ),
    Row(
        "6",
        "fsync or rename fails on one rank",
        "EIO on rank 0 or 1, for files, manifest, rename, metrics.jsonl",
        "all ranks agree that the save failed; no hang",
        one_rank_cannot_save,
    ),
    Row(
        "8",
        "every checkpoint damaged",
        "a manifest removed, weights truncated; started three times, once as a launcher's restart",
        "non-zero exit; never a silent fresh start",
        all_damaged,
    ),
    Row(
        "10",
        "leftovers",
        "temporary folders, stray files, empty folders, links, dangling links, also where "
        "checkpoints will be",
        "ignored, swept",
        leftovers,
    ),
    Row(
        "15",
        "a save longer than the grace period",
        "a writer of 60 s; SIGTERM, 1 s later SIGKILL",
        "the previous good one remains; a warning at the next start",
        slow_save,
    ),
)
