"""Each file of a run folder, damaged in each way, and each of its readers: a sentence, never a
traceback or a wait.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.comparison.folders import make_run
from train.checkpoint.choose import NoCheckpoint, newest
from train.checkpoint.manifest import MANIFEST, Damaged, entry, render, verify
from train.comparison.read import load_runs
from train.config.read import read_layers
from train.disk import Unreadable, open_own, read_json, write_atomically
from train.errors import UserError
from train.evaluate import _micro_batch
from train.metric_names import GLOBAL_STEP
from train.report.best import Best
from train.report.best_weights import _holds
from train.report.columns import AUDITED, _last_audit
from train.report.earlier_start import is_restart, run_of
from train.report.journal import Journal
from train.report.restarts import pause
from train.report.segments import _plan_of

DEEP = b"[" * 100_000
CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"{",
    "list": b"[1, 2]",
    "text": b'"text"',
    "null": b"null",
    "NaN": b"NaN",
    "huge integer": b"9" * 10_000,
    "huge values": b'{"batch": {"micro": %s}, "step": %s, "train/global_step": %s}\n'
    % ((b"9" * 400,) * 3),
    "deep": DEEP,
    "deep mapping": b'{"a":' * 100_000,
    "valid and deep": b"[" * 500 + b"]" * 500,
    "duplicate keys": b'{"identity": {}, "identity": {}}',
    "no UTF-8": b'{"reason": "\xff\xfe"}',
    "null bytes": bytes(100),
    "wrong types": b'{"identity": [], "derived": 3, "files": 1, "reason": 2, "step": "x", "job": [],'
    b' "id": {},"batch": {"micro": "x"}, "fruitless": "many", "from": 3, "train/global_step": []}\n',
    "empty mapping": b"{}",
}
KINDS = ("pipe", "folder", "link to a device", "dangling link", "60 MB")


def put(path: Path, damage: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if damage == "pipe":
        os.mkfifo(path)
    elif damage == "folder":
        path.mkdir()
    elif damage == "link to a device":
        path.symlink_to("/dev/zero")
    elif damage == "dangling link":
        path.symlink_to("/nowhere/at/all")
    elif damage == "60 MB":
        with path.open("wb") as file:
            file.truncate(60_000_000)
    else:
        path.write_bytes(CONTENTS[damage])


class CannotWrite(UserError):
    """What a start makes of an OSError: FolderRefused."""


def _resumed(folder: Path) -> None:
    try:
        Journal(folder / "metrics.jsonl", 3).finish(0)
    except OSError as error:
        raise CannotWrite(str(error)) from error


def _compared(folder: Path) -> object:
    return load_runs([str(folder)])


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "evaluate": ("plan.json", _micro_batch),
    "segments": ("plan.json", lambda folder: _plan_of(folder / "checkpoints" / "step-00000001")),
    "compare": ("plan.json", _compared),
    "compare rows": ("metrics.jsonl", _compared),
    "compare config": ("config.yaml", _compared),
    "compare end": ("ended.json", _compared),
    "compare environment": ("environment.json", _compared),
    "restart": ("environment.json", is_restart),
    "ended": ("ended.json", is_restart),
    "run id": ("run.json", run_of),
    "pause": ("restarts.json", lambda folder: pause(folder, None, 1, lambda: True)),
    "best": ("best/best.json", lambda folder: _holds(folder / "best", Best("eval/loss", False))),
    "last audit": ("audit.json", lambda folder: _last_audit(folder, 3)),
    "resume of rows": ("metrics.jsonl", _resumed),
    "config": ("config.yaml", lambda folder: read_layers(folder / "config.yaml")),
    "manifest": (
        "checkpoints/step-00000001/manifest.json",
        lambda folder: newest(folder / "checkpoints", None, print),
    ),
}


SENTENCES = (UserError, NoCheckpoint, CannotWrite)


def damages(here: Path, reader: str) -> list[str]:
    """What was no sentence."""
    name, read = READERS[reader]
    wrong = []
    for number, damage in enumerate([*CONTENTS, *KINDS]):
        folder = make_run(here / str(number) / "run")
        (folder / name).unlink(missing_ok=True)
        put(folder / name, damage)
        try:
            read(folder)
        except SENTENCES as error:
            if not str(error):
                wrong.append(f"{damage}: nothing was said")
        except Exception as error:
            wrong.append(f"{damage}: {type(error).__name__}: {error}")
    return wrong


@pytest.mark.parametrize("reader", READERS)
def test_every_damage_is_a_sentence(tmp_path: Path, reader: str) -> None:
    assert damages(tmp_path, reader) == []


def test_of_an_audit_only_its_numbers_are_taken(tmp_path: Path) -> None:
    """They go into W&B's table of runs."""
    audit = dict.fromkeys((*AUDITED, GLOBAL_STEP), 1.0)
    file = tmp_path / "audit.json"

    file.write_text(json.dumps(audit | {"run/exact": "verified"}))
    assert _last_audit(tmp_path, 3) == audit
    file.write_text(json.dumps(audit | {AUDITED[0]: "none"}))
    assert _last_audit(tmp_path, 3) == {}


NONSENSE: dict[str, Any] = {
    "no files": {},
    "a negative size": {"a": {"bytes": -1, "sha256": "x"}},
    "a list": {"a": []},
    "a way out": {"../a": {"bytes": 1, "sha256": "x"}},
    "a null byte": {"a\0": {"bytes": 1, "sha256": "x"}},
}


@pytest.mark.parametrize("what", NONSENSE)
def test_sealed_nonsense(tmp_path: Path, what: str) -> None:
    """A manifest whose own hash is right."""
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    (folder / "a").write_text("a")
    (folder / MANIFEST).write_bytes(render(1, 1, NONSENSE[what]))

    with pytest.raises(Damaged):
        verify(folder)


def test_a_checkpoint_needs_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    (folder / "a").write_text("a")
    (folder / MANIFEST).write_bytes(render(1, 1, {"a": entry(folder / "a")}))

    with pytest.raises(Damaged, match=r"names no trainer\.json"):
        verify(folder, needed=("a", "trainer.json"))


def test_a_checkpoint_of_another_run_is_passed_over(tmp_path: Path) -> None:
    for step, run in ((1, "mine"), (2, None), (3, "theirs")):
        folder = tmp_path / f"step-{step:08}"
        folder.mkdir()
        (folder / "a").write_text("a")
        (folder / MANIFEST).write_bytes(render(step, 1, {"a": entry(folder / "a")}, run))
    messages: list[str] = []

    found = newest(tmp_path, "mine", messages.append, ())

    assert found == tmp_path / "step-00000002", "one of an earlier version has no id"
    assert "is of another run" in messages[0]
    assert (tmp_path / "step-00000003.foreign").is_dir()


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    for name in ("log.txt", ".plan.json.unfinished", "plan.json"):
        (tmp_path / name).symlink_to(outside)

    with pytest.raises(OSError, match="nothing is written through one"):
        open_own(tmp_path / "log.txt")
    write_atomically(tmp_path / "plan.json", b"{}")

    assert outside.read_text() == "mine"
    assert read_json(tmp_path / "plan.json") == {}
    assert not (tmp_path / ".plan.json.unfinished").exists()


def test_a_shape_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(json.dumps({"batch": {"micro": True}}))

    with pytest.raises(Unreadable, match=r"batch\.micro is True, not an integer"):
        read_json(tmp_path / "x", {"batch": {"micro": int}})
