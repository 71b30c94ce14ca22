"""The quick form of each row of the campaign of faults (python -m tests.campaigns.faults --full
does it at length).
"""

from pathlib import Path

import pytest

from tests.campaigns.faults.table import ROWS

TRIED_ELSEWHERE = {
    "1": "tests/checkpoint/test_commit.py, row 2",
    "4": "tests/test_launch.py",
    "12": "tests/test_main.py, tests/test_launch.py",
    "13": "tests/test_slurm.py",
    "22": "tests/test_resume.py",
    "33": "tests/report/test_second_start.py",
    "29u": "tests/report/test_columns.py, tests/comparison/test_online.py",
    "39": "tests/test_leaving.py",
    "40": "tests/checkpoint/test_commit.py, row 2",
    "38": "tests/test_errors.py, tests/distributed/test_stop.py",
    "62": "tests/test_slurm.py",
    **dict.fromkeys(
        ("51", "52", "53", "54", "55"), "tests/test_hosts.py, tests/launching/test_rendezvous.py"
    ),
}
"""Rows that take half a minute even in the quick form, for what other tests try in parts: left to
the campaign.
"""


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(name, marks=pytest.mark.slow if row.slow else ())
        for name, row in ROWS.items()
        if name not in TRIED_ELSEWHERE
    ],
)
def test_survives(number: str, tmp_path: Path) -> None:
    ROWS[number].run(tmp_path, False)
