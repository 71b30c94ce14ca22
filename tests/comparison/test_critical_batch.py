"""The noise scale against a truth that is known, and what follows from it."""

import numpy as np
import pytest

from tests.helpers_noise import NOISE, SIGNAL, TRUTH, Naive, simulate
from train.comparison.critical_batch import Averages, BreakEven, Estimate


@pytest.mark.parametrize("kind", ["equal", "unequal"])
def test_within_ten_percent_after_1000_steps(kind: str) -> None:
    averages = Averages()

    simulate(0, 1000, kind, [averages])

    found = averages.noise_scale()
    assert found
    assert found.value == pytest.approx(TRUTH, rel=0.1)
    assert 0.02 < found.error < 0.1  # the law sd(|G|^2) = 1.4 |G|^2 per step says 0.05


@pytest.mark.parametrize(
    ("kind", "ratio_of_each_step"), [("equal", True), ("unequal", True), ("unequal", False)]
)
def test_a_naive_estimator_fails_the_same_test(kind: str, ratio_of_each_step: bool) -> None:
    outside = 0
    for seed in range(5):  # a mean of ratios may come close by luck
        naive = Naive(ratio_of_each_step)
        simulate(seed, 1000, kind, [naive])
        outside += abs(naive.noise_scale() / TRUTH - 1) > 0.1

    assert outside >= 4


def test_the_standard_error_is_one() -> None:
    """Over repetitions, the true value is as far off as the estimate says."""
    found = []
    for seed in range(30):
        averages = Averages()
        simulate(seed, 300, "unequal", [averages])
        estimate = averages.noise_scale()
        assert estimate
        found.append((estimate.value / TRUTH - 1) / estimate.error)

    assert 0.7 < np.sqrt(np.mean(np.square(found))) < 1.4


def test_parameters_that_move_are_followed() -> None:
    """A noise scale that changes for good is found again, after the averages have forgotten the old
    one.
    """
    averages = Averages(smoothing=0.9)
    for value in [10.0] * 50 + [40.0] * 100:
        signal = 1.0
        noise = value * signal
        averages.add(signal + 4 * noise / 32, signal + noise / 32, 4, 32)

    found = averages.noise_scale()
    assert found
    assert found.value == pytest.approx(40, rel=1e-3)


def feed(averages: Averages, steps: int, signal: float, spread: float = 0.0) -> None:
    """Steps of 4 micro-batches of 8 samples with trace(S) = 1 and this |G|^2, give or take
    `spread`.
    """
    for step in range(steps):
        g = signal + spread * (-1) ** step
        averages.add(g + 4 / 32, g + 1 / 32, 4, 32)


def test_unknown_rather_than_wild() -> None:
    few, silent, loud, barely, alone = (Averages() for _ in range(5))
    feed(few, 9, signal=1.0)
    feed(silent, 100, signal=0.001, spread=0.1)  # |G|^2 is a tenth of its own standard error
    feed(loud, 100, signal=-0.1, spread=0.01)
    feed(barely, 100, signal=0.03, spread=0.1)  # three standard errors
    for _ in range(100):
        alone.add(1.0, 1.0, 1, 32)

    assert [each.noise_scale() for each in (few, silent, loud, alone)] == [None] * 4
    known = barely.noise_scale()
    assert known
    assert known.value == pytest.approx(1 / 0.03, rel=0.1)


def test_a_step_that_is_not_finite_counts_for_nothing() -> None:
    averages, clean = Averages(), Averages()
    feed(clean, 30, signal=1.0, spread=0.1)
    feed(averages, 15, signal=1.0, spread=0.1)
    averages.add(float("nan"), 1.0, 4, 32)
    averages.add(1.0, float("inf"), 4, 32)
    for step in range(15, 30):
        g = 1.0 + 0.1 * (-1) ** step
        averages.add(g + 4 / 32, g + 1 / 32, 4, 32)

    assert averages.noise_scale() == clean.noise_scale()


def worth(noise_scale: float, update_ms: float, **options: float) -> BreakEven:
    return BreakEven(
        Estimate(noise_scale, options.get("error", 0.0)), 8.0, 0.001, update_ms / 1000, 0.0
    )


@pytest.mark.parametrize(
    ("noise_scale", "update_ms"), [(3102, 0.1), (3102, 1.0), (791, 5.0), (64, 0.01)]
)
def test_the_break_even_number_is_the_fastest(noise_scale: float, update_ms: float) -> None:
    it, grid = worth(noise_scale, update_ms), np.geomspace(0.01, 1000, 20001)

    fastest = grid[np.argmin([it.time(k) for k in grid])]

    assert it.best == pytest.approx(fastest, rel=2e-3)


def test_the_numbers_of_the_table() -> None:
    """From an exactly solvable problem with a critical batch of 3102 samples: the best power of
    two, or next to it.
    """
    for ratio, best, measured in ((0.1, 6.2, 8), (1.0, 19.7, 32), (5.0, 44, 64)):
        found = worth(3102, ratio).best
        assert found == pytest.approx(best, rel=0.01)
        assert abs(np.log2(measured / found)) <= 1


def test_the_uncertainty_is_half_of_what_goes_in() -> None:
    it = BreakEven(Estimate(100, 0.3), 8.0, 0.001, 0.001, cost_error=0.4)

    assert it.error == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("it", "k", "text"),
    [
        (
            worth(512, 1.0),
            8,
            "about 8 micro-steps would be fastest to the same loss; whether it pays is unknown",
        ),
        (
            worth(512, 1.0, error=0.2),
            10,
            "whether it pays is unknown: the estimate cannot tell them from the 10 of",
        ),
        (
            worth(512, 1.0, error=0.2),
            11,
            "about 8 micro-steps (7 to 10) would be fastest to the same loss; the 11 of",
        ),
        (worth(512, 1.0, error=0.2), 7, "unknown: the estimate cannot tell them from the 7 of"),
        (worth(512, 1.0, error=0.2), 6, "the 6 of this run take at most 5% longer"),
        (
            worth(12, 1.0, error=0.6),
            1,
            "1 micro-step (1 to 2) would be fastest to the same loss; whether it",
        ),
        (
            worth(12, 1.0, error=0.6),
            4,
            "1 micro-step (1 to 2) would be fastest to the same loss; the 4 of this run t",
        ),
        (worth(512, 1.0, error=0.2), 32, "about 8 micro-steps (7 to 10) would be fastest"),
        (
            worth(512, 1.0, error=0.2),
            32,
            "the 32 of this run take 22% longer (estimated from a noise scale of 512 s",
        ),
        (worth(512, 1.0), 1, "the 1 of this run takes 60% longer"),
        (
            worth(16, 0.01),
            16,
            "1 micro-step would be fastest to the same loss, so it does not pay by itself; the 16",
        ),
        (worth(16, 0.01), 16, "the 16 of this run take 5.9 times as long"),
    ],
)
def test_the_sentence(it: BreakEven, k: int, text: str) -> None:
    assert text in it.sentence(k), it.sentence(k)


def test_the_problem_is_the_one_it_claims_to_be() -> None:
    """Over many samples, drawn: the mean gradient and its scatter are as the formula says."""
    averages = Averages(smoothing=0.9999)
    simulate(1, 4000, "equal", [averages])

    s, g = averages._moments[0], averages._moments[1]
    total = 1 - 0.9999**4000
    assert s / total == pytest.approx(NOISE, rel=0.02)
    assert g / total == pytest.approx(SIGNAL, rel=0.1)
