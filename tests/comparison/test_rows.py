"""The rows of a run: read once, whatever stands between them, and held as columns."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.comparison.folders import make_run
from train.comparison import rows as reading
from train.comparison.columns import Rows, rows_of
from train.comparison.compare import compare
from train.comparison.read import load_runs
from train.comparison.rows import parse_rows
from train.disk import open_blocks

PLACE = '"progress/samples_seen": 100, "train/global_step": 1'
LINES = [
    "{PLACE}",
    '{PLACE, "train/loss": 0.1, "train/learning_rate": 1}',
    '{PLACE, "eval/loss": 7}',
    '{PLACE, "train/loss": null}',
    '{PLACE, "train/loss": NaN}',
    '{PLACE, "train/loss": "NaN", "name": 3}',
    '{PLACE, "train/loss": 1e999, "train/grad_norm": -Infinity}',
    '{PLACE, "train/loss": 123456789012345678901234567890}',
    '{PLACE, "train/loss": {"a": [1, 2]}}',
    '{PLACE, "train/loss": true}',
    '{"train/loss": 1}',
    '{"progress/samples_seen": null}',
    "{PLACE, PLACE}",
    '{"progress/samples_seen": 1}{"progress/samples_seen": 2}',
    "[1]",
    "",
    '{"progress/samples_seen": 3, "train/lo',
]


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError(pairs)
    return dict(pairs)


def by_hand(lines: list[str]) -> tuple[list[dict[str, float]], int]:
    """The rows, and how many lines are none, by Python's own json: a key that is there twice makes
    a line damaged.
    """
    found, damaged = [], 0
    for line in lines:
        numbers: dict[str, float] = {}
        try:
            pairs = dict(json.loads(line, object_pairs_hook=once))
        except (ValueError, TypeError):
            pairs = {}
        for key, value in pairs.items():
            if "/" in key and (value is None or value == "NaN" or type(value) in (int, float)):
                numbers[key] = math.nan if value in (None, "NaN") else float(value)
        if math.isfinite(numbers.get("progress/samples_seen", math.nan)):
            found.append(numbers)
        else:
            damaged += bool(line)
    return found, damaged


@pytest.mark.parametrize("end", ["", "}\n"])
@pytest.mark.parametrize(
    "line", ['{"a/b": {"progress/samples_seen": ', '{"a/b":\n', '{"a/b": [', "{", '{"a/\xff":']
)
def test_nothing_damaged_ends_the_process(line: str, end: str) -> None:
    """Arrow's parser takes a stack frame a level, and ends the process where there is no room for
    another.
    """
    content = (line * 100_000).encode("latin-1") + b"0" + (end.strip() * 100_000 + end).encode()

    rows, (remark,) = parse_rows([content])

    assert len(rows) == 0
    assert "damaged line" in remark


@pytest.mark.parametrize("other", LINES)
@pytest.mark.parametrize("end", ["\n", ""])
def test_the_quick_way_and_the_slow_one_find_the_same(other: str, end: str) -> None:
    written = [LINES[1], LINES[2], other, *([LINES[1]] if end else [])]
    lines = [line.replace("PLACE", PLACE) for line in written]
    expected, damaged = by_hand(lines)

    rows, remarks = parse_rows([("\n".join(lines) + end).encode()])

    assert repr(list(rows)) == repr(expected)  # NaN is not equal to itself
    assert remarks == ([f"{damaged} damaged line of metrics.jsonl skipped"] if damaged else [])


def test_blocks_are_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join("x" * n + "\n" for n in range(100)))

    blocks = list(open_blocks(path, size=64))

    assert b"".join(blocks) == path.read_bytes()
    assert len(blocks) > 40
    assert all(block.endswith(b"\n") for block in blocks)


def test_each_row_is_read_once_and_held_in_few_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten runs of 1,000 rows, with a metric that never changes: 8 bytes a number that does, and 4
    for where it is.
    """
    read: list[int] = []
    slowly: list[bytes] = []
    numbers, row = reading._parse_numbers, reading._parse_line
    monkeypatch.setattr(
        reading, "_parse_numbers", lambda block: read.append(block.count(b"\n")) or numbers(block)
    )
    monkeypatch.setattr(reading, "_parse_line", lambda line: slowly.append(line) or row(line))
    for seed in range(10):
        derived = {"curve_hash": str(seed)}
        last, extra = 100_000, {"memory/weights_gib": 0.25}
        make_run(
            tmp_path / f"s{seed}",
            identity={"seed": seed},
            derived=derived,
            every=100,
            last=last,
            extra=extra,
        )

    found = load_runs([str(tmp_path)])
    compare(found.runs)

    assert len(found.runs) == 10
    assert sum(read) == 10 * (1000 + 20)
    assert slowly == []
    for run in found.runs:
        # Place, step and hours of all rows and where they are; the loss of training and of the
        # evaluation.
        assert held_bytes(run.rows) < 1020 * (3 * 8 + 4) + 1000 * (8 + 4) + 20 * (8 + 4) + 200


def held_bytes(rows: Rows) -> int:
    """By its columns, what they share once."""
    columns = [rows.column(metric) for metric in rows.metrics]
    places = {id(column.at): column.at.nbytes for column in columns}
    numbers = [8 if column.values.strides == (0,) else column.values.nbytes for column in columns]
    return sum(places.values()) + sum(numbers)


def test_an_empty_run_has_no_metrics() -> None:
    rows = rows_of([])

    assert (len(rows), rows.metrics, rows.values("train/loss").tolist()) == (0, [], [])
