"""The average of the weights is that of a loop by hand in float64, whatever was skipped, and from
the first step on.
"""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers import argv, flat, record, rows
from train.config import load
from train.distributed.ranks import Ranks
from train.distributed.replicated import Replicated
from train.evaluation.ema import Ema, EmaError
from train.loop import fit
from train.run import Run, build
from train.setup import Learner

DECAY = 0.75


def averaged_by_hand(weights: list[Any], skipped: set[int], decay: float) -> Any:
    """weights[k]: after step k. The first applied update sets the average, each later one moves it."""
    average, begun = weights[0].astype(np.float64), False
    for k in range(1, len(weights)):
        if k not in skipped:
            average = (
                decay * average + (1 - decay) * weights[k]
                if begun
                else weights[k].astype(np.float64)
            )
            begun = True
    return average


@pytest.mark.parametrize("target", ["adamw", "sgd", "{target: adamw, args: {fused: false}}"])
@pytest.mark.parametrize("skipped", [(1,), (1, 2, 4), (3,), (1, 2, 3, 4, 5)], ids=str)
def test_is_that_of_a_loop_by_hand(tmp_path: Path, target: str, skipped: tuple[int, ...]) -> None:
    places = [8 * (k - 1) for k in skipped]
    optimizer = target if target.startswith("{") else f"{{target: {target}}}"
    given = (f"optimizer={optimizer}", "optimizer.lr=0.1", f"ema.decay={DECAY}")
    kept: list[Ema] = []

    def prepare(run: Run, trace: Any) -> None:
        kept.append(run.weights.modules["ema"])

    trace = record(
        argv(tmp_path, *given, f"data.args={{size: 40, nan: {places}}}"), prepare=prepare
    )

    assert trace.skipped_steps == len(skipped)
    expected = averaged_by_hand(trace.weights, set(skipped), DECAY)
    ours = flat(list(kept[0].parameters()))
    assert np.abs(ours - expected).max() <= 1e-15


def small_learner(module: nn.Module, dtype: torch.dtype = torch.float32) -> Learner:
    learner: Any = Learner.__new__(Learner)
    learner.parallel = Replicated(module, Ranks())
    learner.module, learner.dtype, learner.device = module, dtype, torch.device("cpu")
    learner.optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    return learner


def test_moves_in_bf16_where_a_step_of_it_is_less_than_a_digit() -> None:
    module = nn.Linear(4, 4, bias=False).to(torch.bfloat16)
    ema = Ema(small_learner(module, torch.bfloat16), decay=0.999)
    weights = []
    for k in range(1, 201):
        with torch.no_grad():
            module.weight.fill_(1 if k == 1 else 2)
        weights.append(module.weight.detach().double().numpy().copy())
        ema._update()

    expected = averaged_by_hand([weights[0], *weights], set(), 0.999)[0, 0]
    ema.state_dict()
    assert expected == pytest.approx(2 - 0.999**199, rel=1e-12)
    assert ema.module.weight.dtype == torch.bfloat16
    assert ema.module.weight[0, 0].item() == torch.tensor(expected).bfloat16().item() != 1


class Normed(nn.Module):
    """Old weight norm: its weight is computed, which torch.deepcopy refuses; beside it a map kept
    from a forward.
    """

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings(action="ignore"):
            self.layer = nn.utils.weight_norm(nn.Linear(6, 3))
        self.kept: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs)
        self.kept = [outputs]
        return outputs


def test_of_a_model_that_holds_what_it_computed(tmp_path: Path) -> None:
    model = (
        "model={target: tests.evaluation.test_ema.Normed, args: {}}",
        "data.eval_fraction=0.2",
        "ema.decay=0.0",
    )

    record(argv(tmp_path, *model))

    # With a decay of 0 the average is the model itself, so that it must evaluate alike.
    (row,) = rows(tmp_path, "eval/ema/loss")
    assert row["eval/ema/loss"] == row["eval/loss"]


class Locked(nn.Linear):
    def __init__(self) -> None:
        super().__init__(6, 3)
        self.handle = (x for x in ())


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    with pytest.raises(
        EmaError, match=r"ema\.decay=null.*cannot pickle 'generator'|cannot be copied"
    ):
        Ema(small_learner(Locked()), decay=0.9)


def test_a_checkpoint_of_torchs_own_average_is_read(tmp_path: Path) -> None:
    from torch.optim.swa_utils import AveragedModel

    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    theirs = AveragedModel(module)
    theirs.update_parameters(module)
    with torch.no_grad():
        theirs.module[0].weight.add_(1)
    ours = Ema(small_learner(module), decay=0.5)

    ours.load_state_dict(theirs.state_dict())
    ours._update()

    expected = (theirs.module[0].weight + module[0].weight) / 2
    torch.testing.assert_close(ours.module[0].weight.detach(), expected.detach(), rtol=0, atol=1e-7)
    wrong = {name: value for name, value in theirs.state_dict().items() if "0.weight" not in name}
    with pytest.raises(EmaError, match=r"no average of 0\.weight"):
        ours.load_state_dict(wrong)


def test_resumes_where_it_was(tmp_path: Path) -> None:
    given = (
        "ema.decay=0.9",
        "checkpoint={resume: auto, every_steps: 2}",
        "optimizer={target: adamw, lr: 0.1}",
    )
    nan = "data.args={size: 40, nan: [0]}"
    finals = []
    for name, cuts in (("whole", [5]), ("parts", [1, 3, 5])):
        for steps in cuts:
            run = build(
                load(argv(tmp_path, *given, nan, f"name={name}", f"duration={{steps: {steps}}}")),
                "accumulate",
            )
            from train.accumulate import compute_gradient

            fit(run, run.watch(compute_gradient))
            run.finish()
            run.close("finished", 0)
        finals.append((tmp_path / name / "final" / "ema.safetensors").read_bytes())

    assert finals[0] == finals[1]
    assert not math.isnan(rows(tmp_path, name="whole")[-1]["train/loss"])
