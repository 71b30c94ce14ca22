"""Is a resumed run the run that was not interrupted, bit for bit, on three and four ranks? Prints a
table.

python -m tests.campaigns.resume_grid

Each cell trains 12 steps in float32 with AdamW; another process group is killed before step 9, and
a third one resumes from the checkpoint of step 6. Compared: the last weights and the optimizer's
moments of every rank.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tests.conftest import run_ranks
from tests.test_resume import Segment, segment

POINTS = (
    "data={source: tests.helpers.tiny, args: {size: 1438}, eval_fraction: 0.0}",
    "data.columns={inputs: inputs, labels: labels}",
)
MODELS = {
    "digits, a perceptron": (),
    "a gate that flips with weights and data": (
        "model={target: tests.distributed.test_bucket_order.Flipping}",
        *POINTS,
    ),
    "experts, some unused on some ranks": (
        "model={target: tests.campaigns.resume_grid.Experts}",
        *POINTS,
    ),
}


class Experts(nn.Module):
    """Each sample goes to the one of eight experts that it looks most like: most micro-batches
    leave some out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 8)
        self.experts = nn.ModuleList([nn.Linear(6, 3) for _ in range(8)])

    def forward(self, inputs: Tensor) -> Tensor:
        weights, chosen = self.router(inputs).softmax(1).max(1)
        outputs = torch.zeros(len(inputs), 3, dtype=inputs.dtype)
        for number, expert in enumerate(self.experts):
            mine = (chosen == number).nonzero().flatten()
            if len(mine):
                outputs = outputs.index_add(0, mine, weights[mine, None] * expert(inputs[mine]))
        return outputs


OPTIONS = (
    *(
        "duration={steps: 12}",
        "checkpoint={every_steps: 6, resume: auto}",
        "evaluate.every_steps=null",
    ),
    *(
        "wandb.mode=disabled",
        "batch.effective=24",
        "batch.micro=all",
        "log.every_steps=100",
        "precision=fp32",
    ),
)


def uninterrupted(arguments: list[str], killed: list[str]) -> Segment:
    found = segment(arguments, "accumulate")
    segment(killed, "accumulate", 9)
    return found


def differing(
    world_size: int, accumulation_steps: int, overrides: tuple[str, ...], folder: Path
) -> tuple[int, int]:
    """(numbers that differ, numbers that were compared)"""
    given = (
        "configs/digits.yaml",
        *OPTIONS,
        f"batch.accumulation_steps={accumulation_steps}",
        *overrides,
    )
    whole, parts = ([*given, f"output_dir={folder}", f"name={name}"] for name in ("whole", "parts"))
    expected = run_ranks(world_size, uninterrupted, whole, parts)
    found = run_ranks(world_size, segment, parts, "accumulate")
    wrong = compared = 0
    for one, other in zip(found, expected, strict=True):
        assert min(one.ids) == 7, "it did not resume from step 6"
        for mine, theirs in ((one.weights, other.weights), (one.moments, other.moments)):
            wrong += int(np.count_nonzero(mine != theirs))
            compared += mine.size
    return wrong, compared


def main() -> None:
    print("| model | ranks | accumulation | numbers that differ |")
    print("|---|---|---|---|")
    for model, overrides in MODELS.items():
        for world_size in (3, 4):
            for accumulation_steps in (1, 3):
                with tempfile.TemporaryDirectory() as folder:
                    wrong, compared = differing(
                        world_size, accumulation_steps, overrides, Path(folder)
                    )
                print(
                    f"| {model} | {world_size} | {accumulation_steps} | {wrong:,} of {compared:,} "
                    "|",
                    flush=True,
                )


if __name__ == "__main__":
    main()
