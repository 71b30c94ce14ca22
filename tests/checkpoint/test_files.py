"""What a model and a run hold is saved and comes back, or is refused before the first step."""

import json
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import train
from tests.helpers import argv
from train.accumulate import compute_gradient
from train.checkpoint.files import (
    NotSavable,
    check_savable,
    read_state,
    read_tensors,
    read_value,
    write_state,
    write_value,
)
from train.main import main


class Odd(nn.Module):
    """Extra state of all kinds, tied weights, pieces of one table."""

    def __init__(self, extra: Any = None) -> None:
        super().__init__()
        self.layer, self.twin = nn.Linear(6, 3), nn.Linear(6, 3)
        self.twin.weight = self.layer.weight
        self.extra = extra or {
            "steps": 0,
            1: (2.5, None),
            "1": [True],
            "kept": {"a": torch.zeros(2), "b": "text"},
        }
        table = torch.arange(6.0)
        self.register_buffer("low", table[:3])
        self.register_buffer("high", table[3:])

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and isinstance(self.extra, dict):
            self.extra["steps"] += 1
            self.extra["kept"]["a"] = self.extra["kept"]["a"] + 1
        outputs: Tensor = self.layer(inputs) + self.twin(inputs) + self.high.sum()
        return outputs

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


class Rotary(Odd):
    """With a type that safetensors does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("phase", torch.tensor([1j, 2.0], dtype=torch.complex128))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and all(
            same(*pair) for pair in zip(one, other, strict=True)
        )
    return type(one) is type(other) and one == other


def test_a_model_comes_back_as_it_was(tmp_path: Path) -> None:
    module, other = Rotary(), Rotary()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.add_(1)

    check_savable(module)
    write_state(tmp_path, module, {"counts": {1: module.phase, "1": [module.low]}})
    read_tensors(tmp_path / "model.safetensors", other)

    ours = {name: x for name, x in module.state_dict().items() if isinstance(x, Tensor)}
    assert same({name: x for name, x in other.state_dict().items() if isinstance(x, Tensor)}, ours)
    assert same(read_state(tmp_path), {"counts": {1: module.phase, "1": [module.low]}})


def test_values_come_back_as_they_were(tmp_path: Path) -> None:
    value = {
        1: torch.ones(2),
        "1": torch.zeros(2),
        "a": {"b": torch.ones(1)},
        "a/b": torch.zeros(1),
        "t": (1, [None]),
    }

    write_value(tmp_path / "a.json", tmp_path / "a.safetensors", value)

    assert same(read_value(tmp_path / "a.json", tmp_path / "a.safetensors"), value)


@pytest.mark.parametrize("extra", [deque([1]), {"handle": object()}, {(1, 2): 3}, {"b": b"bytes"}])
def test_what_no_save_could_hold_is_refused_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: Any
) -> None:
    with pytest.raises(NotSavable, match=r"'_extra_state'.*get_extra_state\(\)"):
        check_savable(Odd(extra))


def test_a_secret_in_the_state_is_refused_before_the_first_step_and_never_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_TOKEN", "Zq7kanary9X-01")
    state = {"_extra_state": {"seen": ["Zq7kanary9X-01", 1.5]}}

    with pytest.raises(NotSavable, match=r"'_extra_state'.*get_extra_state\(\).*holds a secret"):
        check_savable(Odd(state["_extra_state"]))

    write_value(tmp_path / "a.json", tmp_path / "a.safetensors", state)  # one that came later
    assert read_value(tmp_path / "a.json", tmp_path / "a.safetensors") == state
    assert "holds a secret" in capsys.readouterr().err


class Broken(nn.Linear):
    def __init__(self) -> None:
        super().__init__(6, 3)

    def get_extra_state(self) -> Any:
        return object()

    def set_extra_state(self, state: Any) -> None:
        pass


def test_the_run_ends_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(
        argv(tmp_path, "model={target: tests.checkpoint.test_files.Broken, args: {}}"),
        "accumulate",
        compute_gradient,
    )

    assert code == 2
    assert "a checkpoint cannot hold '_extra_state'" in capsys.readouterr().err
    assert not list((tmp_path / "run").rglob("metrics.jsonl"))


def test_sparse_is_refused() -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("sparse", torch.eye(3).to_sparse())

    with pytest.raises(NotSavable, match="'sparse'"):
        check_savable(module)


def test_extra_state_is_resumed_and_kept_beside_the_final_weights(tmp_path: Path) -> None:
    given = (
        "model={target: tests.checkpoint.test_files.Odd, args: {}}",
        "checkpoint={resume: auto, every_steps: 2}",
    )
    finals = []
    for name, cuts in (("whole", [5]), ("parts", [3, 5])):
        for steps in cuts:
            arguments = argv(
                tmp_path, *given, f"name={name}", "precision=fp32", f"duration={{steps: {steps}}}"
            )
            assert main(arguments, "accumulate", compute_gradient) == 0
        finals.append(train.load(tmp_path / name, trust=True))

    assert finals[0].extra["steps"] > 5  # those of the trial before the first step too
    assert json.loads((tmp_path / "whole" / "final" / "model.extra_state.json").read_text())
    assert finals[1].extra["kept"]["b"] == "text"
    torch.testing.assert_close(finals[1].layer.weight, finals[0].layer.weight, rtol=0, atol=0)
