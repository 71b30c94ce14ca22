"""The learning rate is a pure function of the step; its peak follows the effective batch by a rule."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.schedule import Rate, scale

ARGS = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}


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
def test_closed_forms(name: str, warmup: int, total: int, final: float, expected: list[float]) -> None:
    rate = Rate(8.0, name, warmup, total, final)

    assert [rate.at(k) for k in range(1, total + 1)] == pytest.approx(expected, rel=1e-14)


@given(
    name=st.sampled_from(["constant", "linear", "cosine"]),
    warmup=st.integers(0, 300),
    total=st.integers(1, 300),
    final=st.floats(0, 1),
)
def test_no_step_at_rate_zero_and_none_above_the_peak(name: str, warmup: int, total: int, final: float) -> None:
    rates = [Rate(0.1, name, warmup, total, final).at(k) for k in range(1, total + 1)]

    assert all(0 < rate <= 0.1 * (1 + 1e-15) for rate in rates)
    falling = rates[warmup:]
    assert all(later <= earlier * (1 + 1e-15) for earlier, later in pairwise(falling))


@pytest.mark.parametrize(
    ("rule", "lr", "args"),
    [
        ("none", 1e-3, ARGS),
        ("linear", 4e-3, ARGS),
        ("sqrt", 2e-3, ARGS),
        ("sde", 2e-3, {"betas": (0.9**4, 0.999**4), "eps": 0.5e-8, "weight_decay": 0.2}),
        ("halflife", 1e-3, {"betas": (0.9, 0.999**4), "eps": 1e-8, "weight_decay": 0.4}),
    ],
)
def test_scaling_rules_at_four_times_the_reference(rule: str, lr: float, args: dict[str, object]) -> None:
    scaled = scale(rule, 1e-3, ARGS, batch=256, reference=64)

    assert scaled.lr == pytest.approx(lr, rel=1e-15)
    assert scaled.args.keys() == args.keys()
    for name, value in args.items():
        assert scaled.args[name] == pytest.approx(value, rel=1e-15), name


@pytest.mark.parametrize("rule", ["none", "linear", "sqrt", "sde", "halflife"])
@given(batch=st.integers(1, 10_000), reference=st.integers(1, 10_000))
def test_there_and_back_is_where_it_started(rule: str, batch: int, reference: int) -> None:
    args = {"betas": (0.999, 0.999999), "eps": 1e-8, "weight_decay": 0.1}  # ** 10,000 stays above underflow
    there = scale(rule, 1e-3, args, batch, reference)

    back = scale(rule, there.lr, there.args, reference, batch)

    assert back.lr == pytest.approx(1e-3, rel=1e-12)
    for name, value in args.items():
        assert back.args[name] == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize(("rule", "batch", "reference"), [("linear", 64, 64), ("sde", 64, None), ("none", 256, 64)])
def test_nothing_to_scale(rule: str, batch: int, reference: int | None) -> None:
    scaled = scale(rule, 1e-3, ARGS, batch, reference)

    assert (scaled.lr, scaled.args, scaled.arithmetic) == (1e-3, ARGS, ())


def test_a_number_that_the_optimizer_does_not_have_is_not_made_up() -> None:
    assert scale("sde", 0.1, {"weight_decay": 0.0}, 256, 64).args == {"weight_decay": 0.0}


def test_the_arithmetic_is_told() -> None:
    assert scale("sqrt", 1e-3, ARGS, 256, 64).arithmetic == (
        "lr 0.002 = 0.001 * sqrt(kappa), kappa = 256/64 = 4 (sqrt)",
    )
    assert scale("sde", 1e-3, ARGS, 256, 64).arithmetic == (
        "lr 0.002 = 0.001 * sqrt(kappa), kappa = 256/64 = 4 (sde)",
        "betas (0.9, 0.999) -> (0.6561, 0.996) (sde)",
        "eps 1e-08 -> 5e-09 (sde)",
        "weight_decay 0.1 -> 0.2 (sde)",
    )
