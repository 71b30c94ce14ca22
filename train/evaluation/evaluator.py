"""Exact evaluation: every sample once, on any number of ranks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from train.batch import first_of, share
from train.data import EvaluationSet
from train.data.device_prefetch import to_device
from train.distributed.ranks import Ranks
from train.models.preserve_state import undisturbed
from train.tasks import Task

Evaluate = Callable[[nn.Module], dict[str, float]]
"""Takes a module, inside any wrapper: an evaluation reduces no gradients. Gives {metric: value}."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The sets that a model is evaluated on: the main one under the name "", further ones under theirs."""

    sets: Mapping[str, EvaluationSet]
    task: Task
    ranks: Ranks
    device: torch.device
    dtype: torch.dtype
    batch_size: int

    def __call__(self, module: nn.Module) -> dict[str, float]:
        """{metric: sum / weight over the whole set}, what the task makes of these, and `samples`; `set/metric` for
        further sets.

        A metric whose weight is 0 is left out: nobody knows it.
        """
        self.ranks.copy_from_main(floating_buffers(module))
        with undisturbed(module, self.device), torch.no_grad():
            module.eval()
            metrics: dict[str, float] = {}
            for name, rows in self.sets.items():
                prefix = f"{name}/" if name else ""
                for metric, value in self._evaluate(module, rows).items():
                    metrics[prefix + metric] = value
            return metrics

    def _evaluate(self, module: nn.Module, rows: EvaluationSet) -> dict[str, float]:
        sums, samples = self.ranks.together(lambda: self._local_sums(module, rows))
        totals = self.ranks.sum([samples, *(float(number) for pair in sums.values() for number in pair)])
        pairs = zip(sums, totals[1::2], totals[2::2], strict=True)
        metrics = {name: total / weight for name, total, weight in pairs if weight}
        finish = getattr(self.task, "finish", dict)
        return finish(metrics) | {"samples": totals[0]}

    def _local_sums(self, module: nn.Module, rows: EvaluationSet) -> tuple[dict[str, tuple[Tensor, Tensor]], int]:
        """(sum, weight) of each metric over this rank's part of the set, in float64, on the device.

        A rank with no part runs one sample that counts 0, so that every rank knows the names of the metrics.
        """
        start = first_of(len(rows), self.ranks.rank, self.ranks.world_size)
        count = share(len(rows), self.ranks.rank, self.ranks.world_size)
        ids = np.arange(start, start + count) if count else np.zeros(1, dtype=np.int64)
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        for cpu_batch in rows.batches(ids, self.batch_size):
            self.ranks.beat()
            batch = to_device(cpu_batch, self.device, self.dtype)
            for name, pair in self.task.eval_sums(module, batch).items():
                total, weight = (
                    torch.as_tensor(x if count else 0.0, dtype=torch.float64, device=self.device) for x in pair
                )
                before = sums.get(name)
                sums[name] = (before[0] + total, before[1] + weight) if before else (total, weight)
        return sums, count


def floating_buffers(module: nn.Module) -> list[Tensor]:
    """What BatchNorm and its like keep, each rank its own while training: rank 0's are evaluated and saved."""
    return [buffer for buffer in module.buffers() if buffer.is_floating_point()]
