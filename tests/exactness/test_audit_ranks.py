"""The audit on several ranks: samples are exchanged, nothing changes, a faulty rank is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.exactness.audited import audits, both_sharded, other_rows, trained, trained_armed
from tests.helpers import argv
from train import metric_names as names

STEPS = ("duration={steps: 4}", "data.args.size=32")
FLIPPING = "model={target: tests.exactness.audited.Flipping, args: {wrong: %d, bit: %d, times: %d}}"
ON = "batch.audit_every_steps=2"


def both(with_: list[str], without: list[str]) -> tuple[Any, Any]:
    return trained(with_), trained(without)


CASES = {
    "ddp": (),
    "uneven": ("batch.effective=7",),
    "explicit": ("runtime.reduction=explicit", "precision=fp32"),
    "bf16 parameters": (
        "precision=bf16",
        "model.dtype=bf16",
        "optimizer={target: adamw, lr: 0.01}",
    ),
    "stream": ("data={source: tests.helpers.stream, streaming: true}",),
    "read in turn": ("data.preload=false", "data.workers=1"),
    "weights known late": ("data.preload=false", "data.workers=0", "task=tests.helpers.WeightedCE"),
    "by length": (
        "data={source: tests.data.test_by_length.texts, max_length: 24}",
        "model={target: text_conv, args: {outputs: 3}}",
        "batch={effective: 8, micro: null, micro_tokens: 60}",
    ),
}
OWN_DATA = ("stream", "by length")
ALONE = ("read in turn", "weights known late", "by length")


@pytest.mark.parametrize(
    ("ranks", "case"),
    [*((2, case) for case in CASES), (3, "ddp"), (3, "uneven"), *((1, case) for case in ALONE)],
)
def test_nothing_changes(
    run_ranks: Callable[..., list[Any]], ranks: int, case: str, tmp_path: Path
) -> None:
    given = (*STEPS, "batch.micro=2", *CASES[case])
    if case in OWN_DATA:
        given = ("duration={steps: 4}", "batch.micro=2", *CASES[case])
    with_ = argv(tmp_path, *given, "name=with", ON)
    without = argv(tmp_path, *given, "name=without")

    results = run_ranks(ranks, both, with_, without)

    assert list(audits(tmp_path, "with")) == [1, 2, 4]
    bound = 2e-2 if "bf16" in case else 2e-6 if case == "explicit" else 1e-12
    for row in audits(tmp_path, "with").values():
        assert row[names.VERIFIED] == 1
        assert row[names.SPLIT_ERROR] <= bound
    for (audited, _), (weights, _) in results:
        assert np.array_equal(audited, weights)
    assert other_rows(tmp_path, "with") == other_rows(tmp_path, "without")


@pytest.mark.parametrize(
    ("ranks", "wrong", "expected"), [(2, 1, ["rank 0", "rank 1"]), (3, 1, ["rank 1"])]
)
def test_a_rank_that_computes_wrong_is_named(
    run_ranks: Callable[..., list[Any]], ranks: int, wrong: int, expected: list[str], tmp_path: Path
) -> None:
    """One bit of one number of its gradient, in each backward pass."""
    given = (FLIPPING % (wrong, 29, 10**9), "precision=fp32", *STEPS, "batch.micro=2", ON)

    run_ranks(ranks, trained_armed, argv(tmp_path, *given, "duration={steps: 1}"))

    assert audits(tmp_path)[1][names.VERIFIED] == 0
    assert named(tmp_path, "step 1: the gradient was computed wrong") == expected


def named(folder: Path, sentence: str) -> list[str]:
    (line,) = [
        line for line in (folder / "run" / "log.txt").read_text().splitlines() if sentence in line
    ]
    return [rank for rank in ("rank 0", "rank 1", "rank 2") if rank in line]


def test_a_bit_that_flips_once_is_a_fault(
    run_ranks: Callable[..., list[Any]], tmp_path: Path
) -> None:
    """Nobody knows where: asked once more, all ranks compute the same."""
    given = (FLIPPING % (1, 29, 1), "precision=fp32", *STEPS, "batch.micro=2", ON)

    run_ranks(3, trained_armed, argv(tmp_path, *given, "duration={steps: 1}"))

    assert audits(tmp_path)[1][names.VERIFIED] == 0
    assert named(tmp_path, "step 1: the gradient was computed wrong") == []


def test_ranks_that_see_other_types_agree(
    run_ranks: Callable[..., list[Any]], tmp_path: Path
) -> None:
    """Two samples on one rank, one on the other, which sees no number of float32."""
    model = "model={target: tests.exactness.audited.NarrowForEach, args: {}}"

    run_ranks(2, trained_armed, argv(tmp_path, model, *STEPS, "batch={effective: 3, micro: 2}", ON))

    assert audits(tmp_path)[1][names.VERIFIED] == 0
    assert (
        "step 1: the gradient differs by rounding alone"
        in (tmp_path / "run" / "log.txt").read_text()
    )


@pytest.mark.parametrize("sync", ["step", "micro"])
def test_a_divided_model_is_audited(
    run_ranks: Callable[..., list[Any]], sync: str, tmp_path: Path
) -> None:
    given = (*STEPS, "batch.effective=7", "batch.micro=2", f"batch.sync={sync}")

    results = run_ranks(
        2,
        both_sharded,
        argv(tmp_path, *given, "name=with", ON),
        argv(tmp_path, *given, "name=without"),
    )

    assert list(audits(tmp_path, "with")) == [1, 2, 4]
    assert all(row[names.SPLIT_ERROR] <= 1e-12 for row in audits(tmp_path, "with").values())
    assert all(np.array_equal(audited, weights) for audited, weights in results)
    assert other_rows(tmp_path, "with") == other_rows(tmp_path, "without")
