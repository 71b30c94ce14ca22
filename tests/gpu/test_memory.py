"""What is logged of memory and time equals the GPU's own counters and clock."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.devices import run_on
from tests.helpers import Trace, argv, record, rows
from train import metric_names as names
from train.accumulate import compute_gradient
from train.batch.window import Window
from train.memory.peaks import GIB
from train.run import Run
from train.step import Learner

LARGE = (
    "data={source: tests.helpers.tiny, args: {size: 640}}",
    "batch={effective: 64}",
    "model={target: mlp, args: {inputs: 6, hidden: [2048, 2048], outputs: 3}}",
    "optimizer={target: adamw, lr: 0.001}",
    "precision=fp32",
    "duration={steps: 6}",
)
PEAKS = (
    names.FORWARD_BACKWARD_PEAK,
    names.OPTIMIZER_PEAK,
    names.PEAK_ALLOCATED,
    names.PEAK_RESERVED,
)


def measured(arguments: list[str]) -> dict[str, Any]:
    """What torch's counters say around step 4, and what is held once the trial is over."""
    found: dict[str, Any] = {}

    def watched(learner: Learner, window: Window) -> torch.Tensor:
        if window.k != 4:
            return compute_gradient(learner, window)
        before = torch.cuda.memory_allocated()
        losses = compute_gradient(learner, window)
        peak = torch.cuda.max_memory_allocated()
        found[names.FORWARD_BACKWARD_PEAK] = peak
        found[names.ACTIVATIONS] = peak - max(before, torch.cuda.memory_allocated())
        return losses

    def prepare(run: Run, trace: Trace) -> None:
        weights = sum(p.numel() * p.element_size() for p in run.learner.module.parameters())
        found["weights"], found["at the start"] = weights, torch.cuda.memory_allocated()
        found["reserved at the start"] = torch.cuda.memory_reserved()

    record(arguments, compute_gradient=watched, prepare=prepare)
    return found


CASES = [
    (1, ()),
    (1, ("ema.decay=0.9",)),
    (1, ("precision=bf16", "model.dtype=bf16")),
    (2, ()),
    (2, ("ema.decay=0.9",)),
]


@pytest.mark.gpus(1)
@pytest.mark.parametrize(
    ("world_size", "words"),
    [
        pytest.param(size, words, marks=pytest.mark.gpus(size), id=f"{size}{' '.join(words)}")
        for size, words in CASES
    ],
)
def test_memory_keys_are_torchs_own_counters(
    tmp_path: Path, world_size: int, words: tuple[str, ...]
) -> None:
    """The CPU form, on counters that the test holds: tests/memory/test_peaks.py."""
    of_ranks = run_on("cuda", world_size, measured, argv(tmp_path, *LARGE, *words, "batch.micro=4"))

    row = {row["train/global_step"]: row for row in rows(tmp_path, names.FORWARD_BACKWARD_PEAK)}[4]
    for name in (names.FORWARD_BACKWARD_PEAK, names.ACTIVATIONS):
        assert row[name] * GIB == pytest.approx(
            max(found[name] for found in of_ranks), rel=1e-3, abs=2**12
        )
    assert row[names.WEIGHTS] * GIB == of_ranks[0]["weights"]
    assert max(row[name] for name in PEAKS) == row[names.PEAK_RESERVED]
    # weights, an average, DDP's buckets or float32 sums of gradients: nothing of the trial
    for found in of_ranks:
        assert found["at the start"] <= 5.5 * found["weights"] + 2**20


@pytest.mark.gpus(2)
def test_accumulation_costs_no_memory_of_its_own(tmp_path: Path) -> None:
    """The peak of a step of 8 micro-batches of 4 is that of a step of one of 4: gradients lie in
    memory once.
    """
    for name, micro_steps in (("one", 1), ("eight", 8)):
        batch = f"batch={{effective: {8 * micro_steps}, accumulation_steps: {micro_steps}}}"
        run_on("cuda", 2, record, argv(tmp_path, *LARGE, batch, f"name={name}"))

    one, eight = (rows(tmp_path, names.FORWARD_BACKWARD_PEAK, name) for name in ("one", "eight"))
    for key in (names.FORWARD_BACKWARD_PEAK, names.GRADIENTS):
        assert eight[-1][key] <= one[-1][key] * 1.01


@pytest.mark.gpus(1)
def test_phases_add_up_to_the_step(tmp_path: Path) -> None:
    """Also behind a window without labels and behind a step that was left out."""
    data = "data.args={size: 640, ignored: [128, 192], nan: [256]}"
    given = (*LARGE, data, "duration={steps: 10}", "log.every_steps=1", "batch.micro=8")

    run_on("cuda", 1, record, argv(tmp_path, *given))

    parts = (
        names.DATA_SECONDS,
        names.FORWARD_BACKWARD_SECONDS,
        names.OPTIMIZER_SECONDS,
        names.REST_SECONDS,
    )
    whole = [
        row
        for row in rows(tmp_path, names.STEP_SECONDS)
        if parts[1] in row and row["train/global_step"] > 2
    ]
    assert len(whole) >= 5
    # A single row may hold a hiccup of the host, which the device does not see.
    apart = sorted(
        abs(sum(row[part] for part in parts) / row[names.STEP_SECONDS] - 1) for row in whole
    )
    assert apart[len(apart) // 2] <= 0.02


class Hungry(torch.nn.Module):
    """Needs 2 MiB a sample in its hidden layer, and as much again for the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(6, 2**19), torch.nn.Tanh(), torch.nn.Linear(2**19, 3)
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layers(inputs)


def short_of_memory(arguments: list[str], mib: int) -> None:
    """As on a GPU with so much memory: CUDA's own allocator refuses more."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(mib * 2**20 / total)
    record(arguments)


@pytest.mark.gpus(1)
@pytest.mark.parametrize(
    "world_size",
    [pytest.param(1, marks=pytest.mark.gpus(1)), pytest.param(2, marks=pytest.mark.gpus(2))],
)
def test_a_step_that_does_not_fit_is_done_again(tmp_path: Path, world_size: int) -> None:
    """The CPU form, with errors that are raised: tests/gradients/test_shrink.py.

    512 samples at once need 1 GiB for one activation alone; weights, gradients and moments: 84 MiB.
    """
    given = argv(
        tmp_path,
        *(
            "data.args.size=2048",
            "batch.effective=1024",
            "model.target=tests.gpu.test_memory.Hungry",
            "model.args={}",
        ),
        *(
            "optimizer.target=adamw",
            "optimizer.lr=0.001",
            "precision=fp32",
            "duration.steps=4",
            "batch.exact=ignore",
        ),
    )

    run_on("cuda", world_size, short_of_memory, [*given, "batch.micro=512", "name=shrunk"], 1200)
    run_on("cuda", world_size, record, [*given, "batch.micro=16", "name=small"])

    shrunk, small = rows(tmp_path, name="shrunk"), rows(tmp_path, name="small")
    assert 16 <= shrunk[-1][names.MICRO_SIZE] < 512
    assert [row[names.LOSS] for row in shrunk] == pytest.approx(
        [row[names.LOSS] for row in small], rel=1e-5
    )
