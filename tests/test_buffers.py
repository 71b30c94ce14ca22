"""Buffers that follow the data are each rank's own: an evaluation, a save and a resume leave them
so.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.helpers import argv, rows
from train.accumulate import compute_gradient
from train.checkpoint.manifest import verify
from train.config import load
from train.loop import fit
from train.run import build


class Statistics(nn.Module):
    """Running statistics of all kinds, which the forward pass of training both follows and uses."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(6, momentum=0.3), nn.Linear(6, 3)
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("seen", torch.zeros(4, dtype=torch.bool), persistent=False)
        self.register_buffer("queue", torch.zeros(3, 6), persistent=False)
        # as the constructor has made it
        self.register_buffer("table", torch.arange(5.0), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.mean = 0.5 * self.mean + 0.5 * inputs.mean(0)  # another tensor under the name
                self.queue.copy_(self.queue.roll(1, 0))
                self.queue[0] = inputs[0]
                self.seen[int(self.norm.num_batches_tracked) % 4] = True
        centred = inputs - self.mean - 0.1 * self.queue.mean(0) + self.seen.sum()
        outputs: Tensor = self.layer(centred) + self.layer(self.norm(inputs))
        return outputs


def trained(arguments: list[str]) -> dict[str, bytes]:
    """{name: bits} of weights and buffers of this rank at the end."""
    run = build(load(arguments), "accumulate")
    fit(run, run.watch(compute_gradient))
    run.finish()
    run.close("finished", 0)
    module = run.learner.module
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor.detach().numpy().tobytes() for name, tensor in tensors.items()}


def all_trained(several: list[list[str]]) -> list[dict[str, bytes]]:
    return [trained(arguments) for arguments in several]


GIVEN = (
    "model={target: tests.test_buffers.Statistics, args: {}}",
    "data={source: tests.helpers.tiny, args: {size: 60}, eval_fraction: 0.2}",
    "batch={effective: 12, micro: 2}",
    "precision=fp32",
    "ema.decay=0.5",
)
WORLD_SIZE = 3
OFTEN, SOMETIMES = "evaluate.every_steps=1", "evaluate.every_steps=3"
AGAIN = ("name=parts", "checkpoint={resume: auto, every_steps: 2}", SOMETIMES)


def test_neither_evaluation_nor_resume_changes_them(run_ranks: Any, tmp_path: Path) -> None:
    whole = [
        argv(tmp_path, *GIVEN, "name=never", "duration={steps: 6}"),
        argv(
            tmp_path, *GIVEN, "name=often", "duration={steps: 6}", OFTEN, "evaluate.at_start=true"
        ),
        argv(
            tmp_path,
            *GIVEN,
            "name=sometimes",
            "duration={steps: 6}",
            SOMETIMES,
            "checkpoint.every_steps=1",
        ),
    ]
    parts = [argv(tmp_path, *GIVEN, *AGAIN, f"duration={{steps: {steps}}}") for steps in (3, 6)]

    ranks = run_ranks(WORLD_SIZE, all_trained, [*whole, *parts[:1]])
    resumed = run_ranks(WORLD_SIZE, trained, parts[1])  # in new processes

    for rank, (never, often, sometimes, _) in enumerate(ranks):
        assert often == never
        assert sometimes == never
        assert resumed[rank] == never
        for name in ("mean", "queue", "seen", "norm.running_mean"):
            assert rank == 0 or never[name] != ranks[0][0][name] or name == "seen", "the ranks' own"
    losses = [
        rows(tmp_path, "eval/loss", name)[-1]["eval/loss"] for name in ("never", "often", "parts")
    ]
    assert losses == losses[:1] * 3
    files = verify(tmp_path / "parts" / "checkpoints" / "step-00000006")["files"]
    assert {name for name in files if name.startswith("rank-")} == {
        f"rank-{r:05}.safetensors" for r in range(WORLD_SIZE)
    }

    main = load_file(
        tmp_path / "parts" / "checkpoints" / "step-00000006" / "rank-00000.safetensors"
    )
    assert set(main) == {"queue", "seen"}, (
        "of rank 0 only what the weights do not tell, and training has changed"
    )
    _on_fewer_ranks(tmp_path, resumed[0])


def _on_fewer_ranks(tmp_path: Path, main: dict[str, bytes]) -> None:
    """On another number of ranks rank 0's count."""
    run = build(load(argv(tmp_path, *GIVEN, *AGAIN, "duration={steps: 7}")), "accumulate")

    found = {name: buffer.numpy().tobytes() for name, buffer in run.learner.module.named_buffers()}
    run.close("measured", 0)

    assert found == {name: main[name] for name in found}
