"""Which GPUs a run takes, and that a run on the CPU takes none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.gpu.devices import run_on
from tests.helpers import argv, record, rows

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.gpus(1)


def opened(arguments: list[str]) -> bool:
    record(arguments)
    return torch.cuda.is_initialized()


def test_a_run_on_the_cpu_opens_no_context(tmp_path: Path) -> None:
    """The CPU form, on a torch that is told of GPUs: tests/distributed/test_accelerator.py."""
    given = (
        "ema.decay=0.9",
        "checkpoint.every_steps=2",
        "data.eval_fraction=0.2",
        "duration={steps: 4}",
    )

    assert run_on("cpu", 1, opened, argv(tmp_path, *given)) == [False]


def visible(tmp_path: Path, value: str) -> tuple[int, str]:
    """(exit code, what was printed) of launch.sh with CUDA_VISIBLE_DEVICES=value."""
    words = argv(tmp_path, "precision=fp32", "duration={steps: 2}", "checkpoint.resume=never")
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": value,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    environment |= {"VIRTUAL_ENV": str(Path(sys.executable).parents[1]), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [str(ROOT / "launch.sh"), *words],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_the_ranks_are_the_visible_gpus(tmp_path: Path) -> None:
    uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    for value, kind in {"": "cpu", "0": "cuda", uuid: "cuda"}.items():
        code, printed = visible(tmp_path, value)
        assert code == 0, printed
        assert rows(tmp_path)[-1]["batch/world_size"] == 1
        on_gpu = "memory/peak_allocated_gib" in rows(tmp_path)[-1]
        assert on_gpu == (kind == "cuda"), printed


@pytest.mark.gpus(2)
def test_all_visible_gpus_are_used(tmp_path: Path) -> None:
    code, printed = visible(tmp_path, "0,1")

    assert code == 0, printed
    assert rows(tmp_path)[-1]["batch/world_size"] == 2


@pytest.mark.parametrize("value", ["99", "MIG-00000000-0000-0000-0000-000000000000"])
def test_a_gpu_that_is_not_there_starts_no_rank_on_one(tmp_path: Path, value: str) -> None:
    """Either a sentence, or a run on the CPU that says so: never a trace, and never another card."""
    code, printed = visible(tmp_path, value)

    assert "Traceback" not in printed
    if code == 0:
        assert "memory/peak_allocated_gib" not in rows(tmp_path)[-1]
        assert "no GPU" in printed
