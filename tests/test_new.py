"""scripts/new.py never writes over anything. That what it writes trains and is exact, the guide's
test sees.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from train.new import main

ROOT = Path(__file__).parents[1]
FILES = ["hearts.py", "hearts.yaml", "test_hearts.py"]


def run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_what_it_writes_is_written_like_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["hearts"]) == 0

    for tool in (["check"], ["format", "--check"]):
        done = run(tmp_path, "-m", "ruff", *tool, "--config", str(ROOT / "pyproject.toml"), "my")
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", FILES)
def test_never_overwrites(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / file).write_text("mine")

    code = main(["hearts"])

    assert code == 2
    assert [(path.name, path.read_text()) for path in (tmp_path / "my").iterdir()] == [
        (file, "mine")
    ]
    told = capsys.readouterr().err
    assert f"got:  my/{file}" in told
    assert "run:  python scripts/new.py hearts2" in told


@pytest.mark.parametrize(
    ("name", "proposal"),
    [
        ("My-Hearts", "my_hearts"),
        ("hearts.beats", "hearts_beats"),
        ("../hearts", "hearts"),
        ("2d", "d"),
        ("class", "my_class"),
        ("", "hearts"),
        ("torch", "my_torch"),  # installed: it would be found first
        ("json", "my_json"),
        ("train", "my_train"),
    ],
)
def test_checks_the_name(
    name: str,
    proposal: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    code = main([name])

    assert code == 2
    assert list(tmp_path.iterdir()) == []
    told = capsys.readouterr().err
    assert "why: " in told
    assert told.endswith(f"run:  python scripts/new.py {proposal}\n")
    assert main([proposal]) == 0


@pytest.mark.parametrize(
    ("argv", "code"), [([], 2), (["--help"], 0), (["a", "b"], 2), (["--name"], 2)]
)
def test_says_how_it_is_used(
    argv: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == code
    assert "usage: python scripts/new.py NAME" in capsys.readouterr().err
