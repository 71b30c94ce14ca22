"""The share of time without a processor, against what the clocks of the process leave over."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from train import metric_names
from train.metrics import cpu_wait
from train.metrics.cpu_wait import CpuWait, waited_seconds


def spin(seconds: float, processor: int) -> None:
    os.sched_setaffinity(0, {processor})
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@pytest.mark.skipif(waited_seconds() is None, reason="the kernel does not count here")
def test_beside_another_process_on_the_same_processor() -> None:
    """This thread never sleeps: the time in which it was not running is the time in which it
    waited.
    """
    allowed = os.sched_getaffinity(0)
    other = multiprocessing.get_context("fork").Process(target=spin, args=(1.5, min(allowed)))
    other.start()
    try:
        os.sched_setaffinity(0, {min(allowed)})
        wait, start, ran = CpuWait(), time.perf_counter(), time.thread_time()
        spin(0.4, min(allowed))
        share = wait.take()[metric_names.CPU_WAIT]
        not_running = 1 - (time.thread_time() - ran) / (time.perf_counter() - start)
    finally:
        os.sched_setaffinity(0, allowed)
        other.kill()
        other.join()

    assert share == pytest.approx(not_running, abs=0.05)
    assert not_running > 0.3


def test_absent_where_the_kernel_does_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cpu_wait, "SCHEDSTAT", tmp_path / "missing")

    assert CpuWait().take() == {}
