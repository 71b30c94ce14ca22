"""Which rank computes something else than the others from the same samples?

Each rank computes its own part of the step and that of the next rank. The bits of both gradients
are compared between neighbours.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from train.batch.window import MicroBatch, Window
from train.distributed.ranks import Ranks, lost_rank
from train.exactness.audit_cut import MicroBatchSource, StepSamples, with_own_memory
from train.exactness.extra_gradient import (
    accumulate_gradient,
    clear_gradients,
    current_gradients,
)
from train.step import Learner


@dataclass(frozen=True)
class _Digests:
    """Of the gradients that one rank computed; both empty where it failed."""

    own_part: str = ""
    next_part: str = ""


def find_faulty_ranks(
    learner: Learner,
    window: Window,
    samples: StepSamples,
    rewind: Callable[[], None],
    ranks: Ranks,
) -> list[int] | None:
    """The ranks of which one computes wrong, as far as it can be narrowed down; [] where all agree.

    None where that cannot be compared: one rank, FSDP2, devices of several kinds, or buffers that
    differ from rank to rank.
    """
    if ranks.world_size == 1 or learner.parallel.is_sharded:
        return None
    # Bits can only be compared where devices and buffers are the same.
    rewind()
    buffers = _digest(b for b in learner.module.buffers() if not b.is_meta)
    setups = ranks.gather((_device_kind(learner.device), buffers))
    if any(setup != setups[0] for setup in setups):
        return None
    digests_of_ranks = ranks.gather(_digests(learner, window, samples, rewind))
    # A rank that failed has nothing to compare, and every rank sees that in the same message.
    if _Digests() in digests_of_ranks:
        return None
    # Each part was computed by two ranks: its own one, and the one before it.
    disagreeing = []
    for rank in range(ranks.world_size):
        following = (rank + 1) % ranks.world_size
        if digests_of_ranks[rank].next_part != digests_of_ranks[following].own_part:
            disagreeing.append((rank, following))
    return suspects(disagreeing)


def suspects(pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The ranks in most of the pairs that disagree.

    Of three ranks or more one alone: the pairs with both of its neighbours disagree.
    """
    counts: Counter[int] = Counter()
    for pair in pairs:
        counts.update(pair)
    most = max(counts.values(), default=0)
    return sorted(rank for rank, count in counts.items() if count == most)


def _digests(
    learner: Learner, window: Window, samples: StepSamples, rewind: Callable[[], None]
) -> _Digests:
    digests = []
    for source in (samples.own, samples.next):
        rewind()
        clear_gradients(learner)
        try:
            digests.append(_digest(_gradient_of(learner, window, source)))
        except Exception as error:
            if lost_rank(error):
                raise
            return _Digests()
    return _Digests(*digests)


def _gradient_of(learner: Learner, window: Window, source: MicroBatchSource) -> list[Tensor]:
    """Of one rank's part of the step, not reduced."""
    # A kernel may take another way through a view that begins elsewhere in memory.
    micro_batches = _RankPart([with_own_memory(micro_batch) for micro_batch in source])
    part = replace(window, micro_batches=micro_batches)
    # On the bare module: DDP would reduce, and the sum would be the same on all ranks.
    accumulate_gradient(replace(learner, model=learner.module), part)
    return current_gradients(learner)


class _RankPart(list[MicroBatch]):
    """One rank's micro-batches of a step (batch.window.MicroBatches)."""

    @property
    def sizes(self) -> Sequence[int]:
        return [micro_batch.samples for micro_batch in self]

    def recut(self, micro: int) -> "_RankPart":
        raise NotImplementedError("one rank's part of a step is compared as it is")


def _digest(tensors: Iterable[Tensor]) -> str:
    # A digest in place of the gradient: 32 bytes say whether the bits are the same.
    digest = hashlib.sha256()
    for tensor in tensors:
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        as_bytes = real.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(as_bytes.numpy().tobytes())
    return digest.hexdigest()


def _device_kind(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
