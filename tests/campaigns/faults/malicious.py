"""Files that somebody has made to do harm: nothing in them is executed, nothing outside the folder
is read.
"""

import os
import pickle
import shutil
from pathlib import Path

from tests.campaigns.faults.disk import STEP_5, STEP_10, stopped_run
from tests.campaigns.faults.row import Row, command, train
from tests.test_disk import CONTENTS, KINDS, READERS, damages
from train.checkpoint.manifest import MANIFEST, Damaged, entry, render, verify

PAYLOAD_MARK = "executed"


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.file}",)


def malicious(here: Path, full: bool) -> str:
    stopped_run(here, 1)
    checkpoints, mark = here / "run" / "checkpoints", here / PAYLOAD_MARK
    shutil.rmtree(checkpoints / STEP_5)
    shutil.copytree(checkpoints / STEP_10, here / STEP_10)
    payload = pickle.dumps(Payload(mark))
    tried = 0
    for file in sorted(path.name for path in (here / STEP_10).iterdir()):
        for sealed in (False, True) if file != MANIFEST else (False,):
            shutil.rmtree(checkpoints / STEP_10, ignore_errors=True)
            for aside in checkpoints.glob("*.damaged*"):
                shutil.rmtree(aside)
            shutil.copytree(here / STEP_10, checkpoints / STEP_10)
            (checkpoints / STEP_10 / file).write_bytes(payload)
            if sealed:  # by somebody who knows how the manifest is made
                _seal(checkpoints / STEP_10)
            codes, job = train(here, 1, command(here))
            assert codes == [1], f"{file}, sealed {sealed}: {codes}\n{job.told()}"
            assert not mark.exists(), f"{file}: executed"
            tried += 1
    tried += _paths_that_leave(here) + _yaml(here, mark)
    return f"executed: 0 of {tried}"


def _seal(path: Path, *, more: str = "") -> None:
    files = {file.name: entry(file) for file in path.iterdir() if file.name != MANIFEST}
    if more:
        files[more] = entry(path / more)
    (path / MANIFEST).write_bytes(render(10, 1, files))


def _paths_that_leave(here: Path) -> int:
    outside = here / "outside"
    outside.write_text("outside")
    names = ("../../../outside", str(outside), "./../" + STEP_10 + "/trainer.json", "..", "link")
    for name in names:
        path = here / "paths" / STEP_10
        shutil.rmtree(path.parent, ignore_errors=True)
        shutil.copytree(here / STEP_10, path)
        if name == "link":
            (path / name).symlink_to(outside)
        known = {
            file.name: entry(file) for file in (here / STEP_10).iterdir() if file.name != MANIFEST
        }
        known[name] = entry(outside)
        (path / MANIFEST).write_bytes(render(10, 1, known))
        try:
            verify(path)
        except Damaged:
            continue
        raise AssertionError(f"a manifest that names {name} was accepted")
    return len(names)


def _yaml(here: Path, mark: Path) -> int:
    lines = (
        f"notes: !!python/object/apply:os.system ['touch {mark}']",
        f"notes: !!python/object/new:os.system ['touch {mark}']",
        'wandb: {notes: \'${eval:__import__("os").system("touch ' + str(mark) + "\")}'}",
        "name: ../../outside/run",
        "name: /outside/run",
        "wandb: !!python/name:os.system ''",
    )
    for line in lines:
        own = here / "yaml"
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir()
        words = command(own)
        config = Path(words[0])
        key = line.partition(":")[0]
        kept = [old for old in config.read_text().splitlines() if not old.startswith(f"{key}:")]
        config.write_text("\n".join([*kept, line]))
        codes, job = train(own, 1, words)
        assert codes == [2], f"{line}: {codes}\n{job.told()}"
        assert not mark.exists(), f"{line}: executed"
    return len(lines)


def damaged(here: Path, full: bool) -> str:
    tried = tracebacks = 0
    for reader in READERS if full else [*READERS][::3]:
        tried += len(CONTENTS) + len(KINDS)
        tracebacks += len(damages(here / reader, reader))
    assert not tracebacks, f"tracebacks: {tracebacks} of {tried}"
    return f"tracebacks: 0 of {tried}; waits: 0"


ROWS = (
    Row(
        "31b",
        "damaged files of a run folder",
        "each small file empty, cut, deep, huge, of wrong types, a pipe, a device, a folder, 60 "
        "MB; each reader",
        "a sentence; nothing is waited for, or read without end",
        damaged,
    ),
    Row(
        "31",
        "malicious files",
        "a pickled payload in every file, also with a manifest made to match; YAML tags; paths "
        "that leave the folder",
        "refused, not executed",
        malicious,
    ),
)
