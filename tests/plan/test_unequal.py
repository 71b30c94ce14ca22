"""Ranks of unequal speed: other shares of the same steps, the same curve."""

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers import Trace, argv, distance, record, rows, steps
from tests.test_resume import segment
from train.batch import PlanError, assign, make_plan, share
from train.batch.plan import in_proportion
from train.config import ConfigError, load
from train.plan.arithmetic import arithmetic
from train.plan.run_plan import RunPlan
from train.plan.steps import plan_batch
from train.plan.unequal import with_measured_shares, with_shares
from train.tasks.classification import Classification

WEIGHTS = st.lists(st.integers(1, 20), min_size=1, max_size=6)
FAST, SLOW = 0.015, 0.045  # seconds per sample


class Slow(Classification):
    """Rank 1 is slower by three, and computing is nothing beside."""

    def loss_sum(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        time.sleep(len(batch["labels"]) * (SLOW if os.environ.get("RANK") == "1" else FAST))
        return super().loss_sum(model, batch)


@given(samples=st.integers(0, 500), weights=WEIGHTS)
def test_parts_are_exact_and_as_near_as_can_be(samples: int, weights: list[int]) -> None:
    parts = in_proportion(samples, tuple(weights))

    assert sum(parts) == samples
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - samples * weight / sum(weights)) < 1


@given(samples=st.integers(0, 500), ranks=st.integers(1, 9), weight=st.integers(1, 9))
def test_equal_weights_give_the_even_split(samples: int, ranks: int, weight: int) -> None:
    assert in_proportion(samples, (weight,) * ranks) == tuple(
        share(samples, rank, ranks) for rank in range(ranks)
    )


@given(
    weights=WEIGHTS,
    effective=st.integers(1, 60),
    size=st.integers(1, 150),
    micro=st.none() | st.integers(1, 20),
    own=st.booleans(),
)
def test_each_sample_once_and_equally_many_micro_steps(
    weights: list[int], effective: int, size: int, micro: int | None, own: bool
) -> None:
    even = make_plan(effective, "all", None, world_size=len(weights), dataset_size=size)
    limits = [micro + rank for rank in range(len(weights))] if micro and own else micro
    plan = with_shares(even, weights, limits)
    alone = make_plan(effective, "all", None, world_size=1, dataset_size=size)

    for start in range(0, size, effective):
        found = [assign(plan, 0, 0, start, rank) for rank in range(len(weights))]
        ids = [i for each in found for i in each.ids.tolist()]
        assert ids == assign(alone, 0, 0, start, 0).ids.tolist()
        assert len({len(each.sizes) for each in found}) == 1
        for rank, each in enumerate(found):
            assert sum(each.sizes) == len(each.ids)
            limit = limits[rank] if isinstance(limits, list) else limits
            assert limit is None or max(each.sizes) <= limit
            assert each.largest == max(len(other.ids) for other in found)


@pytest.mark.parametrize(
    ("weights", "extra"),
    [
        ([3, 1], ("batch.micro=all",)),
        ([1, 7], ("batch.micro=[1,3]",)),
        ([5, 1, 2], ("batch.micro=2",)),
        ([3, 1], ("data.source=tests.helpers.stream", "data.shuffle_buffer=0", "batch.micro=3")),
        ([2, 1], ("batch.schedule={0: 4, 20: 9}", "batch.micro=all")),
    ],
)
def test_the_curve_is_that_of_one_rank(
    run_ranks: Any, tmp_path: Path, weights: list[int], extra: tuple[str, ...]
) -> None:
    own = ("optimizer={target: adamw, lr: 0.01}", "duration={samples: 74}", *extra)
    (whole,) = run_ranks(1, record, argv(tmp_path, *own, "batch.micro=all"))
    expected = rows(tmp_path)

    traces: list[Trace] = run_ranks(
        len(weights), record, argv(tmp_path, *own, f"batch.shares={weights}")
    )

    for k, ids in enumerate(whole.ids):
        assert [i for trace in traces for i in trace.ids[k]] == ids
    assert [len(trace.ids[0]) for trace in traces] == list(
        in_proportion(len(whole.ids[0]), tuple(weights))
    )
    for trace in traces:
        assert distance(trace.weights[-1], whole.weights[-1]) < 1e-10
    for key in ("train/loss", "train/grad_norm"):
        assert [row[key] for row in rows(tmp_path)] == pytest.approx(
            [row[key] for row in expected], rel=1e-10
        )


def test_a_slow_rank_costs_no_more_than_its_part(run_ranks: Any, tmp_path: Path) -> None:
    """16 samples at 15 and 45 ms: 12 and 4 take 180 ms each, 8 and 8 take 360. How near it comes:
    docs/results/exactness.md.
    """

    def seconds(shares: str) -> float:
        arguments = argv(
            tmp_path,
            "task=tests.plan.test_unequal.Slow",
            "batch.effective=16",
            "duration={steps: 6}",
            "data.args={size: 160}",
            f"batch.shares={shares}",
        )
        traces = run_ranks(2, record, arguments)
        assert [len(ids) for ids in traces[0].ids] == [8 if shares == "equal" else 12] * 6
        # what else runs only adds to it
        return min(row["time/step_seconds"] for row in rows(tmp_path)[2:])

    ideal = 12 * FAST
    equal, split = seconds("equal"), seconds("[3,1]")
    assert ideal <= split
    assert 2 * ideal <= equal
    assert split < 0.75 * equal


