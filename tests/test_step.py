"""The gradient of a step is that of the one big batch, however it is cut, and the logged loss is
its loss.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from tests.helpers import (
    Trace,
    WeightedCE,
    argv,
    distance,
    record,
    record_all,
    rows,
    steps,
    whole_batch,
)

EXACT = {"fp64": 1e-12, "fp32": 2e-6}  # measured, the worst of all below: 3e-16 and 2.4e-7
# measured: splits 2.4e-3 from each other, 5.3e-3 from float64; one rounding to bf16 is 2**-9 = 2e-3
AUTOCAST = 1e-2

TOKENS = (
    "data.source=tests.helpers.tokens",
    "data.args.size=24",
    "model.target=tests.helpers.PerToken",
    "model.args={}",
)
WEIGHTED = ("task=tests.helpers.WeightedCE",)
REGRESSION = ("task=tests.helpers.Regression", "data.source=tests.helpers.regression")
SEVERAL_LABELS = ("task=tests.helpers.SeveralLabels", "data.source=tests.helpers.several_labels")
SMOOTHED = ("task.target=classification", "task.args.label_smoothing=0.1")

weighted_cross_entropy = partial(cross_entropy, weight=WeightedCE.class_weights)
smoothed_cross_entropy = partial(cross_entropy, label_smoothing=0.1)


def worst(
    arguments: list[str], trace: Trace, size: int, effective: int, loss: Any = cross_entropy
) -> float:
    """The largest distance of a step's gradient from one backward pass over its whole batch at the
    same weights.
    """
    batches = steps(size, effective)
    assert [window.samples for window in trace.windows] == [len(ids) for ids in batches]
    expected = [
        whole_batch(arguments, trace.weights[i], ids, loss)[1] for i, ids in enumerate(batches)
    ]
    return max(
        distance(trace.gradients[k], gradient) for k, gradient in enumerate(expected, start=1)
    )


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_factorisation_of_a_batch(run_ranks: Any, tmp_path: Path, world_size: int) -> None:
    share = 32 // world_size
    cuts = [
        (micro, precision)
        for micro in (1, 2, 4, 8, 16, 32)
        if micro <= share
        for precision in EXACT
    ]
    given = ("data.args.size=64", "batch.effective=32")
    several = [
        argv(tmp_path, *given, f"batch.micro={micro}", f"precision={precision}")
        for micro, precision in cuts
    ]

    ranks = run_ranks(world_size, record_all, several)

    for run, (arguments, (micro, precision)) in enumerate(zip(several, cuts, strict=True)):
        traces = [rank[run] for rank in ranks]
        assert all(trace.sizes == [[micro] * (share // micro)] * 2 for trace in traces)
        assert worst(arguments, traces[0], 64, 32) <= EXACT[precision]
        for trace in traces:
            assert all(np.array_equal(trace.gradients[k], traces[0].gradients[k]) for k in (1, 2))


@pytest.mark.parametrize(
    ("world_size", "size", "effective", "micro", "overrides", "loss"),
    [
        pytest.param(1, 15, 8, 2, (), cross_entropy, id="ragged micro-batch: 15 samples by 2, K=4"),
        pytest.param(1, 40, 16, 4, (), cross_entropy, id="ragged window: 10 micro-batches, K=4"),
        pytest.param(2, 80, 32, 4, (), cross_entropy, id="ragged window on 2 ranks"),
        pytest.param(2, 37, 37, 4, (), cross_entropy, id="37 samples on 2 ranks"),
        pytest.param(3, 37, 10, 2, (), cross_entropy, id="uneven on 3 ranks"),
        pytest.param(2, 1, 1, 1, (), cross_entropy, id="1 sample on 2 ranks"),
        pytest.param(3, 5, 4, 1, (), cross_entropy, id="a tail smaller than the ranks"),
        pytest.param(1, 24, 10, 3, TOKENS, cross_entropy, id="tokens"),
        pytest.param(2, 24, 10, 2, TOKENS, cross_entropy, id="tokens on 2 ranks"),
        pytest.param(3, 24, 10, 1, TOKENS, cross_entropy, id="tokens on 3 ranks"),
        pytest.param(
            1,
            24,
            8,
            2,
            (*TOKENS, "data.args.ignored=[2,4]"),
            cross_entropy,
            id="micro-batch without labels",
        ),
        pytest.param(
            2,
            24,
            8,
            4,
            (*TOKENS, "data.args.ignored=[4,8]"),
            cross_entropy,
            id="rank without labels",
        ),
        pytest.param(
            2, 37, 10, 2, WEIGHTED, weighted_cross_entropy, id="class-weighted on 2 ranks"
        ),
        pytest.param(
            2, 37, 10, 2, SMOOTHED, smoothed_cross_entropy, id="label smoothing on 2 ranks"
        ),
        pytest.param(2, 37, 10, 2, REGRESSION, mse_loss, id="MSE on 2 ranks"),
        pytest.param(
            2,
            37,
            10,
            2,
            SEVERAL_LABELS,
            binary_cross_entropy_with_logits,
            id="several labels on 2 ranks",
        ),
    ],
)
def test_equals_the_whole_batch(
    run_ranks: Any,
    tmp_path: Path,
    world_size: int,
    size: int,
    effective: int,
    micro: int,
    overrides: tuple[str, ...],
    loss: Any,
) -> None:
    batch = (f"data.args.size={size}", f"batch.effective={effective}", f"batch.micro={micro}")
    several = [argv(tmp_path, f"precision={precision}", *overrides, *batch) for precision in EXACT]

    ranks = run_ranks(world_size, record_all, several)

    for k, ids in enumerate(steps(size, effective)):
        assert sorted(i for traces in ranks for i in traces[0].ids[k]) == sorted(ids.tolist())
        assert len({len(traces[0].sizes[k]) for traces in ranks}) == 1, (
            "another number of micro-steps"
        )
    for traces in ranks:
        for arguments, trace, tolerance in zip(several, traces, EXACT.values(), strict=True):
            assert worst(arguments, trace, size, effective, loss) <= tolerance


def test_a_window_without_a_label_moves_nothing(run_ranks: Any, tmp_path: Path) -> None:
    empty = 2
    arguments = argv(
        tmp_path,
        "data.args={size: 32, ignored: [8, 16]}",
        "batch.micro=2",
        "optimizer={target: adamw, lr: 0.1}",
    )

    traces = run_ranks(2, record, arguments)

    logged = {row["train/global_step"]: row for row in rows(tmp_path, "train/empty_steps")}
    assert [logged[k]["train/empty_steps"] for k in (1, 2, 3, 4)] == [0, 1, 1, 1]
    assert "train/loss" not in logged[empty]
    assert logged[4]["progress/samples_seen"] == 32
    assert all(None not in row.values() for row in logged.values())  # a NaN is written as null
    for trace in traces:
        assert [window.weights["loss"] for window in trace.windows] == [8, 0, 8, 8]
        assert sorted(trace.gradients) == [1, 3, 4]
        moved = [
            not np.array_equal(a, b) for a, b in zip(trace.weights, trace.weights[1:], strict=False)
        ]
        assert moved == [True, False, True, True]
        assert np.array_equal(trace.weights[-1], traces[0].weights[-1])
        assert np.isfinite(trace.weights[-1]).all()


@pytest.mark.parametrize("world_size", [1, 2])
def test_bf16_autocast_splits_agree(run_ranks: Any, tmp_path: Path, world_size: int) -> None:
    given = ("precision=bf16", "data.args.size=32", "batch.effective=32")
    several = [argv(tmp_path, *given, f"batch.micro={micro}") for micro in ("all", "8", "3", "1")]

    whole, *split = run_ranks(world_size, record_all, several)[0]

    reference = whole_batch(several[0], whole.weights[0], steps(32, 32)[0], cross_entropy)[1]
    assert 1e-4 < distance(whole.gradients[1], reference) < AUTOCAST, "no autocast, or a wrong one"
    assert max(distance(trace.gradients[1], whole.gradients[1]) for trace in split) <= AUTOCAST


@pytest.mark.parametrize(
    ("world_size", "overrides", "loss"),
    [
        (1, (), cross_entropy),
        (2, (), cross_entropy),
        (2, TOKENS, cross_entropy),
        (2, WEIGHTED, weighted_cross_entropy),
    ],
)
def test_logged_loss_is_that_of_the_whole_window(
    run_ranks: Any, tmp_path: Path, world_size: int, overrides: tuple[str, ...], loss: Any
) -> None:
    arguments = argv(
        tmp_path,
        *overrides,
        "data.args.size=20",
        "data.args.loud=[6,8]",
        "batch.micro=2",
        "optimizer.lr=5",
    )

    trace = run_ranks(world_size, record, arguments)[0]

    logged = [row["train/loss"] for row in rows(tmp_path)]
    batches = steps(20, 8)
    expected = [
        whole_batch(arguments, trace.weights[i], ids, loss)[0] for i, ids in enumerate(batches)
    ]
    assert logged == pytest.approx(expected, rel=1e-12)
    last_parts = [
        whole_batch(arguments, trace.weights[i], ids[-2:], loss)[0] for i, ids in enumerate(batches)
    ]
    differences = [abs(part / whole - 1) for part, whole in zip(last_parts, expected, strict=True)]
    assert max(differences) > 0.2, "the fixture could not tell the last micro-batch from the window"


@pytest.mark.parametrize(("world_size", "micro"), [(1, "2"), (2, "1"), (3, "all")])
def test_logged_counts_are_the_true_ones(
    run_ranks: Any, tmp_path: Path, world_size: int, micro: str
) -> None:
    traces = run_ranks(
        world_size, record, argv(tmp_path, "data.args.size=20", f"batch.micro={micro}")
    )

    logged = rows(tmp_path)
    assert [row["batch/effective_size"] for row in logged] == [8, 8, 4]
    assert [row["progress/samples_seen"] for row in logged] == [8, 16, 20]
    assert [row["batch/world_size"] for row in logged] == [world_size] * 3
    assert [row["batch/micro_size"] for row in logged] == [
        max(map(max, sizes)) for sizes in zip_sizes(traces)
    ]
    assert [row["batch/accumulation_steps"] for row in logged] == [
        len(sizes) for sizes in traces[0].sizes
    ]


def zip_sizes(traces: list[Trace]) -> list[tuple[list[int], ...]]:
    return list(zip(*(trace.sizes for trace in traces), strict=True))
