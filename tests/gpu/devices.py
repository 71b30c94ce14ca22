"""Where the tests of this folder run: on one GPU, on two over NCCL, and, to prove their bodies, on
the CPU.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import rank_environment, run_ranks

ONE, TWO = pytest.mark.gpus(1), pytest.mark.gpus(2)
ON_CPU, ON_GPU, ON_TWO = "cpu", pytest.param("cuda", marks=ONE), pytest.param("cuda", marks=TWO)
REPEATABLE = ("runtime.deterministic=true",)


def gpu_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What a launcher sets for a rank that has a GPU of its own."""
    return rank_environment(rank, world_size, port) | {"ACCELERATE_USE_CPU": "false"}


def run_on(device: str, world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """As run_ranks: on the CPU over gloo, or on as many GPUs over NCCL."""
    return run_ranks(world_size, _on_device, device, function, args)


def _on_device(device: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    os.environ["ACCELERATE_USE_CPU"] = str(device == "cpu").lower()
    # Read when cuBLAS is first used: sums in one order, also where a test asks for nothing.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return function(*args)


class HostRead(AssertionError):
    """The host asked for a number that is still to be computed."""


READS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.equal.default,
}


class _NoReads(TorchDispatchMode):
    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in READS:
            raise HostRead(f"{function}: on a GPU the host would wait here")
        return function(*args, **(kwargs or {}))


@contextmanager
def no_host_reads(device: torch.device) -> Iterator[None]:
    """What is inside must not make the host wait: CUDA raises by itself, on a CPU the operators
    that read do.
    """
    if device.type == "cpu":
        with _NoReads():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def missing(wanted: int) -> str:
    """Why a test that wants so many GPUs cannot run here; empty where it can."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found >= wanted:
        return ""
    needs = "a GPU" if wanted == 1 else f"{wanted} GPUs"
    return f"needs {needs}: torch {torch.__version__} can use {found} here"
