"""Fixtures for all tests. `run_ranks` starts real ranks: gloo, on the CPU, one process each."""

import atexit
import gc
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings

from tests.slow import SLOW
from train.redaction import forget, release_streams

# A busy machine is not a failure: hypothesis would allow each example 0.2 s.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# datasets reads it when it is imported; ranks inherit it.
if "HF_DATASETS_CACHE" not in os.environ:
    os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="isobatch-tests-")
    atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)

# The server imports these once and forks every rank from itself: a rank then starts in 0.1 s
# instead of 5.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["train.main", "torch._dynamo", "tests.warm"])

WALL_LIMIT_SECONDS = 120
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(SLOW):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    # What is imported by now lives as long as the process. A collection would look at all of it:
    # 0.4 s, hundreds of times in a search for a micro-batch alone.
    gc.collect()
    gc.freeze()


@pytest.fixture
def leaves_files_open() -> Iterator[None]:
    """What a library or a kill leaves open is collected here, and does not fail the test that
    happens to come next.
    """
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        yield
        for number, handler in handlers.items():
            signal.signal(number, handler)  # that of a run holds on to its folder
        gc.collect()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What a launcher sets for a rank."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }


def _enter_rank(
    results: Any, environment: dict[str, str], function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ.update(environment)
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    met, destroy = 1, dist.destroy_process_group

    def destroy_and_count(*arguments: Any) -> None:
        nonlocal met
        met = dist.get_world_size()
        destroy(*arguments)

    dist.destroy_process_group = destroy_and_count
    try:
        value = function(*args)
        if dist.is_initialized():
            dist.destroy_process_group()
        results.put((int(environment["RANK"]), met, value, None))
    except BaseException:
        results.put((int(environment["RANK"]), 0, None, traceback.format_exc()))
        raise


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """`function(*args)` on each of `world_size` ranks; its results in order of the ranks.

    Fails where a rank fails, where the ranks that met are not `world_size`, or after
    WALL_LIMIT_SECONDS.
    """
    results = FORKS.Queue()
    port = free_port()
    processes = [
        FORKS.Process(
            target=_enter_rank,
            args=(results, rank_environment(rank, world_size, port), function, args),
        )
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    try:
        told = [results.get(timeout=WALL_LIMIT_SECONDS) for _ in processes]
    finally:
        for process in processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
    errors = [f"rank {rank}:\n{error}" for rank, _, _, error in told if error]
    assert not errors, "\n".join(errors)
    assert [met for _, met, _, _ in told] == [world_size] * world_size, (
        "another number of ranks met"
    )
    return [value for _, _, value, _ in sorted(told, key=lambda result: result[0])]


@pytest.fixture(name="run_ranks")
def run_ranks_fixture() -> Callable[..., list[Any]]:
    return run_ranks


@pytest.fixture(autouse=True)
def _no_secrets_of_other_tests() -> Iterator[None]:
    """An entry point guards its process to the end; a test is not the end."""
    yield
    release_streams()
    forget()


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test is not a rank, whatever started pytest."""
    for name in (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "ISOBATCH_WORLD_SIZE",
        "ISOBATCH_ENDED",
        "ISOBATCH_ATTEMPT",
        "ISOBATCH_LAUNCHER_PID",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
