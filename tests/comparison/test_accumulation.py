"""What runs say at their end of accumulation, a comparison says too: the same number, its range,
and the cost.
"""

import re
from pathlib import Path

import pytest

from tests.comparison.folders import make_run
from tests.comparison.test_comparison import compared
from train import metric_names as names
from train.comparison.as_json import as_json
from train.comparison.comparison import Comparison
from train.comparison.critical_batch import BreakEven, Estimate
from train.comparison.tables import tables

MICRO = {"micro_batch": 25, "accumulation_steps": 4}


def estimated(noise_scale: float, error: float, update_seconds: float) -> BreakEven:
    return BreakEven(Estimate(noise_scale, error), 25, 0.001, update_seconds, cost_error=0.1)


def logged(worth: BreakEven, recorded: bool = True) -> dict[str, float]:
    known = {names.NOISE_SCALE: worth.noise.value, names.BREAK_EVEN: worth.best}
    errors = {names.NOISE_SCALE_ERROR: worth.noise.error, names.BREAK_EVEN_ERROR: worth.error}
    return known | (errors if recorded else {})


def run_of(folder: Path, worth: BreakEven, seed: int = 0, recorded: bool = True) -> Path:
    return make_run(folder, identity={"seed": seed}, derived=MICRO, extra=logged(worth, recorded))


def outcome_table(result: Comparison) -> str:
    return next(str(table) for table in tables(result) if table.title.startswith("Outcome"))


@pytest.mark.parametrize(
    "worth",
    [
        estimated(321, 0.4, 0.001),
        estimated(5000, 0.2, 0.0002),
        estimated(30, 0.3, 0.0001),
        estimated(9e5, 0.1, 0.05),
    ],
)
def test_the_sentence_is_the_closing_line(tmp_path: Path, worth: BreakEven) -> None:
    result = compared(make_run(tmp_path / "whole"), run_of(tmp_path / "split", worth))

    closing = worth.sentence(4).removeprefix("accumulation: ").replace("the 4 of this run", "its 4")
    wanted = f"accumulation in split: {closing.partition(' (estimated')[0]}"
    assert [note for note in result.notes if note.startswith("accumulation in")] == [wanted]
    assert wanted in as_json(result)["notes"]


def test_over_seeds_the_range_holds_that_of_each(tmp_path: Path) -> None:
    # about 1.4 and 2.8 micro-steps
    low, high = estimated(100, 0.1, 0.0005), estimated(400, 0.3, 0.0005)
    for seed, worth in enumerate((low, high)):
        run_of(tmp_path / f"split-seed{seed}", worth, seed)
    make_run(tmp_path / "split-seed2", identity={"seed": 2}, derived=MICRO)

    result = compared(tmp_path)

    (outcome,) = result.outcomes
    assert outcome.break_even_range == pytest.approx((1.2277, 3.880), rel=1e-3)
    assert outcome.noise_scale_range == pytest.approx((81.87, 728.8), rel=1e-3)
    assert as_json(result)["set_ups"][0]["outcome"]["break_even_range"] == list(
        outcome.break_even_range or ()
    )
    (sentence,) = (note for note in result.notes if note.startswith("accumulation in"))
    assert "about 2 micro-steps (1 to 4) would be fastest" in sentence
    assert sentence.endswith("(estimated in 2 runs of 3)")
    assert re.search(
        r" 250 \(82 to 730\) \(2 of 3\) +2\.121 \(1\.2 to 3\.9\) \(2 of 3\)$",
        outcome_table(result),
        re.M,
    )


def test_an_error_that_was_not_recorded_is_not_made_up(tmp_path: Path) -> None:
    for seed, noise_scale in enumerate((100, 400)):
        run_of(
            tmp_path / f"old-seed{seed}", estimated(noise_scale, 0.3, 0.0005), seed, recorded=False
        )

    result = compared(tmp_path)

    assert result.outcomes[0].break_even_range is None
    assert not any("accumulation" in note for note in result.notes)
    assert re.search(r" 250 +2\.121$", outcome_table(result), re.M)


def test_a_break_even_without_its_noise_scale_is_no_error(tmp_path: Path) -> None:
    logged_alone = {names.BREAK_EVEN: 2.0, names.BREAK_EVEN_ERROR: 0.1}
    make_run(tmp_path / "old", derived=MICRO, extra=logged_alone)

    result = compared(tmp_path)

    assert result.outcomes[0].break_even_range == pytest.approx((1.6375, 2.4428), rel=1e-3)
    assert not any("accumulation" in note for note in result.notes)
