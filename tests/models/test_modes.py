"""What comes in eval mode trains in train mode, unless it is frozen."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import argv, record
from train.models.init_from import freeze
from train.models.modes import set_training

HERE = "tests.models.test_modes"


class Backbone(nn.Module):
    """As a library hands it over."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.dropout = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.dropout(self.norm(self.layer(inputs)))


class Wrapper(nn.Module):
    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        self.backbone, self.head = Backbone(), nn.Linear(8, 3)
        if frozen:
            self.backbone.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.backbone(inputs))


def in_eval_mode(module: nn.Module) -> set[str]:
    return {name for name, part in module.named_modules() if not part.training}


def test_a_model_of_a_library_in_a_wrapper_trains() -> None:
    module = Wrapper()

    (note,) = set_training(module)

    assert in_eval_mode(module) == {"backbone.norm"}
    assert note == "modes     backbone (Backbone) came in eval mode, and trains in train mode"


def test_a_layer_that_keeps_statistics_is_frozen_by_eval() -> None:
    module = nn.Sequential(
        nn.Linear(2, 2), nn.BatchNorm1d(2), nn.InstanceNorm1d(2, track_running_stats=True)
    )
    module[1].eval()
    module[2].eval()

    assert set_training(module) == []
    assert in_eval_mode(module) == {"1", "2"}


def test_a_dropout_is_not() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5).eval(), nn.LayerNorm(2).eval())

    (note,) = set_training(module)

    assert in_eval_mode(module) == set()
    assert "1 (Dropout), 2 (LayerNorm)" in note


@pytest.mark.parametrize("by_config", [False, True])
def test_what_is_not_trained_stays_as_it_came(by_config: bool) -> None:
    """A teacher draws no masks."""
    module = Wrapper(frozen=not by_config)
    if by_config:
        freeze(module, ["backbone.*"])

    assert set_training(module) == []
    assert in_eval_mode(module) == {
        "backbone",
        "backbone.layer",
        "backbone.norm",
        "backbone.dropout",
    }


def test_frozen_parameters_alone_change_no_mode() -> None:
    module = Wrapper().train()
    freeze(module, ["backbone.*"])

    assert set_training(module) == []
    assert in_eval_mode(module) == set()


def test_a_model_that_is_in_eval_mode_as_a_whole_trains_as_a_whole() -> None:
    module = Backbone()

    (note,) = set_training(module)

    assert in_eval_mode(module) == set()
    assert note == "modes     Backbone came in eval mode, and trains in train mode"


def test_the_screen_names_it_and_its_dropout(tmp_path: Path) -> None:
    torch.manual_seed(0)

    record(argv(tmp_path, f"model={{target: {HERE}.Wrapper, args: {{}}}}", "duration={steps: 1}"))

    log = (tmp_path / "run" / "log.txt").read_text()
    assert "modes     backbone (Backbone) came in eval mode, and trains in train mode" in log
    assert "draws other masks for other micro-batches (backbone.dropout)" in log
