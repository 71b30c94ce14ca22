"""Exact evaluation: every sample once, on any number of ranks."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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
from train.evaluation.lockstep import run_in_lockstep
from train.evaluation.main_buffers import copy_buffers_from_main
from train.evaluation.sums import SAMPLES, Sums, join, over_ranks, read_sums
from train.models.preserve_state import preserve_state
from train.randomness import DATA_SEED, Generators
from train.tasks import Task

Evaluate = Callable[[nn.Module], dict[str, float]]
"""Takes a module, inside any wrapper: an evaluation reduces no gradients. Gives {metric: value}."""

# In the key of a position in a set; of four numbers, as no key of a step or a sample is.
EVALUATION = 2


class EvaluationFailed(UserError):
    """The task's own code raised in an evaluation."""


class EvaluationOutOfMemory(RunFailed):
    """An evaluation of one sample at a time does not fit in memory."""


@dataclass(kw_only=True)
class Evaluation:
    """The sets that a model is evaluated on: the main one is named "", further ones by the user."""

    sets: Mapping[str, EvaluationSet]
    task: Task
    ranks: Ranks
    device: torch.device
    dtype: torch.dtype
    batch_size: int
    """Samples that a rank takes at once; halved on all ranks where one runs out of memory."""
    needs_all_ranks: bool = False
    """A forward pass does (FSDP2): each computes as many batches as the one that has most."""
    stop_requested: Callable[[], bool] = lambda: False
    """On this rank. EvaluationStopped is then raised on all of them, before the next batch."""
    on_batch: Callable[[float], None] = lambda seconds: None
    """Called with the seconds that each batch took: a stop waits for so long."""

    def __call__(self, module: nn.Module) -> dict[str, float]:
        """{metric: sum / weight over the whole set}, what the task makes of these, and `samples`.

        `set/metric` for further sets. A metric whose weight is 0 is unknown, and absent. All
        ranks evaluate with rank 0's buffers, and each has its own again afterwards. Raises, on all
        ranks, what is raised on one.
        """
        with preserve_state(module, self.device), torch.no_grad():
            # Else the value would depend on which samples each rank has seen while training.
            # Inside preserve_state, which gives each rank its own buffers back: copied before it,
            # rank 0's would stay, and an evaluation would change the training.
            copy_buffers_from_main(module, self.ranks)
            module.eval()
            metrics: dict[str, float] = {}
            for name, rows in self.sets.items():
                prefix = f"{name}/" if name else ""
                for metric, value in self._evaluate(module, rows).items():
                    metrics[prefix + metric] = value
            return metrics

    def _evaluate(self, module: nn.Module, rows: EvaluationSet) -> dict[str, float]:
        sums = self._sums_of_rank(module, rows)
        # By name and on the host. In an all-reduce of one vector the numbers would be joined by
        # position, and a rank whose batches hold another class meets its metrics in another order.
        numbers = {name: total.numbers() for name, total in sums.items()}
        numbers_of_ranks = self.ranks.gather(numbers)
        # From here on the same on every rank.
        finish = getattr(self.task, "finish", dict)
        with self._raises_evaluation_failed("finish"):
            return {**finish(over_ranks(numbers_of_ranks)), SAMPLES: float(len(rows))}

    def _sums_of_rank(self, module: nn.Module, rows: EvaluationSet) -> Sums:
        """Where a rank runs out of memory, all begin again with half as many samples at once."""
        while True:
            sums = self.ranks.together(lambda: self._sums_if_they_fit(module, rows))
            # Of any rank: all run as many batches, which the size decides.
            is_full_somewhere = self.ranks.sum([sums is None])[0] > 0
            if sums is not None and not is_full_somewhere:
                return sums
            if self.batch_size == 1:
                raise EvaluationOutOfMemory(
                    "an evaluation runs out of memory with one sample at a time on each rank. Take "
                    "shorter samples for the evaluation sets, or a smaller model"
                )
            # For the rest of the run: the next evaluation would run out of memory at the same size.
            self.batch_size = (self.batch_size + 1) // 2
            print_error(
                f"an evaluation ran out of memory: from here on {self.batch_size} samples at once "
                "on each rank"
            )
            free_memory(self.device)

    def _sums_if_they_fit(self, module: nn.Module, rows: EvaluationSet) -> Sums | None:
        """None where they do not fit in memory.

        The error is not returned: its traceback would hold the tensors that have to be freed.
        """
        try:
            return self._compute_sums(module, rows)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return None

    def _compute_sums(self, module: nn.Module, rows: EvaluationSet) -> Sums:
        """Over this rank's share of the set, on the device; empty where it has none."""
        start = first_of(len(rows), self.ranks.rank, self.ranks.world_size)
        count = self._batches_of(share(len(rows), self.ranks.rank, self.ranks.world_size))
        sums: Sums = {}
        generators = Generators(self.device)

        def add(numbered: tuple[int, Batch]) -> None:
            number, batch = numbered
            start_seconds = time.perf_counter()
            # For the watchdog: a long evaluation is no hang.
            self.ranks.pulse.beat()
            # What a model or a task draws depends on the position in the set, not on what was drawn
            # before.
            position = start + number * self.batch_size
            generators.seed(key_of(DATA_SEED, EVALUATION, 0, position) >> 1)
            with self._raises_evaluation_failed("eval_sums"):
                metrics = read_sums(self.task.eval_sums(module, batch), self.device)
            # A filler only takes part in the collectives of a forward pass: counted, its sample
            # would be there twice.
            is_filler = number >= count
            if not is_filler:
                join(sums, metrics)
            self.on_batch(time.perf_counter() - start_seconds)

        # Rank 0 has no fewer samples than any other.
        largest_count = self._batches_of(share(len(rows), 0, self.ranks.world_size))
        # The next batch is read and sent to the device while the present one is worked on.
        batches = travelling(self._read(rows, largest_count), self.device, self.dtype)
        run_in_lockstep(
            enumerate(batches),
            largest_count,
            add,
            self.ranks,
            self.stop_requested,
            self.needs_all_ranks,
        )
        return sums

    def _read(self, rows: EvaluationSet, largest_count: int) -> Iterator[Batch]:
        """This rank's batches; where a forward needs all ranks, fillers up to the largest count."""
        start = first_of(len(rows), self.ranks.rank, self.ranks.world_size)
        samples = share(len(rows), self.ranks.rank, self.ranks.world_size)
        yield from rows.batches(start + np.arange(samples), self.batch_size)
        if self.needs_all_ranks:
            for _ in range(self._batches_of(samples), largest_count):
                # Any sample will do, one at a time: its numbers are thrown away.
                yield next(rows.batches(np.zeros(1, int), 1))

    def _batches_of(self, samples: int) -> int:
        return -(-samples // self.batch_size)

    def _raises_evaluation_failed(self, method: str) -> Any:
        """What the user's own code raises inside becomes one sentence with the line in it."""
        return ends_in_a_sentence(
            EvaluationFailed, f"{method} of task {type(self.task).__name__} raised"
        )
