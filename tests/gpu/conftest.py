"""Tests that need a GPU are skipped where there is none, with the reason; pytest shows it (-ra)."""

import pytest

from tests.gpu.devices import missing


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("gpus"):
        reason = missing(mark.args[0])
        if reason:
            pytest.skip(reason)
