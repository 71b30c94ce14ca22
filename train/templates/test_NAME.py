"""NAME learns, and its gradient does not depend on how a step is split."""

import json
from pathlib import Path

from train.accumulate import compute_gradient
from train.main import main
from train.verify import main as verify

CONFIG = str(Path(__file__).with_name("NAME.yaml"))


def test_the_gradient_is_that_of_the_whole_batch() -> None:
    assert verify([CONFIG]) == 0


def test_it_learns(tmp_path: Path) -> None:
    argv = [
        CONFIG,
        f"output_dir={tmp_path}",
        "name=run",
        "wandb.mode=disabled",
        "evaluate.at_start=true",
    ]

    code = main(argv, "accumulate", compute_gradient)

    assert code == 0
    rows = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    losses = [row["eval/loss"] for row in rows if "eval/loss" in row]
    assert losses[-1] < losses[0] / 10
