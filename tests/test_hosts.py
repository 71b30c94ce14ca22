"""One job on two machines, by launch.sh on each. What may happen to it: rows 51 to 55 of the
campaign of faults.
"""

import time
from pathlib import Path

import pytest

from tests.campaigns.faults.machines import STATIC, check_same_curve, launch, long_run, losses
from tests.campaigns.faults.row import folder
from tests.helpers import record
from tests.hosts import hosts, why_not

FEW = "duration.steps=400"

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


def test_two_machines_have_the_curve_of_one_and_let_no_other_job_in(tmp_path: Path) -> None:
    apart, own, other = (folder(tmp_path, name) for name in ("apart", "own", "other"))
    port = (*STATIC, "--main_process_port", "29500")
    with hosts(2) as pair:
        job = launch(own, pair[:1], long_run(own, FEW), port)
        stranger = launch(other, pair[1:], long_run(other, FEW), port, first=1)
        assert stranger.wait() == [2]
        rest = launch(own, pair[1:], long_run(own, FEW), port, first=1)
        record(long_run(apart, FEW))  # meanwhile
        job.wait_for_step(50)
        pair[1].cut()
        time.sleep(0.5)
        then = max(losses(own / "run"))
        time.sleep(0.5)
        assert max(losses(own / "run")) <= then + 1, "it was not cut"
        pair[1].restore()
        assert (job.wait(), rest.wait()) == ([0], [0]), job.told()
    assert "29501 is of job tiny-" in stranger.told()
    assert check_same_curve(own, apart) < 1e-12
