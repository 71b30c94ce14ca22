"""The commit protocol: at any moment there is a complete checkpoint, and nothing else is taken for
one.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from train.checkpoint.choose import NoCheckpoint, abandon_newer, named, newest
from train.checkpoint.commit import SaveFailed, commit, complete
from train.checkpoint.manifest import Damaged, verify
from train.distributed.ranks import Ranks


class Killed(BaseException):
    """Stands for a SIGKILL: nothing of the program runs after it."""


def save(folder: Path, step: int, keep: int = 2, kept: Path | None = None) -> None:
    def write(path: Path) -> Sequence[str]:
        (path / "a").write_text(f"a of {step}" * 100)
        (path / "b").write_text(f"b of {step}" * 100)
        return ["a", "b"]

    commit(folder, step, keep, Ranks(), write, kept)


def steps(folder: Path) -> list[str]:
    return [path.name for path in complete(folder)]


def calls(monkeypatch: pytest.MonkeyPatch, at: Callable[[int], None]) -> None:
    """`at(n)` before and after the n-th call that changes what is on disk."""
    number = 0

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> Any:
            nonlocal number
            number += 1
            at(number)
            result = function(*args, **options)
            number += 1
            at(number)
            return result

        return watched

    for owner, name in (
        *((os, name) for name in ("fsync", "mkdir", "unlink", "rmdir")),
        *((Path, name) for name in ("rename", "write_text", "write_bytes", "mkdir", "open")),
        (shutil, "rmtree"),
    ):
        monkeypatch.setattr(owner, name, around(getattr(owner, name)))


@pytest.mark.usefixtures("leaves_files_open")  # a kill closes no file
def test_kills_at_every_point(tmp_path: Path) -> None:
    """With keep=1, a save of step 3 that is killed before its n-th call leaves step 2 or step 3,
    whole.
    """
    points, fired = 0, 0
    while True:
        folder = tmp_path / f"{points}"
        folder.mkdir()
        save(folder, 1, keep=1)
        save(folder, 2, keep=1)
        with pytest.MonkeyPatch.context() as patch:

            def at(number: int, last: int = points + 1) -> None:
                if number == last:
                    raise Killed

            calls(patch, at)
            try:
                save(folder, 3, keep=1)
                break
            except Killed:
                fired += 1
        found = newest(folder, None, print, ())
        assert found is not None
        assert found.name in ("step-00000002", "step-00000003")
        assert (found / "a").read_text() == f"a of {found.name[-1]}" * 100
        save(folder, 4, keep=1)  # the next one sweeps
        assert {path.name for path in folder.iterdir()} == {"step-00000004"}
        points += 1
    assert fired == points >= 30
    print(f"{fired} points")


def test_what_is_on_disk_before_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls, in order: a kill leaves what the kernel holds, so that only a loss of power shows
    a missing fsync.
    """
    save(tmp_path, 1)
    done: list[str] = []
    opened: dict[int, Path] = {}
    os_open, os_fsync, path_rename = os.open, os.fsync, Path.rename

    def record(verb: str, path: Path) -> None:
        done.append(f"{verb} {path.relative_to(tmp_path)}")

    def watched_open(path: Any, *args: Any, **options: Any) -> int:
        number = os_open(path, *args, **options)
        opened[number] = Path(path)
        return number

    def watched_fsync(number: int) -> None:
        record("fsync", opened[number])
        os_fsync(number)

    def watched_rename(path: Path, target: Path) -> Path:
        record("rename", path)
        return path_rename(path, target)

    def watched_write(write: Callable[..., int]) -> Callable[..., int]:
        def watched(path: Path, content: Any) -> int:
            record("write", path)
            return write(path, content)

        return watched

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", watched_open)
        patch.setattr(os, "fsync", watched_fsync)
        patch.setattr(Path, "rename", watched_rename)
        for name in ("write_text", "write_bytes"):
            patch.setattr(Path, name, watched_write(getattr(Path, name)))
        save(tmp_path, 2, keep=1)

    unfinished = ".step-00000002.unfinished"
    assert done == [
        *(f"write {unfinished}/{name}" for name in ("a", "b")),
        *(f"fsync {unfinished}/{name}" for name in ("a", "b")),
        f"write {unfinished}/manifest.json",
        f"fsync {unfinished}/manifest.json",
        f"fsync {unfinished}",
        f"rename {unfinished}",
        "fsync .",
        "rename step-00000001",  # the older one goes last
    ]


