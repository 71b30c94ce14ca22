"""Exact evaluation: every sample once, on any number of ranks."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn

from train.batch import first_of, key_of, share
from train.batch.window import Batch
from train.data import EvaluationSet
from train.data.device_prefetch import travelling
from train.distributed.accelerator import free_memory
from train.distributed.ranks import Ranks
from train.errors import RunFailed, UserError, ends_in_a_sentence, is_out_of_memory, print_error
from train.evaluation.main_buffers import take_main
from train.evaluation.sums import SAMPLES, Sums, join, over_ranks, read_sums
from train.evaluation.together import side_by_side
from train.models.preserve_state import undisturbed
from train.randomness import DATA_SEED, Generators
from train.tasks import Task

Evaluate = Callable[[nn.Module], dict[str, float]]
"""Takes a module, inside any wrapper: an evaluation reduces no gradients. Gives {metric: value}."""

# in the key of a place in a set; of four numbers, as no key of a step or a sample is
EVALUATION = 2


class EvaluationFailed(UserError):
    """The task's own code raised in an evaluation."""


class NoRoom(RunFailed):
    """An evaluation of one sample at a time does not fit in memory."""


@dataclass(kw_only=True)
class Evaluation:
    """The sets that a model is evaluated on: the main one under the name "", further ones under
    theirs.
    """

    sets: Mapping[str, EvaluationSet]
    task: Task
    ranks: Ranks
    device: torch.device
    dtype: torch.dtype
    batch_size: int
    """Samples that a rank takes at once; halved on all ranks where one of them runs out of memory.
    """
    in_step: bool = False
    """A forward pass needs all ranks: each computes as many batches as the one that has most."""
    stopping: Callable[[], bool] = lambda: False
    """Whether a stop was asked for on this rank: Abandoned is then raised on all of them, before
    the next batch.
    """
    timed: Callable[[float], None] = lambda seconds: None
    """Told the seconds that each batch took: a stop waits for so long."""

    def __call__(self, module: nn.Module) -> dict[str, float]:
        """{metric: sum / weight over the whole set}, what the task makes of these, and `samples`;
        `set/metric` for further sets.

        A metric whose weight is 0 is left out: nobody knows it. All ranks evaluate with rank 0's
        buffers, and each has its own again afterwards. Raises, on all ranks, what is raised on one.
        """
        with undisturbed(module, self.device), torch.no_grad():
            take_main(module, self.ranks)
            module.eval()
            metrics: dict[str, float] = {}
            for name, rows in self.sets.items():
                prefix = f"{name}/" if name else ""
                for metric, value in self._evaluate(module, rows).items():
                    metrics[prefix + metric] = value
            return metrics

    def _evaluate(self, module: nn.Module, rows: EvaluationSet) -> dict[str, float]:
        local = self._fitting_sums(module, rows)
        numbers = {name: total.numbers() for name, total in local.items()}
        of_ranks = self.ranks.gather(numbers)
        # From here on the same on every rank.
        finish = getattr(self.task, "finish", dict)
        with self._in_a_sentence("finish"):
            return {**finish(over_ranks(of_ranks)), SAMPLES: float(len(rows))}

    def _fitting_sums(self, module: nn.Module, rows: EvaluationSet) -> Sums:
        """Those of this rank. Where a rank runs out of memory, all begin again with half as many
        samples at once.
        """
        while True:
            sums = self.ranks.together(lambda: self._sums_or_none(module, rows))
            full = self.ranks.sum([sums is None])[0] > 0
            if sums is not None and not full:
                return sums
            if self.batch_size == 1:
                raise NoRoom(
                    "an evaluation runs out of memory with one sample at a time on each rank. Take "
                    "shorter samples for the evaluation sets, or a smaller model"
                )
            self.batch_size = (self.batch_size + 1) // 2
            print_error(
                f"an evaluation ran out of memory: from here on {self.batch_size} samples at once "
                "on each rank"
            )
            free_memory(self.device)

    def _sums_or_none(self, module: nn.Module, rows: EvaluationSet) -> Sums | None:
        """None where the memory is not enough. The error is not kept: it would keep what it could
        not free.
        """
        try:
            return self._local_sums(module, rows)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return None

    def _local_sums(self, module: nn.Module, rows: EvaluationSet) -> Sums:
        """Over this rank's part of the set, on the device; nothing where it has no part."""
        start = first_of(len(rows), self.ranks.rank, self.ranks.world_size)
        own = share(len(rows), self.ranks.rank, self.ranks.world_size)
        ids = start + np.arange(own)
        sums: Sums = {}
        generators = Generators(self.device)

        def batches_of(samples: int) -> int:
            return -(-samples // self.batch_size)

        def add(numbered: tuple[int, Batch]) -> None:
            number, batch = numbered
            start_seconds = time.perf_counter()
            self.ranks.pulse.beat()
            # What a model or a task draws depends on the place in the set, not on what was drawn
            # before.
            generators.seed(key_of(DATA_SEED, EVALUATION, 0, start + number * self.batch_size) >> 1)
            with self._in_a_sentence("eval_sums"):
                found = read_sums(self.task.eval_sums(module, batch), self.device)
            if number < batches_of(own):
                join(sums, found)
            self.timed(time.perf_counter() - start_seconds)

        # rank 0 has no fewer than any other
        count = batches_of(share(len(rows), 0, self.ranks.world_size))
        read = rows.batches(ids, self.batch_size)
        if self.in_step:  # one that does not count, where this rank has fewer
            read = chain(
                read,
                (next(rows.batches(np.zeros(1, int), 1)) for _ in range(batches_of(own), count)),
            )
        batches = travelling(read, self.device, self.dtype)
        side_by_side(enumerate(batches), count, add, self.ranks, self.stopping, self.in_step)
        return sums

    def _in_a_sentence(self, method: str) -> Any:
        return ends_in_a_sentence(
            EvaluationFailed, f"{method} of task {type(self.task).__name__} raised"
        )
