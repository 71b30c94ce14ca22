"""metrics.jsonl at a resume: what is cut off, and how little is read for that."""

import json
from pathlib import Path
from typing import Any

import pytest

from train import disk
from train import metric_names as names
from train.report import journal as module
from train.report.journal import Journal


def row(step: int, **more: float) -> bytes:
    return (json.dumps({names.GLOBAL_STEP: step, "train/loss": 0.125} | more) + "\n").encode()


def evaluation(step: int) -> bytes:
    return row(step, **{"eval/loss": 1.0})


def cut(path: Path, step: int, owed: bool = False) -> int:
    journal = Journal(path, step, owed)
    journal.finish(0)
    return journal.last_removed


@pytest.mark.parametrize("size", [1, 50, 64, 1000, 2**20])
def test_lines_from_the_end_are_those_from_the_start(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    for content in (
        b"",
        b"\n",
        b"a",
        b"a\n\nbb\r\nccc\n",
        b"x" * 200 + b"\n" + b"y\n" * 30 + b"torn",
    ):
        path.write_bytes(content)
        with path.open("rb") as file:
            pieces = list(disk.lines_from_end(file, size))

        assert b"".join(line for _, lines in reversed(pieces) for line in lines) == content
        for start, lines in pieces:
            assert content[start:].startswith(b"".join(lines))
        if size > 200:
            assert [line for _, lines in pieces for line in lines] == content.splitlines(
                keepends=True
            )


@pytest.mark.parametrize("owed", [False, True])
@pytest.mark.parametrize("size", [70, 400, 2**20])
def test_rows_after_the_checkpoint_are_cut_off(
    tmp_path: Path,
    size: int,
    owed: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two attempts have written already; the second was killed in the middle of a row, after the
    first's step 12.
    """
    path = tmp_path / "metrics.jsonl"
    monkeypatch.setattr(module, "lines_from_end", lambda file: disk.lines_from_end(file, size))
    first = b"".join(
        row(step) + (evaluation(step) if step % 5 == 0 else b"") for step in range(1, 31)
    )
    path.write_bytes(first)

    assert cut(path, 12) == 30
    kept = b"".join(
        row(step) + (evaluation(step) if step % 5 == 0 else b"") for step in range(1, 13)
    )
    assert path.read_bytes() == kept

    second = b"".join(map(row, range(13, 21))) + evaluation(20)
    path.write_bytes(kept + second + row(21) + b"nonsense\n" + row(22)[:-9])
    assert cut(path, 20, owed) == 21
    assert path.read_bytes() == kept + (second.removesuffix(evaluation(20)) if owed else second)
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == b"nonsense\n"
    assert "1 line put aside" in capsys.readouterr().err

    path.write_bytes(kept + second[:-5] + b"\n" + row(21))  # damaged between rows that stay
    assert cut(path, 21, owed) == 0
    assert path.read_bytes() == kept + second.removesuffix(evaluation(20)) + row(21)


def test_a_long_file_is_read_from_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = b"".join(row(step) for step in range(1, 100_001))
    path.write_bytes(whole)
    parsed = 0

    def counting(line: bytes) -> Any:
        nonlocal parsed
        parsed += len(line)
        return disk.parse(line)

    monkeypatch.setattr(module, "parse", counting)
    place = path.stat().st_ino

    assert cut(path, 99_990) == 100_000

    assert path.read_bytes() == whole[: whole.index(row(99_991))]
    assert path.stat().st_ino == place, "it was written anew"
    assert len(whole) > 4 * 2**20
    assert parsed <= 2 * (2**20 + 100)