def test_a_failed_save_takes_nothing_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, keep=1)

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("train.checkpoint.commit.os.fsync", full)
        with pytest.raises(
            SaveFailed, match=r"No space left.*Complete checkpoints there: step-00000001"
        ):
            save(tmp_path, 2, keep=1)

    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_rotation_spares_the_one_resumed_from(tmp_path: Path) -> None:
    save(tmp_path, 1)

    for step in (2, 3, 4):
        save(tmp_path, step, keep=2, kept=tmp_path / "step-00000001")

    assert steps(tmp_path) == ["step-00000001", "step-00000003", "step-00000004"]


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "step-00000007").mkdir()
    (tmp_path / "step-00000008").symlink_to(tmp_path / "step-00000001")
    (tmp_path / ".step-00000009.unfinished").mkdir()
    (tmp_path / "step-9").mkdir()
    (tmp_path / "notes.txt").write_text("mine")

    assert newest(tmp_path, None, print, ()) == tmp_path / "step-00000001"
    save(tmp_path, 7)
    assert steps(tmp_path) == ["step-00000001", "step-00000007"]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / ".step-00000009.unfinished").exists()


@pytest.mark.parametrize(
    "damage", ["flipped", "truncated", "missing", "no manifest", "manifest", "link"]
)
def test_a_damaged_one_is_passed_over_aloud(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    victim = tmp_path / "step-00000002" / ("manifest.json" if "manifest" in damage else "b")
    if damage in ("flipped", "manifest"):
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    elif damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:-1])
    else:
        victim.rename(tmp_path / "elsewhere")
        if damage == "link":
            victim.symlink_to(tmp_path / "elsewhere")
    messages: list[str] = []

    found = newest(tmp_path, None, messages.append, ())

    assert found == tmp_path / "step-00000001"
    assert len(messages) == 1
    assert "step-00000002.damaged" in messages[0]
    assert newest(tmp_path, None, messages.append, ()) == found
    assert len(messages) == 1, "reported once: it has another name now"


def test_all_damaged(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
        (tmp_path / f"step-0000000{step}" / "a").write_text("")

    for _ in range(2):  # the second start must not find an empty folder
        with pytest.raises(NoCheckpoint, match="all 2 checkpoints"):
            newest(tmp_path, None, print, ())


def test_one_that_was_named_is_that_one(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path / "checkpoints", step)

    assert named(tmp_path, ()) == tmp_path / "checkpoints" / "step-00000002"
    assert named(tmp_path / "checkpoints" / "step-00000001", ()).name == "step-00000001"
    (tmp_path / "checkpoints" / "step-00000002" / "a").write_text("")
    for wrong in (tmp_path, tmp_path / "checkpoints" / "step-00000003", tmp_path / "nothing"):
        with pytest.raises(NoCheckpoint, match=r"checkpoint\.resume="):
            named(wrong, ())


def test_what_was_trained_later_is_no_future(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, keep=9)

    abandon_newer(tmp_path, tmp_path / "step-00000001")

    assert steps(tmp_path) == ["step-00000001"]
    assert (tmp_path / "step-00000003.abandoned" / "manifest.json").exists()


def test_a_manifest_names_files_of_its_folder_only(tmp_path: Path) -> None:
    from train.checkpoint.manifest import entry, render

    save(tmp_path, 1)
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "step-00000001"
    (folder / "manifest.json").write_bytes(render(1, 1, {"../secret": entry(tmp_path / "secret")}))

    with pytest.raises(Damaged, match="missing"):
        verify(folder)


def failing_rank(folder: str) -> str:
    """On rank 1 the disk is full."""
    from tests.helpers import rank_group

    ranks = rank_group()

    def write(path: Path) -> Sequence[str]:
        if ranks.rank == 1:
            raise OSError(28, "No space left on device")
        (path / "a").write_text("a")
        return ["a"]

    try:
        commit(Path(folder), 1, 1, ranks, write, None)
    except SaveFailed as error:
        return str(error)
    return "saved"


def test_all_ranks_know_that_one_failed(run_ranks: Any, tmp_path: Path) -> None:
    errors = run_ranks(2, failing_rank, str(tmp_path))

    assert all("No space left on device" in text for text in errors)
    assert "rank 1" in errors[0]
    assert list(tmp_path.iterdir()) == []
