"""Parameters that a rank does not use: found before the first step, or ended on all ranks by one
sentence.
"""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.helpers import argv, distance, flat, record, rows, steps, tiny
from train.accumulate import compute_gradient
from train.main import main

HERE = "tests.distributed.test_unused_parameters"


class Experts(nn.Module):
    """Mixtral's block in small: each sample goes through its best two experts, in a loop over those
    that were hit.
    """

    def __init__(self, count: int = 6) -> None:
        super().__init__()
        self.router = nn.Linear(6, count)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 3)) for _ in range(count)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        weights, chosen = self.router(inputs).softmax(-1).topk(2)
        outputs = inputs.new_zeros(len(inputs), 3)
        for number in chosen.unique().tolist():
            samples, place = torch.where(chosen == number)
            found = self.experts[number](inputs[samples]) * weights[samples, place, None]
            outputs = outputs.index_add(0, samples, found)
        return outputs


class Loud(nn.Module):
    """`second` is for samples that are not large, as they are in the places `loud` of
    tests.helpers.tiny.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.first(inputs)
        (small,) = torch.where(inputs.abs().mean(1) < 1.8)
        return outputs.index_add(0, small, self.second(inputs[small])) if len(small) else outputs


def plain_training(weights: np.ndarray, count: int) -> tuple[list[float], list[int], np.ndarray]:
    """(losses, experts that each step used, weights after it) of plain PyTorch on one process, in
    float64.
    """
    module = Experts().double()
    nn.utils.vector_to_parameters(torch.from_numpy(weights.copy()), module.parameters())
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.05, weight_decay=0.1)
    data = tiny().with_format("torch", dtype=torch.float64)[:]
    losses, used = [], []
    for ids in steps(37, 3, 2)[:count]:
        optimizer.zero_grad()
        chosen = torch.tensor(ids)
        loss = cross_entropy(module(data["inputs"][chosen]), data["labels"][chosen].long())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        used.append(sum(expert[0].weight.grad is not None for expert in module.experts))
    return losses, used, flat(list(module.parameters()))


def weights_of(arguments: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(before, after)"""
    trace = record(arguments)
    return trace.weights[0], trace.weights[-1]


def test_experts_in_a_loop_train_as_plain_torch_does(run_ranks: Any, tmp_path: Path) -> None:
    """A batch of 3 on 2 ranks: most experts are used by one rank only, or by none, whose momentum
    must not move them.

    Nobody sets a key.
    """
    given = (
        f"model={{target: {HERE}.Experts}}",
        *(
            "optimizer={target: adamw, lr: 0.05, args: {weight_decay: 0.1}}",
            "batch={effective: 3, micro: 1}",
        ),
        "duration={steps: 20}",
    )

    found = run_ranks(2, weights_of, argv(tmp_path, *given))

    losses, used, expected = plain_training(found[0][0], 20)
    assert min(used) < 6, "all experts are used in all steps"
    assert np.allclose([row["train/loss"] for row in rows(tmp_path)], losses, rtol=1e-12)
    for _, after in found:
        assert distance(after, expected) <= 1e-12
    assert "reduction after the last micro-batch" in (tmp_path / "run" / "log.txt").read_text()


def trained(several: list[list[str]]) -> list[tuple[int, str]]:
    """(exit code, what stands on stderr) of each."""
    found = []
    for arguments in several:
        with contextlib.redirect_stderr(io.StringIO()) as told:
            code = main(arguments, "accumulate", compute_gradient)
        found.append((code, told.getvalue()))
    return found


def test_a_parameter_that_is_first_missed_later_ends_all_ranks(
    run_ranks: Any, tmp_path: Path
) -> None:
    """By one rank in step 4, with and without accumulation, and in the last step. Other ranks are
    left waiting in no reduction, nothing that was trained after it is saved, and the line that is
    told goes on from what was.
    """
    missed_at = {
        "one": (4, "batch.micro=all"),
        "two": (4, "batch.micro=2"),
        "last": (6, "batch.micro=1"),
    }
    several = []
    for name, (k, micro) in missed_at.items():
        loud = (
            f"data={{source: tests.helpers.tiny, args: {{size: 48, loud: [{8 * k - 4}, {8 * k}]}}}}"
        )
        given = (
            f"model={{target: {HERE}.Loud}}",
            loud,
            micro,
            f"name={name}",
            "optimizer.target=adamw",
        )
        several.append(
            argv(
                tmp_path,
                *given,
                "checkpoint={resume: auto, every_steps: 3}",
                "evaluate.every_steps=3",
            )
        )

    ended = [run_ranks(2, trained, [arguments]) for arguments in several]
    saved = {
        name: sorted(path.name for path in (tmp_path / name).glob("*/step-*")) for name in missed_at
    }
    ends = {
        name: json.loads((tmp_path / name / "ended.json").read_text())["code"] for name in missed_at
    }
    going_on = run_ranks(2, trained, [[*several[0], "runtime.reduction=explicit"]])
    whole = run_ranks(1, trained, [[*several[0], "name=whole"]])

    for (name, (k, _)), ([(code, told)], [(other_code, _)]) in zip(
        missed_at.items(), ended, strict=True
    ):
        assert (code, other_code) == (2, 2)
        assert (
            f"step {k}: second.weight, second.bias got no gradient in the last micro-batch of rank "
            "1" in told
        )
        assert "runtime.reduction=explicit" in told
        assert saved[name] == ["step-00000003"]
        assert ends[name] == 2, "the run was not closed"
    assert [code for of_rank in going_on for code, _ in of_rank] == [0, 0]
    assert whole[0][0][0] == 0
    curves = [[row["train/loss"] for row in rows(tmp_path, name=name)] for name in ("one", "whole")]
    assert len(curves[0]) == 6
    assert np.allclose(*curves, rtol=1e-12)
