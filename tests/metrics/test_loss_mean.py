"""train/loss_mean: over all applied steps since the last row, counted by hand in float64."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.helpers import Trace, argv, record, rows, steps, tiny
from tests.test_resume import segment
from train.batch.window import Batch
from train.models.mlp import MLP
from train.tasks.classification import Classification

SIZE = 37  # 8 samples a step: the fifth step of each epoch has 5
EMPTY = (16, 24)  # step 3: no label counts
NAN = 9  # in step 2, and in one step of each later epoch
DATA = f"data.args={{size: {SIZE}, ignored: {list(EMPTY)}, nan: [{NAN}]}}"
GIVEN = (
    DATA,
    "task=tests.metrics.test_loss_mean.TwoTerms",
    "optimizer.max_grad_norm=0.1",
    "duration={steps: 11}",
)
# skip on host, on device
OPTIMIZERS = ("optimizer={target: sgd, lr: 0.5}", "optimizer={target: adamw, lr: 0.05}")


class TwoTerms(Classification):
    """Cross-entropy of all labels, and the squares of the logits of those of class 0."""

    coefficients: ClassVar = {"labels": 1.0, "squares": 0.25}

    def loss_weight(self, batch: Batch) -> dict[str, float]:  # type: ignore[override]
        labels = batch["labels"]
        return {"labels": float((labels >= 0).sum()), "squares": float((labels == 0).sum())}

    def loss_sum(self, model: Any, batch: Batch) -> dict[str, Tensor]:  # type: ignore[override]
        logits, labels = model(batch["inputs"]), batch["labels"]
        return {
            "labels": cross_entropy(logits, labels, ignore_index=-100, reduction="sum"),
            "squares": (logits.square().sum(1) * (labels == 0)).sum(),
        }


def counted_by_hand(trace: Trace, every: int) -> dict[int, float]:
    """{step of a row: mean over the applied steps since the row before}."""
    data = tiny(SIZE, EMPTY, [NAN]).with_format("torch", dtype=torch.float64)[:]
    module = MLP(inputs=6, hidden=[8], outputs=3).double()
    losses, weights, found = np.zeros(2), np.zeros(2), {}
    last = len(trace.weights) - 1
    for k, ids in enumerate(steps(SIZE, 8, epochs=3)[:last], start=1):
        nn.utils.vector_to_parameters(torch.from_numpy(trace.weights[k - 1]), module.parameters())
        logits, labels = module(data["inputs"][ids.tolist()]), data["labels"][ids.tolist()].long()
        own = [
            cross_entropy(logits, labels, ignore_index=-100, reduction="sum").item(),
            logits[labels == 0].square().sum().item(),
        ]
        if np.isfinite(own).all():
            losses += own
            weights += [int((labels != -100).sum()), int((labels == 0).sum())]
        if k % every == 0 or k == last:
            if weights.any():
                means = np.divide(losses, weights, out=np.zeros(2), where=weights > 0)
                found[k] = means[0] + 0.25 * means[1]
            losses, weights = np.zeros(2), np.zeros(2)
    return found


def logged(folder: Path, name: str = "run") -> dict[int, float]:
    return {
        row["train/global_step"]: row["train/loss_mean"]
        for row in rows(folder, "train/loss_mean", name)
    }


def record_both(arguments: list[list[str]]) -> list[Trace]:
    return [record(each) for each in arguments]


@pytest.mark.parametrize(("world_size", "optimizer"), [(1, OPTIMIZERS[0]), (2, OPTIMIZERS[1])])
def test_every_applied_step_since_the_last_row(
    run_ranks: Any, tmp_path: Path, world_size: int, optimizer: str
) -> None:
    given = (*GIVEN, optimizer, "batch.micro=3")
    several = [
        argv(tmp_path, *given, f"log.every_steps={every}", f"name=every{every}") for every in (4, 1)
    ]

    seldom, always = run_ranks(world_size, record_both, several)[0]

    assert seldom.skipped_steps == 2
    expected = counted_by_hand(seldom, 4)
    assert [*expected] == [4, 8, 11]
    assert logged(tmp_path, "every4") == pytest.approx(expected, rel=1e-12)
    step_losses = {
        row["train/global_step"]: row["train/loss"] for row in rows(tmp_path, name="every4")
    }
    apart = [abs(step_losses[k] / mean - 1) for k, mean in expected.items() if k in step_losses]
    assert max(apart) > 0.02, "the fixture could not tell the mean from the last step"
    text = (tmp_path / "every4" / "log.txt").read_text()
    assert all(f" ({mean:.4f})  lr" in text for mean in expected.values())
    each = logged(tmp_path, "every1")
    assert each == pytest.approx(counted_by_hand(always, 1), rel=1e-12)
    assert not {2, 3} & each.keys(), "no step was applied: there is no mean"


def test_a_stop_between_two_rows_changes_nothing(run_ranks: Any, tmp_path: Path) -> None:
    """Killed before step 8, resumed from the checkpoint of step 6: the row of step 8 is over steps
    5 to 8.
    """
    own = (*GIVEN, OPTIMIZERS[1], "log.every_steps=4", "checkpoint={resume: auto, every_steps: 3}")
    run_ranks(2, segment, argv(tmp_path, *own, "name=whole"), "accumulate")
    expected = logged(tmp_path, "whole")
    assert [*expected] == [4, 8, 11]

    for world_size in (2, 3):
        resumed = argv(tmp_path, *own, f"name=resumed{world_size}")
        run_ranks(2, segment, resumed, "accumulate", 8)
        run_ranks(world_size, segment, resumed, "accumulate")

    assert logged(tmp_path, "resumed2") == expected, "bit for bit"
    assert logged(tmp_path, "resumed3") == pytest.approx(expected, rel=1e-10)
