"""What a signal asks for, whatever asked for a stop before it."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from train.distributed.stop import Stop
from train.launching import LEAVE_SECONDS, STOP_SIGNALS
from train.report.restarts import RESTARTS, pause


@pytest.fixture(name="stop")
def listening_stop() -> Iterator[Stop]:
    numbers = [getattr(signal, name) for name in STOP_SIGNALS]
    before = {number: signal.getsignal(number) for number in numbers}
    stop = Stop()
    stop.listen()
    yield stop
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("earlier", [None, "a full disk", signal.SIGTERM])
def test_an_interrupt_leaves_at_once_only_some_time_after_the_first(
    stop: Stop, earlier: signal.Signals | str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(earlier, signal.Signals):
        os.kill(os.getpid(), earlier)
    elif earlier:
        stop.ask(earlier)

    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)  # an impatient finger
    assert stop.requested()

    now = time.monotonic() + LEAVE_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_pause_is_shorter_than_the_others_wait(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / RESTARTS).write_text('{"from": "the start", "fruitless": 2000}')

    pause(tmp_path, None, 0.5, lambda: False)

    assert "waiting 0.25 s" in capsys.readouterr().err


@pytest.mark.timeout(60)
def test_a_stop_ends_a_pause(tmp_path: Path, stop: Stop) -> None:
    (tmp_path / RESTARTS).write_text('{"from": "the start", "fruitless": 20}')
    stop.ask("a test")

    pause(tmp_path, None, 1800, stop.requested)  # 300 s otherwise


@pytest.mark.parametrize(
    ("parent", "environment"), [("accelerate", {}), ("agent", {"TORCHELASTIC_RUN_ID": "7"})]
)
def test_a_launcher_that_has_gone_asks_for_a_stop_and_a_shell_does_not(
    parent: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    shell = Stop(watch_launcher=True)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if parent == "accelerate":
        monkeypatch.setattr(
            psutil.Process, "cmdline", lambda self: ["python", "/bin/accelerate", "launch", "x.py"]
        )
    launched = Stop(watch_launcher=True)
    off = Stop(watch_launcher=False)
    assert not launched.requested()

    monkeypatch.setattr(os, "getppid", lambda: 1)
    monkeypatch.setattr("train.distributed.stop.POLL_SECONDS", 0.0)
    launched._next_poll = 0.0

    assert launched.requested()
    assert "launcher" in str(launched.cause)
    assert not shell.requested()
    assert not off.requested()
