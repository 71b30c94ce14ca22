"""A start makes its folder at once: whatever ends it, the same command starts, and nobody else is
in its way.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import argv
from train.checkpoint.commit import commit
from train.distributed.ranks import Ranks
from train.main import main
from train.report.claim import _sweep
from train.report.folder import RUN, make_folder
from train.report.folder_lock import LOCK, hold_folder
from train.standard import compute_gradient


class Killed(BaseException):
    """Stands for a SIGKILL: nothing of the program runs after it."""


FUNCTIONS = (
    *((os, name) for name in ("open", "ftruncate", "write", "close", "unlink", "mkdir")),
    *((Path, name) for name in ("mkdir", "rename", "replace", "unlink", "lstat")),
    (shutil, "rmtree"),
)


def stop_at(patch: pytest.MonkeyPatch, last: int, error: BaseException) -> list[int]:
    """`error` at the `last` call that changes what is on disk, counted before and after it; [last]
    once it fired.
    """
    number, fired = 0, list[int]()

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> Any:
            nonlocal number
            number += 1
            if number == last or (number > last and isinstance(error, Killed)):
                fired.append(last)
                raise error
            result = function(*args, **options)
            number += 1
            if number == last:
                fired.append(last)
                raise error
            return result

        return watched

    for owner, name in FUNCTIONS:
        patch.setattr(owner, name, around(getattr(owner, name)))
    return fired


@pytest.mark.usefixtures("leaves_files_open")  # a kill closes no file
@pytest.mark.parametrize(
    "error", [Killed(), OSError(errno.ENOSPC, "No space left on device")], ids=["kill", "disk full"]
)
def test_a_claim_that_ends_anywhere_blocks_nothing(tmp_path: Path, error: BaseException) -> None:
    """Before and after its n-th call: the folder is not there, or whole, and the next start leaves
    nothing else.
    """
    points, fired = 0, [0]
    while fired:
        path = tmp_path / f"{points}" / "run"
        with pytest.MonkeyPatch.context() as patch:
            fired = stop_at(patch, points + 1, error)
            with suppress(Killed, OSError):
                make_folder(path, None).close()
        if path.exists():
            assert len(json.loads((path / RUN).read_text())["id"]) == 16
            for number in [int(each.name) for each in Path("/proc/self/fd").iterdir()]:
                close_if_of(number, path)  # a kill would
            hold_folder(path).close()
        else:
            for number in [int(each.name) for each in Path("/proc/self/fd").iterdir()]:
                close_if_of(number, path.parent)
            make_folder(path, None).close()
            assert [each.name for each in path.parent.iterdir()] == ["run"]
        assert sorted(each.name for each in path.iterdir()) == [LOCK, RUN]
        points += 1
    assert points >= 15


def close_if_of(number: int, folder: Path) -> None:
    try:
        target = str(Path(f"/proc/self/fd/{number}").readlink())
    except OSError:
        return
    if target.startswith(f"{folder.parent if folder.name == 'run' else folder}/"):
        os.close(number)


def start(folder: Path, *overrides: str) -> int:
    settings = (
        "checkpoint.resume=auto",
        "checkpoint.every_steps=2",
        "duration={steps: 2}",
        *overrides,
    )
    return main(argv(folder, *settings), "standard", compute_gradient)


@pytest.mark.parametrize(
    "place", ["train.run.open_checkpoints", "train.report.outlets._write_first_files"]
)
def test_what_fails_before_the_first_files_blocks_no_name(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ended.json alone was taken for somebody's thesis."""
    with monkeypatch.context() as patch:

        def broken(*_: Any) -> None:
            raise MemoryError("out of memory")

        patch.setattr(place, broken)
        with pytest.raises(SystemExit):
            start(tmp_path)
    assert (tmp_path / "run" / "ended.json").exists()

    assert start(tmp_path) == 0


def test_what_an_earlier_version_left_half_made(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ended.json").write_text('{"reason": "x", "code": 1, "step": 0}')

    assert start(tmp_path) == 0


@pytest.mark.parametrize("name", [".lock", "log.txt"])
def test_a_link_in_the_way_is_refused(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine\n")
    assert start(tmp_path) == 0
    (tmp_path / "run" / "ended.json").unlink()
    (tmp_path / "run" / name).unlink(missing_ok=True)
    (tmp_path / "run" / name).symlink_to(tmp_path / "mine.txt")

    assert start(tmp_path) == 2

    assert "it is a link" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "mine\n"


def test_a_damaged_plan_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(tmp_path) == 0
    (tmp_path / "run" / "plan.json").write_text("{")

    assert start(tmp_path) == 2
    stderr = capsys.readouterr().err
    assert "plan.json is damaged" in stderr
    assert "checkpoint.resume=never" in stderr
    assert start(tmp_path, "checkpoint.resume=never") == 0


def test_what_a_killed_rotation_leaves_is_swept_by_the_next_start(tmp_path: Path) -> None:
    """Also after the last save of a run, which no other save follows."""

    def write(path: Path) -> list[str]:
        (path / "a").write_text("a")
        return ["a"]

    run = tmp_path / "run"
    (run / "final" / ".model.unfinished").mkdir(parents=True)
    (run / ".plan.json.unfinished").write_text("half")
    (run / "mine.txt").write_text("mine")
    commit(run / "checkpoints", 1, 1, Ranks(), write, None)
    (run / "checkpoints" / ".step-00000000.removed").mkdir()

    _sweep(run)

    left = sorted(
        str(path.relative_to(run))
        for path in run.rglob("*")
        if path.is_file() or not any(path.iterdir())
    )
    whole = "checkpoints/step-00000001"
    assert left == [f"{whole}/a", f"{whole}/manifest.json", "final", "mine.txt"]


def test_sealed_nonsense_in_a_checkpoint_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hashes that are right, of a state that is none."""
    from train.checkpoint.manifest import MANIFEST, entry, render

    assert start(tmp_path) == 0
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    for nonsense in (
        "{}",
        "[]",
        '{"dict": [["report", 3]]}',
        '{"dict": [["optimizer", {"tensor": "nowhere"}]]}',
        "{",
    ):
        (checkpoint / "trainer.json").write_text(nonsense)
        files = {path.name: entry(path) for path in checkpoint.iterdir() if path.name != MANIFEST}
        (checkpoint / MANIFEST).write_bytes(render(2, 1, files))

        (tmp_path / "run" / "ended.json").unlink()
        assert start(tmp_path) == 1
        stderr = capsys.readouterr().err
        assert "cannot be resumed from" in stderr, stderr
        assert "Traceback" not in stderr
