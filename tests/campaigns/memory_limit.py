"""A model that does not fit into a stated limit of the operating system on one rank trains on two,
divided.

OMP_NUM_THREADS=1 python -m tests.campaigns.memory_limit

Minutes on a busy machine: under mallopt, without which glibc keeps what was freed, each temporary
is a mapping.
"""

import ctypes
import os
import resource
import tempfile
from pathlib import Path

import psutil
from torch import Tensor, nn

from tests.conftest import run_ranks
from tests.distributed.test_sharded import FSDP2
from tests.helpers import argv
from train.accumulate import compute_gradient
from train.main import main as train

WIDTH = 1600
LAYERS = 14
STATE = 4 * 4 * LAYERS * WIDTH**2
"""Bytes of float32 weights, gradients and AdamW's two moments: 547 MiB."""

LIMIT = STATE
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)


class Deep(nn.Module):
    """Its layers are divided and gathered one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.last = nn.Linear(WIDTH, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        for layer in self.layers:
            hidden = layer(hidden).tanh()
        out: Tensor = self.last(hidden)
        return out


def train_limited(divided: bool, arguments: list[str]) -> int:
    """The exit code of a rank that may take LIMIT bytes of data beside what its process holds
    already.
    """
    if divided:
        os.environ.update(FSDP2)
    libc = ctypes.CDLL(None)
    libc.mallopt(MMAP_THRESHOLD, 2**16)
    libc.mallopt(TRIM_THRESHOLD, 2**16)
    limit = psutil.Process().memory_info().data + LIMIT
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        return train(arguments, "accumulate", compute_gradient)
    except SystemExit as end:  # by an error before the first step
        return int(end.code or 0)


def main() -> None:
    words = [
        *("model.target=tests.campaigns.memory_limit.Deep", "model.args={}", "precision=fp32"),
        *(
            "optimizer.target=adamw",
            "duration.steps=2",
            "data.args.size=37",
            "batch.effective=11",
            "batch.micro=2",
        ),
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one = run_ranks(1, train_limited, False, argv(folder, *words, "name=one"))
        two = run_ranks(
            2, train_limited, True, argv(folder, *words, "batch.sync=micro", "name=two")
        )
    print(
        f"limit {LIMIT / 2**20:.0f} MiB: exit codes {one} on one rank, {two} on two, divided",
        flush=True,
    )
    assert (one, two) == ([1], [0, 0])


if __name__ == "__main__":
    main()
