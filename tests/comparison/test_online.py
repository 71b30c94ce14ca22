"""entity/project/run: a run that was tracked comes back as it was, through wandb.Api."""

import json
from pathlib import Path
from typing import Any

from tests.comparison.folders import make_run
from tests.report.test_tracker import in_process, online
from tests.wandb_server import WandbServer
from train.comparison.online import from_wandb, read_wandb
from train.comparison.read import find
from train.comparison.run import Run
from train.metric_names import EFFECTIVE_SIZE, OF_ONE_STEP


def train_and_compare(folder: str) -> dict[str, Any]:
    """In a process of its own: trains while tracked, and reads the run back."""
    import contextlib
    import io

    from train.accumulate import compute_gradient
    from train.compare import main
    from train.main import main as train_main

    config = Path(__file__).parents[2] / "configs" / "digits.yaml"
    out, screen = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(screen):
        argv = [str(config), f"output_dir={folder}", "name=tracked", "wandb.mode=online", "duration.steps=30"]
        code = train_main([*argv, "log.every_steps=2"], "accumulate", compute_gradient)
    run_id = next(iter(Path(folder, "tracked", "wandb").glob("run-*"))).name.rpartition("-")[2]
    with contextlib.redirect_stdout(out):
        path = f"tester/isobatch/{run_id}"
        compared = main([f"{folder}/tracked", path, "--json", "--assert-equal", "1e-12"])
        missing = main(["tester/isobatch/missing"])
    with contextlib.redirect_stdout(screen):
        longer = train_main([*argv, "duration.steps=32"], "accumulate", compute_gradient)
    extended = read_wandb(path)
    changes = extended.changes if isinstance(extended, Run) else [extended]
    return {"codes": [code, compared, missing, longer], "result": json.loads(out.getvalue()), "changes": changes}


def test_a_tracked_run_is_equal_to_its_folder(tmp_path: Path) -> None:
    with WandbServer() as server:
        ended = in_process(train_and_compare, online(server, tmp_path), tmp_path, folder=str(tmp_path / "runs"))

        summary, history, config = server.run.summary, server.run.history, server.run.config

    assert ended.result["codes"] == [0, 0, 2, 0], ended.stderr
    assert ended.result["changes"] == ["after step 30: duration.steps 30 -> 32"]
    assert (summary["ended/reason"], summary["ended/step"], summary["best/step"]) == ("finished", 32, 32)
    assert summary["best/accuracy"] == summary["eval/accuracy"]["last"] == summary["eval/accuracy"]["max"]
    assert (summary["progress/samples_seen"], summary["train/skipped_steps"]) == (3076, 0)
    assert summary["progress/hours"] > 0
    # Some steps had 38 samples: history has them, a table of runs has the run's 100.
    assert 38 in [row.get(EFFECTIVE_SIZE) for row in history]
    assert summary["batch/effective"] == config["derived"]["effective_batch"] == 100
    assert not set(OF_ONE_STEP) & summary.keys()
    result = ended.result["result"]
    assert result["agreements"][0]["rows"] == 15
    assert result["agreements"][0]["largest"] == 0
    assert result["same_mathematics"]
    assert result["differing_keys"] == []
    assert len(result["set_ups"]) == 1
    assert "W&B says" in ended.stderr


def test_what_is_no_run_of_ours_is_told(tmp_path: Path) -> None:
    (run,) = find([str(make_run(tmp_path / "run"))]).runs

    assert "no `derived` block" in str(from_wandb("e/p/r", "name", "finished", {"lr": 1}, run.rows))
    assert "no row" in str(from_wandb("e/p/r", "name", "finished", {"derived": dict(run.derived)}, ()))
