"""What W&B gets beside the rows: that something is wrong, and how it ended."""

from pathlib import Path
from typing import Any

import pytest

from tests.helpers import argv
from train.accumulate import compute_gradient
from train.main import main
from train.report.tracker import Tracker

Sent = tuple[list[tuple[str, str, str]], dict[str, Any]]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """(alerts, summary)"""
    alerts: list[tuple[str, str, str]] = []
    summary: dict[str, Any] = {}
    monkeypatch.setattr(Tracker, "alert", lambda self, *alert: alerts.append(alert))
    monkeypatch.setattr(Tracker, "summarise", lambda self, scalars: summary.update(scalars))
    return alerts, summary


def test_a_good_run_alerts_nobody(sent: Sent, tmp_path: Path) -> None:
    assert main(argv(tmp_path, "data.eval_fraction=0.2"), "accumulate", compute_gradient) == 0

    alerts, summary = sent
    assert alerts == []
    assert (summary["ended/reason"], summary["ended/code"], summary["ended/step"]) == (
        "finished",
        0,
        4,
    )
    assert summary["best/step"] == 4
    assert summary["best/loss"] > 0


def test_a_gradient_that_is_not_finite_alerts_once(sent: Sent, tmp_path: Path) -> None:
    nan = argv(tmp_path, "data.args={size: 37, nan: [1, 12]}")  # in steps 1 and 2 of 5

    assert main(nan, "accumulate", compute_gradient) == 0

    assert sent[0] == [
        ("a gradient was not finite", "run: by step 1, 1 steps were not applied", "WARN")
    ]


@pytest.mark.parametrize("how", ["on_nonfinite=stop", "crash"])
def test_a_run_that_fails_alerts(
    sent: Sent, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any) -> Any:
        raise ZeroDivisionError("on purpose")

    if how == "crash":
        with pytest.raises(ZeroDivisionError):
            main(argv(tmp_path), "accumulate", crash)
    else:
        nan = argv(tmp_path, "data.args={size: 37, nan: [1]}", how)
        assert main(nan, "accumulate", compute_gradient) == 1

    alerts, summary = sent
    ((title, text, level),) = alerts
    assert (title, level) == ("run failed", "ERROR")
    assert ("ZeroDivisionError: on purpose" if how == "crash" else "on_nonfinite=stop") in text
    assert summary["ended/code"] == 1
