"""A few of the inputs of each kind; all of them: python -m tests.campaigns.inputs"""

from pathlib import Path

import pytest

from tests.campaigns.inputs.__main__ import every_case, page
from tests.campaigns.inputs.case import FAILS, Outcome, table_truth, typed_lines
from tests.campaigns.inputs.tables import Form, _case

QUICK = every_case(60)[::22]


@pytest.mark.parametrize(
    "number", range(len(QUICK)), ids=[f"{case.kind}: {case.name}"[:60] for case in QUICK]
)
def test_an_input_is_read_right_or_its_error_says_how(tmp_path: Path, number: int) -> None:
    outcome = QUICK[number].judge(tmp_path / "case")

    assert not outcome.is_bad, f"{outcome.verdict}: {outcome.said}"


def test_what_stands_side_by_side_is_typed_together() -> None:
    said = "It is so. Type: 'data.args={sep: \";\"}' data.split=test. Or type: task=regression."

    assert typed_lines(said) == [('data.args={sep: ";"}', "data.split=test"), ("task=regression",)]


def test_a_wrong_truth_is_seen(tmp_path: Path) -> None:
    case = _case(Form())
    other = type(case)(case.kind, case.name, case.write, case.overrides, table_truth(("1", "0")))

    assert other.judge(tmp_path / "case").verdict == "SILENT"
    assert "| table | 1 | 0 | 0 | 0 | 0 | 0 | 1 |" in page([Outcome(case, FAILS, "")])
