"""The end of a launch. What else the supervisor does is tried on processes: tests/test_launch.py."""

import pytest

from train.launching.supervisor import print_last_words

REASON = "rank 1 ran out of memory in step 3\n  type: batch.micro=8"


@pytest.mark.parametrize(
    ("code", "returncode", "words", "is_said"),
    [
        (1, 1, ["--num_processes", "2"], True),
        (1, 0, ["--num_processes", "2"], False),  # all ranks ended alike, and have said it last
        (75, 1, ["--num_processes", "2"], False),
        (1, 1, ["--max_restarts", "3"], False),  # of a start that another one may have followed
    ],
)
def test_why_a_rank_failed_is_said_below_the_trace_of_torchrun(
    capsys: pytest.CaptureFixture[str], code: int, returncode: int, words: list[str], is_said: bool
) -> None:
    print_last_words({"reason": REASON, "code": code}, returncode, words)
    print_last_words({}, returncode, words)  # no rank could write one

    assert capsys.readouterr().err == (f"launch: {REASON}\n" if is_said else "")
