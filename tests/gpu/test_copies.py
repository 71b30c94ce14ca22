"""Micro-batches on a stream of their own arrive before they are used, and no memory is used again
too early.
"""

from collections.abc import Iterator

import pytest
import torch

from tests.gpu.devices import ON_CPU, ON_GPU
from train.batch.window import Batch
from train.data.deferred import DeferredReads
from train.data.device_prefetch import Feed, travelling
from train.data.shares import RankShare

NUMBERS = 2**20  # of a micro-batch: 4 MiB
LONG, SHORT = 2_000_000_000, 20_000_000  # cycles: about a second, and about 10 ms


def keep_busy(device: torch.device, cycles: int) -> None:
    """Queue a kernel that takes its time; the host goes on."""
    if device.type == "cuda":
        torch.cuda._sleep(cycles)


def read(start: int, stop: int) -> Batch:
    return {"x": torch.full((stop - start, NUMBERS), float(start))}


@pytest.mark.parametrize("kind", [ON_CPU, ON_GPU])
def test_values_are_the_hosts_behind_slow_kernels(kind: str) -> None:
    device = torch.device(kind)
    feed = Feed(device, torch.float32)
    sizes = (1,) * 12
    samples = DeferredReads(read, dict, None, sizes)
    share = RankShare(epoch=0, last_of_epoch=False, samples=samples, sizes=sizes, largest=12)
    sums, most = [], 0
    before = torch.cuda.memory_allocated() if kind == "cuda" else 0

    for micro_batch in feed.announce(share):
        keep_busy(device, SHORT)  # the device is behind when the copy starts
        batch = feed.take(micro_batch)
        keep_busy(device, SHORT)  # and when the values are used
        sums.append(batch["x"].mean())
        most = max(most, torch.cuda.memory_allocated() - before) if kind == "cuda" else 0
        del batch

    assert torch.stack(sums).tolist() == list(range(12))
    assert most < 2.5 * 4 * NUMBERS, "more than two micro-batches are on the device"


def shares(count: int) -> Iterator[RankShare]:
    """Of two micro-batches each, which hold the number of the share."""
    for number in range(count):
        samples = {"x": torch.full((2, NUMBERS // 2), float(number))}
        yield RankShare(epoch=0, last_of_epoch=False, samples=samples, sizes=(1, 1), largest=1)


@pytest.mark.parametrize("kind", [ON_CPU, ON_GPU])
def test_pinned_memory_is_not_used_again_while_a_copy_waits(kind: str) -> None:
    """The device is a second behind: the host pins and lets go of 50 windows meanwhile."""
    device = torch.device(kind)
    feed = Feed(device, torch.float32)
    keep_busy(device, SHORT)  # the kernel is loaded
    done = torch.cuda.Event() if kind == "cuda" else None
    keep_busy(device, LONG)
    if done is not None:
        done.record()
    means = []

    for number, announced in enumerate(map(feed.announce, shares(50))):
        for micro_batch in announced:
            means.append(feed.take(micro_batch)["x"].mean())
        if number == 20 and done is not None:
            assert not done.query(), "the host was never ahead: the test shows nothing"

    assert torch.stack(means).tolist() == [number for number in range(50) for _ in range(2)]


@pytest.mark.parametrize("kind", [ON_CPU, ON_GPU])
def test_an_evaluations_batches_arrive(kind: str) -> None:
    device = torch.device(kind)
    batches = ({"x": torch.full((NUMBERS,), float(number))} for number in range(20))
    means = []

    for batch in travelling(batches, device, torch.float32):
        keep_busy(device, SHORT)
        means.append(batch["x"].mean())

    assert torch.stack(means).tolist() == list(range(20))
