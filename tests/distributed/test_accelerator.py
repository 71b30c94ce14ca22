"""Which device a run takes, and which it leaves alone. What torch answers is faked: no GPU is
needed.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers import argv
from train.accumulate import compute_gradient
from train.config import load
from train.distributed.accelerator import Unsupported, check_device, notes_on_arithmetic
from train.main import main


@pytest.mark.parametrize(
    ("device", "hip", "name"),
    [
        ("mps", None, "an Apple GPU (MPS)"),
        ("xpu", None, "an Intel GPU (XPU)"),
        ("cuda", "6.4", "an AMD GPU (ROCm)"),
        ("hpu", None, "hpu"),
    ],
)
def test_what_nothing_was_tried_on_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, device: str, hip: str | None, name: str
) -> None:
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available: torch.device(device)
    )
    monkeypatch.setattr(torch.version, "hip", hip)

    with pytest.raises(Unsupported, match=r"run: ACCELERATE_USE_CPU=true \./launch\.sh") as refused:
        check_device()

    assert f"computes on {name}." in str(refused.value)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    check_device()  # what was to be typed is accepted


@pytest.mark.parametrize("device", [torch.device("cuda"), None])
def test_an_nvidia_gpu_or_none_is_taken(
    monkeypatch: pytest.MonkeyPatch, device: torch.device | None
) -> None:
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: device)
    monkeypatch.setattr(torch.version, "hip", None)

    check_device()


def train_on_the_cpu_beside_gpus(arguments: list[str]) -> tuple[int, list[str]]:
    """(exit code, what asked for a context): torch is told that there are two GPUs, and that
    opening one is noted.
    """
    opened: list[str] = []
    cuda: Any = torch.cuda

    def refuse(*_: object) -> None:
        opened.append("a context")
        raise RuntimeError("a CPU run opens a context on a GPU")

    cuda.is_available = lambda: True
    cuda.device_count = lambda: 2
    cuda._lazy_init = refuse
    return main(arguments, "accumulate", compute_gradient), opened


def test_a_run_on_the_cpu_opens_no_context_beside_gpus(run_ranks: Any, tmp_path: Path) -> None:
    given = (
        "batch.micro=2",
        "ema.decay=0.9",
        "checkpoint.every_steps=2",
        "evaluate.every_steps=2",
        "seed=3",
    )
    arguments = argv(tmp_path, *given, "data.eval_fraction=0.2", "duration={steps: 4}")

    assert run_ranks(2, train_on_the_cpu_beside_gpus, arguments) == [(0, [])] * 2

    assert '"name": "cpu"' in (tmp_path / "run" / "environment.json").read_text()


@pytest.mark.parametrize(
    ("device", "words", "layer", "supported", "notes"),
    [
        ("cuda", ("precision=fp32",), nn.Conv2d(1, 1, 1), True, 1),
        ("cuda", ("precision=fp32", "runtime.tf32=true"), nn.Conv2d(1, 1, 1), True, 0),
        ("cuda", ("precision=bf16",), nn.Conv2d(1, 1, 1), True, 0),
        ("cuda", ("precision=fp32",), nn.Linear(1, 1), True, 0),
        ("cuda", ("precision=fp32",), nn.Conv2d(1, 1, 1), False, 0),  # a card that has no TF32
        ("cpu", ("precision=fp32",), nn.Conv2d(1, 1, 1), False, 0),
    ],
)
def test_convolutions_that_are_slower_than_by_torchs_default_are_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    words: tuple[str, ...],
    layer: nn.Module,
    supported: bool,
    notes: int,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: supported)
    config = load(argv(tmp_path, *words)).config

    said = notes_on_arithmetic(nn.Sequential(layer), torch.device(device), config)

    assert len(said) == notes
    assert all("Set: runtime.tf32=true" in note for note in said)
