"""A micro-batch of one sample, which BatchNorm in train mode cannot take, is told before the first
step.
"""

import re
from pathlib import Path

import pytest
from torch import Tensor, nn

from tests.helpers import argv
from train.accumulate import compute_gradient
from train.main import main


class Normalised(nn.Module):
    """(samples, 6) -> (samples, 3)"""

    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
        if frozen:
            self.layers[1].eval()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)


MODEL = "model={target: tests.exactness.test_lone_sample.Normalised, args: {}}"


def start(folder: Path, *overrides: str, model: str = MODEL) -> int:
    return main(argv(folder, model, *overrides), "accumulate", compute_gradient)


@pytest.mark.parametrize(
    ("overrides", "expected", "remedy"),
    [
        # 37 = 4 x 9 + 1: the last step of an epoch is one sample.
        (
            ["batch.effective=9"],
            "step 5 takes 1 sample, the tail of an epoch, on 1 rank",
            "data.drop_tail=true",
        ),
        # 37 = 4 x 8 + 5, and 5 in micro-batches of at most 2 are 2+2+1.
        (
            ["batch.effective=8", "batch.micro=2"],
            "micro-batches of 2+2+1",
            "batch.effective=8 batch.micro=3",
        ),
        (
            ["batch.effective=7", "batch.micro=2", "data.drop_tail=true"],
            "step 1 takes 7 samples on 1 rank",
            "batch.micro=3",
        ),
        (
            ["batch={micro: 1, accumulation_steps: 8}"],
            "micro-batches of 1+1+1",
            "batch.effective=8 batch.micro=",
        ),
    ],
)
def test_refused_with_what_to_type(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    expected: str,
    remedy: str,
) -> None:
    assert start(tmp_path, *overrides) == 2

    stderr = capsys.readouterr().err
    assert expected in stderr
    assert remedy in stderr
    assert "(layers.1)" in stderr
    assert not (tmp_path / "run").exists()
    typed = re.search(r"(batch.effective=\d+ batch.micro=\d+)", stderr)
    if typed:  # the line to paste trains a whole epoch
        others = [override for override in overrides if not override.startswith("batch")]
        assert start(tmp_path, *others, *typed[1].split()) == 0


@pytest.mark.parametrize(
    ("overrides", "model"),
    [
        (["batch.effective=9", "data.drop_tail=true"], MODEL),
        (["batch.effective=9", "duration={steps: 4}"], MODEL),  # the tail is not reached
        (["batch.effective=9", "data.overfit=2", "duration={steps: 5}"], MODEL),
        (["batch.effective=9"], MODEL.replace("{}", "{frozen: true}")),
    ],
)
def test_what_meets_no_sample_alone_trains(
    tmp_path: Path, overrides: list[str], model: str
) -> None:
    assert start(tmp_path, *overrides, model=model) == 0