def test_shares_are_measured_once_and_kept(run_ranks: Any, tmp_path: Path) -> None:
    own = (
        "task=tests.plan.test_unequal.Slow",
        "batch.effective=8",
        "data.args={size: 37}",
        "batch.shares=measured",
    )
    own = (
        *own,
        "checkpoint={resume: auto, every_steps: 10}",
        "optimizer={target: adamw, lr: 0.01}",
        "batch.micro=3",
    )
    plain = tmp_path / "plain"
    plain.mkdir()
    (whole,) = run_ranks(
        1, record, argv(plain, "batch.effective=8", "duration={steps: 13}", own[-2])
    )

    first = run_ranks(2, segment, argv(tmp_path, *own, "duration={steps: 13}"), "accumulate", 12)
    again = run_ranks(2, segment, argv(tmp_path, *own, "duration={steps: 13}"), "accumulate")

    assert [len(first[0].ids[k]) for k in (1, 2, 3, 4, 6, 7)] == [4, 4, 4, 4, 4, 4]
    assert [(len(first[0].ids[k]), len(first[1].ids[k])) for k in (8, 9, 11)] == [(6, 2)] * 3
    assert min(again[0].ids) == 11
    assert [(len(again[0].ids[k]), len(again[1].ids[k])) for k in (11, 12, 13)] == [(6, 2)] * 3
    together = {k: first[0].ids[k] + first[1].ids[k] for k in first[0].ids}
    together |= {k: again[0].ids[k] + again[1].ids[k] for k in again[0].ids}
    assert list(together.values()) == whole.ids
    for rank in again:
        assert distance(rank.weights, whole.weights[-1]) < 1e-10
    assert "shares    measured: " in (tmp_path / "run/log.txt").read_text()


@pytest.mark.parametrize(
    ("words", "sizes", "micro"),
    [
        (["batch.shares=[3,1]", "batch.micro=16"], [[16] * 6, [6, 6, 5, 5, 5, 5]], 16),  # 96+32
        (["batch.micro=[16,8]"], [[8] * 8, [8] * 8], 8),  # 64+64
        # the first stage's: nothing else was stated
        (["batch.shares=[3,1]"], [[6] * 16, [2] * 16], 6),
        (["batch.shares=measured", "batch.micro=16"], [[16] * 6, [6, 6, 5, 5, 5, 5]], 16),
    ],
)
def test_the_stated_micro_batch_holds_in_later_stages(
    tmp_path: Path, words: list[str], sizes: list[list[int]], micro: int
) -> None:
    config = load(argv(tmp_path, "batch.schedule={0: 8, 80: 128}", *words)).config
    plan = plan_batch(config, "accumulate", 2, 1437)

    assert plan.micro == micro
    stated = (
        with_measured_shares(plan, [3, 1], config.batch)
        if config.batch.shares == "measured"
        else plan
    )
    assert [list(assign(stated.at(80), 0, 0, 80, rank).sizes) for rank in range(2)] == sizes
    assert max(assign(stated.recut(4).at(80), 0, 0, 80, 0).sizes) <= 4


def test_the_plan_shows_the_shares() -> None:
    even = make_plan(100, "all", None, world_size=2, dataset_size=500)

    assert (
        arithmetic(with_shares(even, [3, 1], None))
        == "100 samples = 75+25 on 2 ranks, in one micro-batch each"
    )
    assert arithmetic(with_shares(even, [3, 1], [24, 8])) == (
        "100 samples = 75+25 on 2 ranks, in 4 micro-batches each, of at most 19+7"
    )


def test_a_prediction_for_the_largest_share_is_held_against_no_other() -> None:
    even = make_plan(100, "all", None, world_size=2, dataset_size=500)
    prediction: Any = RunPlan.prediction
    plan = SimpleNamespace(predicted_peak=7, batch=even)

    assert prediction.fget(plan) == (7, 100, 1)
    plan.batch = with_shares(even, [3, 1], None)
    assert prediction.fget(plan) is None


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("batch.shares=[3,0]", "it takes equal, measured, or a list of whole numbers"),
        ("batch.shares=fast", "it takes equal, measured, or a list of whole numbers"),
        ("batch.micro=[4,x]", "it takes a whole number of 1 or more, a list of them"),
        (
            "batch={effective: null, micro: 4, accumulation_steps: 2, shares: [3, 1]}",
            "no effective batch follows",
        ),
    ],
)
def test_what_are_no_shares_is_refused(tmp_path: Path, override: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load(argv(tmp_path, override))


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("batch.shares=[3,1,1]", r"batch\.shares has 3 numbers, and the run 2 ranks"),
        ("batch.micro=[3]", r"batch\.micro has 1 numbers"),
        (
            "batch={shares: [3, 1], micro: 2, accumulation_steps: 2}",
            r"Set: batch\.accumulation_steps=3 \(or null\)",
        ),
    ],
)
def test_what_does_not_fit_the_ranks_is_refused(tmp_path: Path, override: str, text: str) -> None:
    config = load(argv(tmp_path, "batch.effective=8", override)).config

    with pytest.raises(PlanError, match=text):
        plan_batch(config, "accumulate", 2, 37)


def test_an_equal_plan_has_no_weights(tmp_path: Path) -> None:
    plan = plan_batch(load(argv(tmp_path)).config, "accumulate", 2, 37)

    assert plan.weights == ()
    assert np.array_equal(steps(37, 8)[0][:4], assign(plan, 0, 0, 0, 0).ids)
