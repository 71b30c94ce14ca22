"""A run that fails, as W&B has it: an alert that says why, and the state failed."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.helpers import argv
from tests.report.test_tracker import online
from tests.wandb_server import WandbServer
from train.batch.window import Batch
from train.distributed.ranks import launched_rank
from train.tasks.classification import Classification

ROOT = Path(__file__).parents[2]


class Breaks(Classification):
    """Raises on the last rank, in the middle of the training: an evaluation comes before its first
    step.
    """

    is_evaluated = False
    calls = 0

    def eval_sums(self, model: Any, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        self.is_evaluated = True
        return super().eval_sums(model, batch)

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        self.calls += self.is_evaluated
        if self.calls > 2 and launched_rank() == int(os.environ["WORLD_SIZE"]) - 1:
            raise ZeroDivisionError("on purpose")
        return super().loss_sum(model, batch)


@pytest.mark.parametrize(
    ("more", "ranks", "why"),
    [
        (
            ["on_nonfinite=stop", "data.args={size: 37, nan: [20]}"],
            1,
            "the norm of the gradient is nan",
        ),
        (["task=tests.report.test_failed_online.Breaks"], 1, "ZeroDivisionError: on purpose"),
        (
            ["task=tests.report.test_failed_online.Breaks"],
            2,
            "rank 1 on ",
        ),  # rank 0 says whom it has lost, and of what
    ],
)
def test_a_run_that_fails(tmp_path: Path, more: list[str], ranks: int, why: str) -> None:
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(ranks),
    ]
    command = [
        *launch,
        "-m",
        "train.accumulate",
        *argv(tmp_path, "wandb={mode: online}", "data.eval_fraction=0.2"),
    ]
    with WandbServer() as server:
        environ = online(server, tmp_path, ACCELERATE_USE_CPU="true")
        done = subprocess.run(
            [*command, "evaluate.at_start=true", *more],
            cwd=ROOT,
            env=environ,
            capture_output=True,
            text=True,
            timeout=120,
        )

        assert done.returncode == 1
        (alert,) = server.alerts
        assert alert["title"] == "run failed"
        assert why in alert["text"]
        assert server.run.state == "failed"
        summary = server.run.summary
        assert (summary["ended/reason"], summary["ended/code"]) == (
            alert["text"].partition(": ")[2],
            1,
        )
        assert 0 < summary["ended/step"] < 5
        assert summary["best/step"] == 0
