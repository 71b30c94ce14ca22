"""Whom the others wait for, from what all ranks say. Row 17 of the campaign of faults stops ranks for real."""

import json
from pathlib import Path

import pytest

from train.watchdog import diagnosis


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (["ranks.py:1 wait", "x.py:1 f"], [7, 7], "the others wait for rank(s) 1"),
        (["step.py:1 f", "x.py:1 f"], [8, 7], "the others wait for rank(s) 1"),
        (["step.py:1 f", "step.py:1 f"], [7, None], "rank(s) 1 no longer answer"),
        (["step.py:1 f", None], [7, None], "rank(s) 1 no longer answer"),
        (["step.py:1 f", "step.py:1 f"], [7, 7], "cannot be told"),
    ],
)
def test_whom_the_others_wait_for(
    before: list[str | None], after: list[int | None], expected: str, tmp_path: Path
) -> None:
    """`before`: places; `after`: the step that each rank says afterwards, None where it says nothing new."""
    then = [place and json.dumps({"told": 1, "step": 7, "place": place}) for place in before]
    now = [
        json.dumps({"told": 2, "step": step, "place": place}) if step else old
        for place, step, old in zip(before, after, then, strict=True)
    ]

    assert expected in diagnosis([then, now], 60, tmp_path)
