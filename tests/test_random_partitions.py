"""Exactness where nobody has looked: random sizes, batches, micro-batches, labels and ranks against
the whole batch.

Drawn by a seeded generator, many in one process group: hypothesis would start new ranks for every
draw.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.nn.functional import cross_entropy

from tests.helpers import argv, distance, record_all, rows, steps, whole_batch

DRAWS = 14  # for each number of ranks


def drawn(folder: Path, random: np.random.Generator, name: str) -> tuple[list[str], int, int]:
    """(command line, samples, effective batch) of a run of two epochs at most, with padded tokens
    as labels.
    """
    size = int(random.integers(1, 40))
    effective = int(random.integers(1, size + 8))
    first = int(random.integers(0, size))
    split = f"batch.micro={random.integers(1, 9)}"
    if random.random() < 0.4:
        split = f"batch.accumulation_steps={random.integers(1, max(2, effective // 3 + 1))}"
    data = (
        f"{{source: tests.helpers.tokens, args: {{size: {size}, ignored: [{first}, "
        f"{first + random.integers(0, 9)}]}}}}"
    )
    overrides = (
        f"data={data}",
        "model={target: tests.helpers.PerToken, args: {}}",
        f"batch.effective={effective}",
    )
    return argv(folder, f"name={name}", *overrides, split, "duration={steps: 6}"), size, effective


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_equals_the_whole_batch(run_ranks: Any, tmp_path: Path, world_size: int) -> None:
    random = np.random.default_rng(world_size)
    cases = [drawn(tmp_path, random, f"case{i}") for i in range(DRAWS)]
    # more micro-batches than a rank has samples is refused, rightly
    cases = [
        case
        for case in cases
        if "accumulation_steps" not in case[0][-2] or case[2] >= 3 * world_size
    ]

    traces = run_ranks(world_size, record_all, [arguments for arguments, _, _ in cases])[0]

    worst, compared = 0.0, 0
    for i, ((arguments, size, effective), trace) in enumerate(zip(cases, traces, strict=True)):
        expected_steps = steps(size, effective, epochs=6)
        for k, gradient in trace.gradients.items():
            loss, expected = whole_batch(
                arguments, trace.weights[k - 1], expected_steps[k - 1], cross_entropy
            )
            worst, compared = max(worst, distance(gradient, expected)), compared + 1
            name = next(part for part in arguments if part.startswith("name=")).removeprefix(
                "name="
            )
            (row,) = (row for row in rows(tmp_path, name=name) if row["train/global_step"] == k)
            assert row["train/loss"] == pytest.approx(loss, rel=1e-12), (i, k)
    print(
        f"\n{world_size} ranks: {len(cases)} draws, {compared} gradients, worst relative error "
        f"{worst:.1e}"
    )
    assert compared >= 35
    assert worst <= 1e-12
