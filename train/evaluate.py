"""Exact evaluation: every sample once, on any number of ranks."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from train.batch import share
from train.data import Rows
from train.ranks import Ranks
from train.step import Learner, to_device


@dataclass(frozen=True)
class Evaluation:
    """A data set and the learner that is evaluated on it."""

    rows: Rows
    learner: Learner
    ranks: Ranks
    batch_size: int

    def __call__(self) -> dict[str, float]:
        """{metric: sum / weight over the whole set, "samples": how many}. A metric whose weight is 0 is left out."""
        module = self.learner.module  # inside any wrapper: an evaluation reduces no gradients
        self.ranks.copy_from_main(floating_buffers(module))
        module.eval()
        try:
            with torch.no_grad():
                sums, samples = self._local_sums()
        finally:
            module.train()
        names = sorted(sums)  # every rank has the same ones: a rank without samples has one filler batch
        numbers = [float(x) for name in names for x in sums[name]]
        totals = self.ranks.sum([*numbers, samples])
        pairs = zip(names, totals[:-1:2], totals[1:-1:2], strict=True)
        return {name: total / weight for name, total, weight in pairs if weight} | {"samples": totals[-1]}

    def _local_sums(self) -> tuple[dict[str, tuple[Tensor, Tensor]], int]:
        rank, world_size, size = self.ranks.rank, self.ranks.world_size, len(self.rows)
        start = rank * (size // world_size) + min(rank, size % world_size)
        count = share(size, rank, world_size)
        sums: dict[str, tuple[Tensor, Tensor]] = defaultdict(lambda: (zero, zero))
        zero = torch.zeros((), dtype=torch.float64, device=self.learner.accelerator.device)
        for offset in range(start, start + max(count, 1), self.batch_size):
            ids = np.arange(offset, min(offset + self.batch_size, start + max(count, 1))) % size
            batch = to_device(self.rows.fetch(ids), self.learner.accelerator.device, self.learner.dtype)
            for name, (total, weight) in self.learner.task.eval_sums(self.learner.module, batch).items():
                real = float(count > 0)
                sums[name] = (sums[name][0] + total * real, sums[name][1] + weight * real)
        return sums, count


def floating_buffers(module: nn.Module) -> list[Tensor]:
    """What BatchNorm and its like keep, each rank its own while training: rank 0's are evaluated and saved."""
    return [buffer for buffer in module.buffers() if buffer.is_floating_point()]
