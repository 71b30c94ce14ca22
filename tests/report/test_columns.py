"""The columns of a run in a table of runs are figures of the whole run: counted here anew, from
metrics.jsonl.
"""

import json
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import argv
from train import metric_names
from train.accumulate import compute_gradient
from train.comparison.cost import cost_of
from train.comparison.read import load_runs
from train.main import main
from train.memory import peaks
from train.report.best import Best
from train.report.columns import Columns
from train.report.folder import RunFolder
from train.report.run_figures import RunFigures
from train.report.tracker import Tracker
from train.report.wandb_run import ONLY_CURVES
from train.step import ComputeGradient

GIB = 2**30


@pytest.fixture
def summary(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The summary of the run, as W&B would have it; the peak of the process falls from row to row."""
    summary: dict[str, Any] = {}

    def forget_end(_: Tracker) -> None:
        for name in [name for name in summary if name.startswith("ended/")]:
            del summary[name]

    falling: Iterator[int] = count(40 * GIB, -GIB)
    monkeypatch.setattr(peaks, "peak_rss_bytes", lambda: next(falling))
    monkeypatch.setattr(peaks, "reset_peak_rss", lambda: True)
    monkeypatch.setattr(Tracker, "summarise", lambda self, scalars: summary.update(scalars))
    monkeypatch.setattr(Tracker, "forget_end", forget_end)
    return summary


def train(
    folder: Path, steps: int, *more: str, gradient: ComputeGradient = compute_gradient
) -> int:
    settings = [
        "data.eval_fraction=0.2",
        "checkpoint={resume: auto, every_steps: 2}",
        f"duration={{steps: {steps}}}",
    ]
    return main(argv(folder, *settings, "evaluate.every_steps=1", *more), "accumulate", gradient)


def counted(folder: Path) -> dict[str, float]:
    rows = [
        json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    first, *_, last = [row for row in rows if "train/learning_rate" in row]
    samples = last["progress/samples_seen"] - first["progress/samples_seen"]
    seconds = (last["progress/hours"] - first["progress/hours"]) * 3600
    best = min((row for row in rows if "eval/loss" in row), key=lambda row: float(row["eval/loss"]))
    return {
        "run/peak_rss_gib": max(
            row["memory/peak_rss_gib"] for row in rows if "memory/peak_rss_gib" in row
        ),
        "run/samples_per_second": samples / seconds,
        "best/loss": best["eval/loss"],
        "best/step": best["train/global_step"],
    }


def assert_columns(summary: dict[str, Any], expected: dict[str, float]) -> None:
    assert {name: summary.get(name) for name in expected} == pytest.approx(expected, rel=1e-12)


def test_they_are_those_of_all_rows_after_a_resume_too(
    summary: dict[str, Any], tmp_path: Path
) -> None:
    assert train(tmp_path, 5, "batch.micro=4") == 0
    first = dict(summary)
    assert_columns(first, counted(tmp_path))

    # The newest checkpoint is lost: step 5 is trained again, and the rows that were of it before
    # count no more.
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000005")
    summary.clear()  # an offline run begins without a summary where it resumes
    assert train(tmp_path, 8, "batch.micro=4") == 0

    assert_columns(summary, counted(tmp_path))
    # of the first start: it fell ever since
    assert summary["run/peak_rss_gib"] == first["run/peak_rss_gib"]
    (run,) = load_runs([str(tmp_path / "run")]).runs
    assert cost_of(run).samples_per_second == pytest.approx(
        summary["run/samples_per_second"], rel=1e-12
    )
    planned = {
        "effective_batch": 8,
        "micro_batch": 4,
        "accumulation_steps": 2,
        "world_size": 1,
        "exact": "verified",
    }
    assert {name: summary[f"run/{name}"] for name in planned} == planned
    assert summary["ended/reason"] == "finished"


def test_a_resume_reads_no_row(summary: dict[str, Any], tmp_path: Path) -> None:
    """The checkpoint holds what they add up to: rows that stay are not looked at."""
    assert train(tmp_path, 4) == 0
    expected = counted(tmp_path)
    summary.clear()
    path = tmp_path / "run" / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    changed = json.dumps(json.loads(lines[0]) | {"memory/peak_rss_gib": 999.0}).encode() + b"\n"
    path.write_bytes(changed * 3000 + b"nonsense\n" + lines[1] * 10_000 + b"".join(lines[2:]))

    assert train(tmp_path, 5) == 0

    assert summary["run/peak_rss_gib"] == expected["run/peak_rss_gib"]
    assert b"nonsense" in path.read_bytes()


def test_a_run_that_begins_from_another_counts_its_own_rows(
    summary: dict[str, Any], tmp_path: Path
) -> None:
    assert train(tmp_path, 4) == 0
    shutil.move(tmp_path / "run", tmp_path / "other")
    summary.clear()

    begun = f"checkpoint.resume={tmp_path / 'other' / 'checkpoints' / 'step-00000004'}"
    assert train(tmp_path, 8, begun) == 0

    assert_columns(
        summary, {key: value for key, value in counted(tmp_path).items() if key.startswith("run/")}
    )


def test_a_run_that_goes_on_has_not_ended(summary: dict[str, Any], tmp_path: Path) -> None:
    assert train(tmp_path, 2) == 0
    assert summary["ended/step"] == 2
    seen = []

    def watched(*args: Any) -> Any:
        seen.append(set(summary))
        return compute_gradient(*args)

    assert train(tmp_path, 3, gradient=watched) == 0

    assert "run/effective_batch" in seen[-1]
    assert not [name for name in seen[-1] if name.startswith("ended/")]


def test_an_audit_that_fails_after_a_resume_forgets_no_verified_step(
    summary: dict[str, Any], tmp_path: Path
) -> None:
    def columns_at(step: int) -> Columns:
        tracker = Tracker.__new__(Tracker)  # its methods are those of the fixture
        return Columns(
            derived={},
            best=Best.of(None),
            figures=RunFigures(),
            tracker=tracker,
            folder=RunFolder(tmp_path),
            step=step,
        )

    failed = {
        metric_names.SPLIT_ERROR: 0.1,
        metric_names.VERIFIED: 0.0,
        metric_names.GLOBAL_STEP: 100,
    }
    verified = {
        metric_names.SPLIT_ERROR: 1e-7,
        metric_names.VERIFIED: 1.0,
        metric_names.GLOBAL_STEP: 10,
    }
    columns_at(0).log(verified | {metric_names.VERIFIED_STEP: 10})
    summary.clear()

    columns_at(50).log(failed)

    assert summary[metric_names.VERIFIED] == 0
    assert summary[metric_names.VERIFIED_STEP] == 10
    summary.clear()
    columns_at(150)
    assert summary[metric_names.VERIFIED_STEP] == 10


def test_what_is_a_curve_is_no_column() -> None:
    assert {metric_names.PEAK_RSS, metric_names.MICRO_SIZE, metric_names.STEP_SECONDS} <= set(
        ONLY_CURVES
    )
    assert not {metric_names.LOSS, metric_names.EVAL_LOSS, metric_names.RUN_PEAK_RSS} & set(
        ONLY_CURVES
    )
