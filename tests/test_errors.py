"""What launch.sh is told, and when."""

import json
from pathlib import Path

import pytest

from tests.helpers import argv
from train.accumulate import compute_gradient
from train.errors import STOPPED, exit_code
from train.main import main
from train.report.journal import Journal


def test_launch_knows_the_code_before_the_sinks_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights may go to W&B for half an hour: who stops that must not turn a finished run into a
    failed one.
    """
    told, codes, finish = tmp_path / "ended.json", [], Journal.finish

    def look(journal: Journal, exit_code: int) -> None:
        codes.append(json.loads(told.read_text())["code"] if told.exists() else None)
        finish(journal, exit_code)

    monkeypatch.setattr(Journal, "finish", look)
    monkeypatch.setenv("ISOBATCH_ENDED", str(told))

    assert main(argv(tmp_path), "accumulate", compute_gradient) == 0
    assert codes == [0]


@pytest.mark.parametrize(("restarts", "expected"), [(None, 75), ("0", 75), ("3", 0)])
def test_a_stop_is_never_restarted_by_torchrun(
    restarts: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if restarts is not None:
        monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)

    assert exit_code("stopped by SIGTERM", STOPPED, 3) == expected
