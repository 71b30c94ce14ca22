"""A run that went on with other mathematics is never called the same as one that had them from the
start.
"""

import json
from pathlib import Path
from typing import Any

from tests.helpers import argv, rows
from train.accumulate import compute_gradient
from train.comparison.compare import compare
from train.comparison.comparison import Comparison
from train.comparison.read import load_runs
from train.main import main

COSINE = ("schedule.name=cosine", "checkpoint={resume: auto, every_steps: 2}")


def start(folder: Path, name: str, steps: int, *more: str) -> None:
    given = argv(folder, f"name={name}", f"duration={{steps: {steps}}}", *COSINE, *more)
    assert main(given, "accumulate", compute_gradient) == 0


def derived(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name / "plan.json").read_text())["derived"]
    return found


def compared(folder: Path, *names: str) -> Comparison:
    return compare(load_runs([str(folder / name) for name in names]).runs)


def test_a_run_that_was_extended_is_not_one_that_was_so_long_from_the_start(tmp_path: Path) -> None:
    start(tmp_path, "whole", 6)
    for name in ("extended", "extended_too"):
        start(tmp_path, name, 4)
        start(tmp_path, name, 6)

    rates = [
        [row["train/learning_rate"] for row in rows(tmp_path, name=name)]
        for name in ("whole", "extended")
    ]
    assert rates[0] != rates[1], "the fixture has one curve"
    result = compared(tmp_path, "whole", "extended")
    assert not result.same_mathematics
    assert result.verdict.startswith("Other mathematics (history differs)")
    (key,) = result.keys
    assert key.values == ("-", "after step 4: duration.steps 4 -> 6")
    assert (
        "extended resumed with other mathematics after step 4: duration.steps 4 -> 6"
        in result.notes
    )
    assert len({derived(tmp_path, name)["curve_hash"] for name in ("whole", "extended")}) == 2
    assert len({derived(tmp_path, name)["recipe_hash"] for name in ("whole", "extended")}) == 2
    # Their own kind are the same, and so is a run that was merely stopped and resumed.
    assert compared(tmp_path, "extended", "extended_too").same_mathematics


def test_from_another_run_and_all_the_same(tmp_path: Path) -> None:
    start(tmp_path, "first", 4)
    start(tmp_path, "second", 6, f"checkpoint.resume={tmp_path / 'first'}")

    (begun, gone_on) = derived(tmp_path, "second")["segments"]
    assert (begun["after_step"], begun["curve_hash"]) == (
        0,
        derived(tmp_path, "first")["curve_hash"],
    )
    assert gone_on["after_step"] == 4
    assert gone_on["changed"] == {"duration.steps": [4, 6]}
    assert gone_on["resumed_from"] == str(tmp_path / "first" / "checkpoints" / "step-00000004")

    start(tmp_path, "second", 8, f"checkpoint.resume={tmp_path / 'second'}", "optimizer.lr=0.1")

    *before, last = derived(tmp_path, "second")["segments"]
    assert before == [begun, gone_on]
    assert last["changed"] == {"optimizer.lr": [0.5, 0.1], "duration.steps": [6, 8]}
    start(tmp_path, "fresh", 8, "optimizer.lr=0.1")
    result = compared(tmp_path, "fresh", "second")
    assert not result.same_mathematics
    expected = (
        "after step 4: duration.steps 4 -> 6; after step 6: optimizer.lr 0.5 -> 0.1, "
        "duration.steps 6 -> 8"
    )
    assert any(note.endswith(expected) for note in result.notes), result.notes


def test_what_was_trained_again_does_not_count_twice(tmp_path: Path) -> None:
    """Back to step 2 with another rate: of what was trained after it, nothing is left."""
    start(tmp_path, "run", 4)
    start(
        tmp_path,
        "run",
        4,
        "optimizer.lr=0.1",
        f"checkpoint.resume={tmp_path / 'run/checkpoints/step-00000002'}",
    )
    start(
        tmp_path,
        "run",
        4,
        "optimizer.lr=0.2",
        f"checkpoint.resume={tmp_path / 'run/checkpoints/step-00000002'}",
    )

    begun, gone_on = derived(tmp_path, "run")["segments"]
    assert (begun["after_step"], gone_on["after_step"]) == (0, 2)
    assert gone_on["changed"] == {"optimizer.lr": [0.5, 0.2]}


def test_a_run_that_did_not_change_has_one_segment(tmp_path: Path) -> None:
    start(tmp_path, "first", 4)
    start(tmp_path, "again", 4, f"checkpoint.resume={tmp_path / 'first/checkpoints/step-00000002'}")

    (only,) = derived(tmp_path, "again")["segments"]
    assert (
        only["curve_hash"]
        == derived(tmp_path, "again")["curve_hash"]
        == derived(tmp_path, "first")["curve_hash"]
    )
    assert compared(tmp_path, "first", "again").same_mathematics


def test_a_checkpoint_whose_run_is_gone(tmp_path: Path) -> None:
    start(tmp_path, "first", 4)
    checkpoint = tmp_path / "first" / "checkpoints" / "step-00000002"
    (tmp_path / "first" / "plan.json").unlink()

    start(tmp_path, "again", 4, f"checkpoint.resume={checkpoint}")
    start(tmp_path, "whole", 4)

    result = compared(tmp_path, "whole", "again")
    assert not result.same_mathematics
