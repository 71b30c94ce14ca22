"""A run that was killed and resumed has the bits of one that was not: on one GPU, and on two over
NCCL.
"""

from pathlib import Path

import numpy as np
import pytest

from tests.gpu.devices import ON_CPU, REPEATABLE, TWO, run_on
from tests.helpers import argv, record
from tests.test_resume import DROPOUT, OWN, repeatable, segment

GIVEN = (*OWN, "checkpoint.every_steps=3", "precision=fp32", *DROPOUT, *REPEATABLE)


@pytest.mark.parametrize(
    ("kind", "world_size", "micro"),
    [
        (ON_CPU, 1, "3"),
        pytest.param("cuda", 1, "all", marks=pytest.mark.gpus(1)),
        pytest.param("cuda", 1, "3", marks=pytest.mark.gpus(1)),
        pytest.param("cuda", 2, "all", marks=TWO),
        pytest.param("cuda", 2, "1", marks=TWO),
    ],
)
def test_the_same_bits_after_a_kill(tmp_path: Path, kind: str, world_size: int, micro: str) -> None:
    """Dropout on the device included; over NCCL its order of sums, too, which is not gloo's."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    given = (*GIVEN, f"batch.micro={micro}")

    uninterrupted = run_on(kind, world_size, segment, argv(whole, *given), "accumulate")
    before = run_on(kind, world_size, segment, argv(parts, *given), "accumulate", 9)
    after = run_on(kind, world_size, segment, argv(parts, *given), "accumulate")

    for expected, first, second in zip(uninterrupted, before, after, strict=True):
        assert max(first.ids) == 8, "the fault fired"
        assert {**first.ids, **second.ids} == expected.ids
        assert np.array_equal(second.weights, expected.weights)
        assert np.array_equal(second.moments, expected.moments)
    assert repeatable(parts) == repeatable(whole)


@pytest.mark.gpus(1)
def test_an_evaluation_with_dropout_in_the_training_moves_nothing(tmp_path: Path) -> None:
    """The CPU form: tests/test_randomness.py."""
    given = (
        "precision=fp32",
        "duration={steps: 6}",
        "data.eval_fraction=0.2",
        "model.args.dropout=0.3",
        *REPEATABLE,
    )
    plain = argv(tmp_path, *given, "name=plain")
    evaluated = argv(
        tmp_path, *given, "name=evaluated", "evaluate.every_steps=1", "evaluate.at_start=true"
    )

    [plain_run] = run_on("cuda", 1, record, plain)
    [evaluated_run] = run_on("cuda", 1, record, evaluated)

    for ours, expected in zip(evaluated_run.weights, plain_run.weights, strict=True):
        assert np.array_equal(ours, expected)
