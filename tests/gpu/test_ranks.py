"""Two ranks over NCCL: one reduction of each bucket per step, and nobody waits for one that is
gone.
"""

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.campaigns.faults import jobs, ranks, training, waiting
from tests.campaigns.faults.row import command, seconds_since_fault, train
from tests.gpu.devices import gpu_environment, run_on
from tests.helpers import argv
from tests.test_synchronisation import SEVERAL_BUCKETS, counting
from train.accumulate import compute_gradient
from train.checkpoint.commit import complete
from train.checkpoint.manifest import name_of, step_of
from train.main import main

pytestmark = pytest.mark.gpus(2)


@pytest.mark.parametrize("micro_steps", [1, 8])
def test_nccl_reduces_each_bucket_once_per_step(tmp_path: Path, micro_steps: int) -> None:
    """The CPU form: tests/test_synchronisation.py."""
    batch = ("data.args.size=96", "batch.effective=32", f"batch.accumulation_steps={micro_steps}")

    for _, reductions, buckets in run_on(
        "cuda", 2, counting, argv(tmp_path, *SEVERAL_BUCKETS, *batch)
    ):
        assert buckets[2] == buckets[3] >= 2
        assert reductions == buckets


@pytest.fixture(name="over_nccl")
def ranks_over_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of the campaign of faults, each rank on a GPU of its own. Their CPU form:
    tests/campaigns.
    """
    monkeypatch.setattr(jobs, "rank_environment", gpu_environment)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def fill_the_device() -> None:
    """A true out-of-memory: torch asks the driver for twice what the card has."""
    ranks.fired("fill_the_device")
    device = torch.device("cuda", torch.cuda.current_device())
    torch.empty(
        2 * torch.cuda.get_device_properties(device).total_memory, dtype=torch.uint8, device=device
    )


@pytest.mark.usefixtures("over_nccl")
def test_out_of_memory_on_one_rank_ends_both(tmp_path: Path) -> None:
    codes, job = train(
        tmp_path, 2, command(tmp_path), partial(ranks.at_step, 3, fill_the_device, 1)
    )

    assert codes == [1, 1], job.told()
    assert seconds_since_fault(tmp_path) < 30
    assert "rank 1 ran out of memory in step 3, in a micro-batch of 8 (cuda:1 with " in job.told(1)
    assert "CUDA out of memory. Tried to allocate" in job.told(1)
    assert "Run: the same command with one of these" in job.told(1)
    assert "Traceback" not in job.told(1)
    assert "another rank is gone" in job.told(0) or "rank 1 ran out of memory" in job.told(0), (
        job.told(0)
    )


@pytest.mark.usefixtures("over_nccl")
def test_stopped_and_killed_in_a_window(tmp_path: Path) -> None:
    """SIGTERM: saved, 75. SIGKILL: the other is gone in time. Both resume bit for bit."""
    training.inside_a_window(tmp_path, full=True)


@pytest.mark.usefixtures("over_nccl")
def test_a_rank_that_exits_raises_or_is_killed(tmp_path: Path) -> None:
    for name, action in {
        "exits": ranks.leave,
        "raises": ranks.fail,
        "is-killed": ranks.kill,
    }.items():
        own = tmp_path / name
        own.mkdir()
        codes, job = train(own, 2, command(own), partial(ranks.at_step, 7, action, 1))
        assert all(codes), f"{name}: {codes}"
        assert seconds_since_fault(own) < 30
        assert [path.name for path in complete(own / "run" / "checkpoints")] == [name_of(5)], (
            job.told()
        )


@pytest.mark.usefixtures("over_nccl")
def test_a_hang_is_told_with_the_right_rank(tmp_path: Path) -> None:
    """The others wait in a read of the device, where no Python code runs."""
    own = tmp_path / "stopped"
    own.mkdir()

    seconds = waiting._stopped(own, 1)

    assert seconds < waiting.DEADLINE + 30


@pytest.mark.usefixtures("over_nccl")
def test_sigusr1_of_a_scheduler_saves(tmp_path: Path) -> None:
    import signal

    words = command(
        tmp_path, "duration.steps=1000000", "checkpoint.every_steps=1000000", "log.every_steps=1000"
    )
    job = jobs.start_ranks(tmp_path, 2, ranks.train_rank, words)
    end = time.monotonic() + 120
    while not (tmp_path / "windows-0.jsonl").exists():
        assert time.monotonic() < end, job.told()
        time.sleep(0.05)
    time.sleep(1)
    for number in (0, 1):
        assert job.send(number, signal.SIGUSR1)

    assert job.wait(60) == [75, 75], job.told()
    assert step_of(complete(tmp_path / "run" / "checkpoints")[-1]) > 0


class Hungry:
    """Mean squared error, and an evaluation that asks for more than any device has."""

    columns = ("inputs", "labels")

    def loss_weight(self, batch: Any) -> float:
        return float(len(batch["labels"]))

    def loss_sum(self, model: Any, batch: Any) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(
            model(batch["inputs"]), batch["labels"], reduction="sum"
        )

    def eval_sums(self, model: Any, batch: Any) -> Any:
        on_gpu = batch["inputs"].device.type == "cuda"
        # On a CPU the allocator of the host is asked: 2**60 bytes.
        size = 2**43 if on_gpu else 2**60
        torch.empty(size, dtype=torch.uint8, device=batch["inputs"].device)
        return {"loss": (self.loss_sum(model, batch), 1.0)}


def trained(arguments: list[str]) -> int:
    os.environ["HF_HUB_OFFLINE"] = "1"
    return main(arguments, "accumulate", compute_gradient)


def test_out_of_memory_in_the_last_evaluation_leaves_the_last_step(tmp_path: Path) -> None:
    given = ("task=tests.gpu.test_ranks.Hungry", "data.eval_fraction=0.2", "duration={steps: 4}")

    assert run_on("cuda", 2, trained, argv(tmp_path, *given)) == [1, 1]

    assert step_of(complete(tmp_path / "run" / "checkpoints")[-1]) == 4
