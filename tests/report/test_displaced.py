"""A run whose folder is moved, deleted or replaced while it trains: saved beside, and nobody else's
is touched.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import argv
from train.accumulate import compute_gradient
from train.checkpoint.manifest import verify
from train.main import main
from train.report.folder import RunFolder, keep_hold, make_folder
from train.report.folder_lock import hold_folder
from train.step import Learner, update


def moved(run: Path) -> None:
    run.rename(run.with_name("elsewhere"))


def deleted(run: Path) -> None:
    shutil.rmtree(run)


def replaced(run: Path) -> None:
    """By a new run of the same name, which holds its lock and has asked for nothing."""
    run.rename(run.with_name("elsewhere"))
    make_folder(run, None).close()
    (run / "metrics.jsonl").write_text("another's")
    (run / "stop").write_text("for another")
    (run / "checkpoints").mkdir()


def lock_removed(run: Path) -> None:
    (run / ".lock").unlink()


def train(folder: Path, fault: Callable[[Path], None] | None, at: int, *overrides: str) -> int:
    """One start in this process; before the update of step `at` its folder is taken away."""
    steps = 0

    def updated(learner: Learner, rate: float) -> Any:
        nonlocal steps
        steps += 1
        if fault is not None and steps == at and os.environ.get("RANK", "0") == "0":
            fault(folder / "run")
        return update(learner, rate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.loop.update", updated)
        settings = (
            "checkpoint.resume=auto",
            "checkpoint.every_steps=3",
            "duration={steps: 8}",
            *overrides,
        )
        return main(argv(folder, *settings), "accumulate", compute_gradient)


def files(folder: Path) -> dict[str, bytes]:
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.parametrize("at", [2, 8])
@pytest.mark.parametrize("fault", [moved, deleted, replaced])
def test_it_is_saved_beside_and_goes_on(
    tmp_path: Path, fault: Callable[[Path], None], at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, fault, at) == 1

    stderr = capsys.readouterr().err
    (beside,) = tmp_path.glob("run.displaced-*")
    step = min(at + 1, 8)  # a row notices; the ranks agree one window ahead
    assert f"Saved at step {step} in {beside}" in stderr
    assert "Traceback" not in stderr
    manifest = verify(beside / "checkpoints" / f"step-{step:08}")
    assert manifest["run"] == json.loads((beside / "run.json").read_text())["id"]
    assert json.loads((beside / "ended.json").read_text())["code"] == 1
    if fault is replaced:
        another = files(tmp_path / "run")
        assert set(another) == {"run.json", "metrics.jsonl", "stop"}
        assert another["metrics.jsonl"] == b"another's"
        assert (tmp_path / "run" / ".lock").exists()
    else:
        assert not (tmp_path / "run").exists()

    assert train(tmp_path, None, 0, f"name={beside.name}") == 0
    steps = [
        json.loads(line).get("train/global_step")
        for line in (beside / "metrics.jsonl").read_text().splitlines()
    ]
    assert sorted(set(steps)) == list(range(1, 9)), "rows of before and after, none lost"


def test_only_the_lock_was_removed(tmp_path: Path) -> None:
    """A `rm runs/*/.lock` takes no run away, and lets no other in."""
    assert train(tmp_path, lock_removed, 2) == 0
    assert not list(tmp_path.glob("run.displaced-*"))


def test_who_holds_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "run"
    keep_hold(path, make_folder(path, "id"))
    folder = RunFolder(path, run="id")
    assert folder.is_held()

    (path / ".lock").unlink()
    other = hold_folder(path)  # quicker than the run
    assert not folder.is_held()

    other.close()
    folder.release()
    assert (path / ".lock").exists(), "the lock of another is not removed"


def displaced_codes(folder: str) -> tuple[int, list[str]]:
    code = train(Path(folder), replaced, 2, "checkpoint.every_steps=3")
    return code, sorted(path.name for path in Path(folder).glob("run.displaced-*/checkpoints/*"))


def test_all_ranks_leave_alike(run_ranks: Any, tmp_path: Path) -> None:
    first, second = run_ranks(2, displaced_codes, str(tmp_path))

    assert first == second == (1, ["step-00000003"])
