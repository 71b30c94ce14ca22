"""The learning rate is a pure function of the step."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.batch import make_plan
from train.config.recipe import Duration, Schedule
from train.config.schema import Config
from train.optim.lr_schedule import Rate
from train.plan.steps import plan_rate


@pytest.mark.parametrize(
    ("name", "warmup", "total", "final", "expected"),
    [
        ("constant", 0, 4, 0.0, [8, 8, 8, 8]),
        ("constant", 2, 4, 0.0, [4, 8, 8, 8]),
        ("linear", 0, 4, 0.0, [8, 6, 4, 2]),
        ("linear", 2, 6, 0.0, [4, 8, 8, 6, 4, 2]),
        ("linear", 0, 4, 0.5, [8, 7, 6, 5]),
        ("cosine", 0, 4, 0.0, [8, 4 + 4 * math.sqrt(0.5), 4, 4 - 4 * math.sqrt(0.5)]),
        ("cosine", 1, 3, 0.0, [8, 8, 4]),
        ("cosine", 0, 2, 0.25, [8, 5]),
        ("cosine", 4, 4, 0.0, [2, 4, 6, 8]),
        ("linear", 8, 4, 0.0, [1, 2, 3, 4]),
    ],
)
def test_closed_forms(
    name: str, warmup: int, total: int, final: float, expected: list[float]
) -> None:
    rate = Rate(8.0, name, warmup, total, final)

    assert [rate.at(k) for k in range(1, total + 1)] == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    ("shape", "warmup", "decay", "final", "expected"),
    [
        ("linear", 0, 4, 0.0, [8, 8, 8, 6, 4, 2]),
        ("linear", 2, 2, 0.0, [4, 8, 8, 8, 8, 4]),
        ("linear", 1, 2, 0.5, [8, 8, 8, 8, 8, 6]),
        ("1-sqrt", 0, 4, 0.0, [8, 8, 8, 4, 8 - 8 * math.sqrt(0.5), 8 - 8 * math.sqrt(0.75)]),
        ("linear", 0, 0, 0.0, [8] * 6),
        ("linear", 4, 4, 0.0, [2, 4, 6, 8, 8, 4]),  # the warm-up comes first
    ],
)
def test_warm_up_stable_decay(
    shape: str, warmup: int, decay: int, final: float, expected: list[float]
) -> None:
    rate = Rate(8.0, "wsd", warmup, 6, final, decay, shape)

    assert [rate.at(k) for k in range(1, 7)] == pytest.approx(expected, rel=1e-14)


@given(
    name=st.sampled_from(["constant", "linear", "cosine", "wsd"]),
    warmup=st.integers(0, 300),
    total=st.integers(1, 300),
    final=st.floats(0, 1),
    decay=st.integers(0, 300),
    shape=st.sampled_from(["linear", "1-sqrt"]),
)
def test_no_step_at_rate_zero_and_none_above_the_peak(
    name: str, warmup: int, total: int, final: float, decay: int, shape: str
) -> None:
    rates = [
        Rate(0.1, name, warmup, total, final, min(decay, total), shape).at(k)
        for k in range(1, total + 1)
    ]

    assert all(0 < rate <= 0.1 * (1 + 1e-15) for rate in rates)
    falling = rates[warmup:]
    assert all(later <= earlier * (1 + 1e-15) for earlier, later in pairwise(falling))


def test_the_decay_of_a_run_is_a_share_of_its_steps() -> None:
    batch = make_plan(4, "all", None, world_size=1, dataset_size=40)
    schedule = Schedule(name="wsd", decay_fraction=0.25, decay_shape="1-sqrt")

    rate = plan_rate(Config(schedule=schedule, duration=Duration(steps=20)), batch, 1.0)

    assert rate == Rate(1.0, "wsd", 0, 20, 0.0, 5, "1-sqrt")
