"""Whom the others wait for, from what all ranks say. Row 17 of the campaign of faults stops ranks
for real.
"""

import json
import re
from functools import partial
from pathlib import Path

import pytest

from tests.campaigns.faults import ranks
from tests.campaigns.faults.row import command, train
from train.distributed import outside
from train.distributed.watchdog import diagnosis


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (["ranks.py:1 wait", "x.py:1 f"], [7, 7], "the others wait for rank(s) 1"),
        (["step.py:1 f", "x.py:1 f"], [8, 7], "the others wait for rank(s) 1"),
        (["step.py:1 f", "step.py:1 f"], [7, None], "rank(s) 1 no longer answer"),
        (["step.py:1 f", None], [7, None], "rank(s) 1 no longer answer"),
        (["step.py:1 f", "step.py:1 f"], [7, 7], "is unknown"),
    ],
)
def test_whom_the_others_wait_for(
    before: list[str | None], after: list[int | None], expected: str, tmp_path: Path
) -> None:
    """`before`: places; `after`: the step that each rank says afterwards, None where it says
    nothing new.
    """
    then = [place and json.dumps({"number": 1, "step": 7, "location": place}) for place in before]
    now = [
        json.dumps({"number": 2, "step": step, "location": place}) if step else old
        for place, step, old in zip(before, after, then, strict=True)
    ]

    assert expected in diagnosis([then, now], 60, tmp_path)


def hold_the_gil() -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")  # 2**60 ways to fail, and no other thread runs meanwhile


@pytest.mark.parametrize("world_size", [1, 2])
def test_what_holds_the_gil_ends_with_stacks(tmp_path: Path, world_size: int) -> None:
    last = world_size - 1
    hangs = partial(ranks.at_step, 3, hold_the_gil, last)

    codes, job = train(tmp_path, world_size, command(tmp_path, "runtime.timeout_seconds=2"), hangs)

    assert codes == [1] * last + [-outside.SIGNAL], job.told()
    assert "something holds Python's lock" in job.told(last)
    assert "hold_the_gil" in (tmp_path / "run" / f"stacks-rank{last}.txt").read_text()
    if world_size > 1:
        assert "rank(s) 1 no longer answer" in job.told(0)


def test_no_stacks_where_nothing_hangs(tmp_path: Path) -> None:
    codes, job = train(tmp_path, 1, command(tmp_path, "runtime.timeout_seconds=2"))

    assert codes == [0], job.told()
    assert not list((tmp_path / "run").glob("stacks*"))
