"""The folder of a launch goes with it, and that of a launch that was killed with the next one."""

import os
import tempfile
import time
from pathlib import Path

import pytest

from train.errors import write_ending
from train.launching.scratch import NEW_SECONDS, Scratch, sweep


def age(folder: Path) -> None:
    long_ago = time.time() - 2 * NEW_SECONDS
    os.utime(folder, (long_ago, long_ago))


def test_only_what_a_killed_launch_left_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a launch that lives, one that is just starting, one that was killed, and a link of
    # somebody.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    lives = Scratch()
    age(lives.path)
    starting = tmp_path / "isobatch.starting"
    killed = tmp_path / "isobatch.killed"
    precious = tmp_path / "precious"
    for folder in (starting, killed, precious):
        folder.mkdir()
    (killed / "ended.json").write_text("{}")
    (tmp_path / "isobatch.link").symlink_to(precious)
    for folder in (killed, precious):
        age(folder)

    sweep()

    assert sorted(tmp_path.iterdir()) == sorted(
        [lives.path, starting, precious, tmp_path / "isobatch.link"]
    )
    lives.remove()
    assert not lives.path.exists()


def test_ranks_that_outlive_the_sweep_end_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOBATCH_ENDED", str(tmp_path / "isobatch.swept" / "ended.json"))

    assert write_ending("reason", 75, 5)
