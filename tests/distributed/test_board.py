"""The name of a start: the same on all ranks, whatever their launchers have counted."""

import pytest

from train.distributed.board import next_start


@pytest.mark.parametrize(("shared", "counts"), [("True", ["0", "2"]), ("False", ["0", "0"])])
def test_restarts_count_only_where_the_store_outlives_them(
    shared: str, counts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that comes back to an elastic job has counted none."""
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", shared)
    names = []
    for restarts in ("0", "2"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
        names.append(next_start().partition(".")[0])
    assert names == counts
