"""Rows about a full disk: in a save, and wherever else a run writes."""

import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.campaigns.faults import ranks
from tests.campaigns.faults.row import Row, check_fired, check_same, command, folder, reference
from tests.campaigns.faults.row import train as start
from train.checkpoint.manifest import name_of, verify

STEP_5 = name_of(5)


@contextmanager
def small_disk(here: Path) -> Iterator[tuple[Path, str]]:
    """20 MB, and how they were had: a tmpfs where mounting is permitted, else a limit on the size
    of a file.
    """
    disk = folder(here, "disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", disk], capture_output=True, check=False
    )
    try:
        yield (
            disk,
            "tmpfs of 20 MB" if mounted.returncode == 0 else "RLIMIT_FSIZE (no right to mount)",
        )
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", disk], check=True)


def fill_disk(disk: Path, mounted: bool) -> None:
    """To the last byte: not even the end of the run can be written down."""
    ranks.fired("full")
    if not mounted:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        )
        return
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return


def make_room(disk: Path, mounted: bool) -> None:
    if mounted:
        (disk / "filler").unlink()
    else:
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def before(module: str, name: str, action: Callable[[], None]) -> None:
    """`action` before the first call of module.name, on rank 0."""
    holder = import_module(module)
    ours, waiting = getattr(holder, name), [action] if ranks.rank() == 0 else []

    def call(*args: Any, **options: Any) -> Any:
        if waiting:
            waiting.pop()()
        return ours(*args, **options)

    setattr(holder, name, call)


def disk_full(here: Path, full: bool) -> str:
    told = []
    for case in ("too small for two", "to the last byte"):
        own = folder(here, case.replace(" ", "-"))
        with small_disk(own) as (disk, how):
            mounted = how.startswith("tmpfs")
            words = ["model.args.hidden=[1000, 1000]", f"output_dir={disk}"]
            patches = []
            if case == "to the last byte" or not mounted:
                fill = partial(fill_disk, disk, mounted)
                patches = [partial(ranks.at_step, 9, fill, 0)]
                # or a row would be the first to find the disk full
                words.append("log.every_steps=1000")
            begun = time.monotonic()
            codes, job = start(own, 2, command(own, *words), *patches)
            seconds = time.monotonic() - begun
            assert codes == [1, 1], f"{codes}\n{job.told()}"
            assert "could not save" in job.told(0), job.told()
            assert "Complete checkpoints there: step-00000005" in job.told(0), job.told()
            checkpoints = disk / "run" / "checkpoints"
            verify(checkpoints / STEP_5)
            left = sorted(path.name for path in checkpoints.iterdir())
            assert left == [STEP_5], left
            told.append(f"{case} ({how}): {seconds:.0f} s")
    return f"{'; '.join(told)}; good checkpoints lost: 0, hangs: 0"


def between_saves(here: Path, full: bool) -> str:
    """The disk is full from some moment on: the run ends, and the same command goes on once there
    is room.
    """
    preserve_state, told = reference(here, 2), []
    cases = {  # name: (where it fills, what is said, exit code)
        "a row": (lambda fill, free: [partial(ranks.at_step, 7, fill, 0)], "metrics.jsonl", 1),
        "a row, and room again": (
            lambda fill, free: [
                partial(ranks.at_step, 7, fill, 0),
                partial(before, "train.checkpoint.checkpoints", "commit", free),
            ],
            "stopped by what could not be written",
            75,
        ),
        "the start": (lambda fill, free: [partial(at_start, fill)], "cannot write into", 2),
        "plan.json": (
            lambda fill, free: [partial(before, "train.report.outlets", "Journal", fill)],
            "plan.json",
            2,
        ),
        "log.txt": (
            lambda fill, free: [partial(before, "train.report.outlets", "Screen", fill)],
            "cannot write into",
            2,
        ),
        "the final weights": (
            lambda fill, free: [partial(before, "train.models.weights", "write_tensors", fill)],
            "final",
            1,
        ),
    }
    for case, (patches, said, code) in cases.items():
        own = folder(here, case.replace(" ", "-").replace(",", ""))
        with small_disk(own) as (disk, how):
            mounted = how.startswith("tmpfs")
            words = command(
                own, f"output_dir={disk}", *(["checkpoint.every_steps=1000"] if code == 75 else [])
            )
            fill, free = partial(fill_disk, disk, mounted), partial(make_room, disk, mounted)
            begun = time.monotonic()
            codes, job = start(own, 2, words, *patches(fill, free))
            told.append(f"{case} {time.monotonic() - begun:.0f} s")
            check_fired(own, "full")
            assert codes == [code, code], f"{case}: {codes}\n{job.told()}"
            assert said in job.told(0), f"{case}: {job.told()}"
            assert "Traceback" not in job.told(), f"{case}: {job.told()}"
            (disk / "filler").unlink(missing_ok=True)
            codes, job = start(own, 2, words)
            assert codes == [0, 0], f"{case}: {job.told()}"
            (own / "run").symlink_to(disk / "run")
            check_same(own, preserve_state, 2)
    return (
        f"{how}; all ranks left alike, in a sentence: {', '.join(told)}; then the same command: "
        "bit-identical ends"
    )


def at_start(fill: Callable[[], None]) -> None:
    if ranks.rank() == 0:
        fill()


ROWS = (
    Row(
        "5",
        "disk full in a save",
        "a tmpfs of 20 MB, too small for two checkpoints, and one filled to the last byte",
        "clear error, old checkpoints intact, temporary folder gone",
        disk_full,
    ),
    Row(
        "5b",
        "disk full elsewhere",
        "filled to the last byte before a row, the start, plan.json, log.txt, the final weights",
        "all ranks leave with a sentence, non-zero; the same command goes on once there is room",
        between_saves,
    ),
)
