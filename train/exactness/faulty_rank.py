"""Which rank computes something else than the others from the same samples? Found by the bits of
local gradients.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from train.batch.window import MicroBatch, Window
from train.distributed.ranks import Ranks, lost_rank
from train.exactness.audit_cut import Samples, Whole
from train.exactness.extra_gradient import accumulated, clear, gradients
from train.step import Learner


def disagreeing(
    learner: Learner, window: Window, samples: Samples, begin: Callable[[], None], ranks: Ranks
) -> list[int] | None:
    """The ranks of which it is known that one of them, or each, computes wrong; [] where all agree.

    Each rank computes its own part of the step and that of the next rank. None where that cannot be
    compared: one rank, FSDP2, machines of several kinds, or buffers that differ from rank to rank.
    """
    if ranks.world_size == 1 or learner.parallel.is_sharded:
        return None
    begin()
    buffers = _digest(b for b in learner.module.buffers() if not b.is_meta)
    kinds = ranks.gather((_kind(learner.device), buffers))
    if any(kind != kinds[0] for kind in kinds):
        return None
    digests = []
    problem = ""
    for whole in (samples.own, samples.next):
        begin()
        clear(learner)
        try:
            digests.append(_digest(_of_part(learner, window, whole)))
        except Exception as error:
            if lost_rank(error):
                raise
            problem = str(error)
            break
    of_ranks = ranks.gather((problem, digests))
    if any(said for said, _ in of_ranks):
        return None
    count = ranks.world_size
    pairs = [(rank, (rank + 1) % count) for rank in range(count)]
    return suspects([pair for pair in pairs if of_ranks[pair[0]][1][1] != of_ranks[pair[1]][1][0]])


def suspects(pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The ranks that stand in most of the pairs that disagree: one alone where it disagrees with
    both others.
    """
    count: dict[int, int] = {}
    for pair in pairs:
        for rank in pair:
            count[rank] = count.get(rank, 0) + 1
    most = max(count.values(), default=0)
    return sorted(rank for rank, times in count.items() if times == most)


def _of_part(learner: Learner, window: Window, whole: Whole) -> list[Tensor]:
    part = replace(window, micro_batches=_Part([_copied(micro_batch) for micro_batch in whole]))
    accumulated(replace(learner, model=learner.module), part)
    return gradients(learner)


def _copied(micro_batch: MicroBatch) -> MicroBatch:
    """In memory of its own: a kernel may take another way through a view that begins elsewhere."""
    return replace(
        micro_batch, batch={name: column.clone() for name, column in micro_batch.batch.items()}
    )


class _Part(list[MicroBatch]):
    """As batch.window.MicroBatches has it."""

    @property
    def sizes(self) -> Sequence[int]:
        return [micro_batch.samples for micro_batch in self]

    def recut(self, micro: int) -> "_Part":
        raise NotImplementedError("one rank's part of a step is compared as it is")


def _digest(tensors: Iterable[Tensor]) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        found.update(
            plain.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return found.hexdigest()


def _kind(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
