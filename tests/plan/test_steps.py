"""How many steps a run has, against the samples that its windows really hold."""

import json
from pathlib import Path

import pytest

from tests.helpers import argv, record, rows


# Of 37 samples, an epoch has four steps of 8 and one of 5.
@pytest.mark.parametrize("wanted", [75, 80])
@pytest.mark.parametrize("overfit", [1, 2, 5])
def test_a_run_ends_with_the_step_that_reaches_the_samples(
    tmp_path: Path, wanted: int, overfit: int
) -> None:
    record(argv(tmp_path, f"data.overfit={overfit}", f"duration={{samples: {wanted}}}"))

    told = rows(tmp_path)
    seen = [row["progress/samples_seen"] for row in told]
    assert seen[-1] >= wanted > seen[-2]
    assert {row["batch/effective_size"] for row in told} == ({8} if overfit < 5 else {8, 5})
    derived = json.loads((tmp_path / "run/plan.json").read_text())["derived"]
    assert (derived["total_steps"], derived["total_samples"]) == (len(told), seen[-1])
