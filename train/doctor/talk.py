"""How the ranks hear each other."""

import time
from collections.abc import Sequence
from statistics import median

import torch

from train.distributed.ranks import Ranks
from train.doctor.findings import Finding, doubtful, fine, wrong

ROUNDS = 5
SLOW_GB_PER_SECOND = 1.0


def clocks_ahead(ranks: Ranks) -> list[float]:
    """Seconds by which each rank's clock is ahead of rank 0's, but for the time that a barrier
    takes to open.
    """
    rounds = []
    for _ in range(ROUNDS):
        ranks.barrier()
        rounds.append(ranks.gather(time.time()))
    return [median(told[rank] - told[0] for told in rounds) for rank in range(ranks.world_size)]


def all_reduce(ranks: Ranks, device: torch.device) -> list[Finding]:
    """The sum that a run's gradients take, in the group that they take: right, and how fast. The
    same on all ranks.
    """
    if ranks.world_size == 1:
        return []
    megabytes = 256 if device.type == "cuda" else 16
    expected = ranks.world_size * (ranks.world_size + 1) / 2
    seconds = []
    is_right = True
    for _ in range(ROUNDS):
        tensor = torch.full((megabytes * 10**6 // 4,), float(ranks.rank + 1), device=device)
        _wait(device)
        ranks.barrier()
        begun = time.perf_counter()
        ranks.add_up([tensor])
        _wait(device)
        seconds.append(time.perf_counter() - begun)
        is_right = is_right and bool((tensor == expected).all())
    # The first round opens the connections.
    return judge_sum(
        ranks.gather(is_right), max(ranks.gather(median(seconds[1:]))), megabytes, device.type
    )


def judge_sum(
    is_right: Sequence[bool], seconds: float, megabytes: int, device: str
) -> list[Finding]:
    """`is_right`: of each rank."""
    bad = [str(rank) for rank, right in enumerate(is_right) if not right]
    if bad:
        return wrong(
            f"the sum over the ranks is wrong on rank {', '.join(bad)}",
            "Set: NCCL_DEBUG=INFO, and try again",
        )
    # What each link of a ring carries, which nccl-tests calls the bus bandwidth.
    ranks = len(is_right)
    speed = 2 * (ranks - 1) / ranks * megabytes / 1000 / seconds
    text = f"all-reduce of {megabytes} MB over {ranks} ranks ({device}): {speed:.2g} GB/s"
    if device == "cuda" and speed < SLOW_GB_PER_SECOND:
        return doubtful(
            f"{text}, which is slow for GPUs", "NCCL_DEBUG=INFO shows which way NCCL takes"
        )
    return fine(text)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
