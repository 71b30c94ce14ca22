"""FSDP2 over NCCL: the gradient, a curve, a resume, and what each GPU holds. The CPU form:
tests/distributed.
"""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.distributed.test_sharded import (
    ADAMW,
    BLOCKS,
    RAGGED,
    collectives,
    held,
    on_ranks,
    several,
)
from tests.gpu.devices import run_on
from tests.helpers import argv, distance, steps, whole_batch
from tests.test_language_model import LM

pytestmark = pytest.mark.gpus(2)


def test_the_gradient_is_that_of_the_one_big_batch(tmp_path: Path) -> None:
    names = ("step", "micro")
    given = [argv(tmp_path, *RAGGED, f"batch.sync={name}", f"name={name}") for name in names]

    for trace in run_on("cuda", 2, several, given)[0]:
        for k, ids in enumerate(steps(37, 11), 1):
            expected = whole_batch(given[0], trace.weights[k - 1], ids, cross_entropy)[1]
            assert distance(trace.gradients[k], expected) <= 1e-12


def test_weights_are_reduced_once_per_block_and_step(tmp_path: Path) -> None:
    words = ("batch.effective=16", "batch.micro=2", "duration.steps=2")

    for step in run_on("cuda", 2, collectives, argv(tmp_path, *words, *BLOCKS))[0]:
        assert step["c10d::_reduce_scatter_base_"] == 3


def test_each_gpu_holds_its_part(tmp_path: Path) -> None:
    words = ("model.args.hidden=[60]", "model.args.outputs=4", *ADAMW, "duration.steps=2")
    numbers = (30 * 6 + 30) + (2 * 60 + 2)

    assert (
        run_on("cuda", 2, held, argv(tmp_path, *words))
        == [(8 * numbers, 8 * numbers, 16 * numbers)] * 2
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_it_goes_on_from_its_own_parts_bit_for_bit(tmp_path: Path, precision: str) -> None:
    words = (
        *LM,
        "batch={effective: 6, micro: 1}",
        f"precision={precision}",
        "checkpoint.resume=auto",
    )
    whole = run_on(
        "cuda", 2, on_ranks, True, argv(tmp_path, *words, "duration={steps: 8}", "name=whole")
    )[0]
    run_on("cuda", 2, on_ranks, True, argv(tmp_path, *words, "duration={steps: 4}", "name=run"))

    resumed = run_on(
        "cuda", 2, on_ranks, True, argv(tmp_path, *words, "duration={steps: 8}", "name=run")
    )[0]

    assert len(resumed.windows) == 4
    assert torch.equal(torch.from_numpy(resumed.weights[-1]), torch.from_numpy(whole.weights[-1]))
