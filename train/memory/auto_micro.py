"""batch.micro=auto: finds a micro-batch before the first step, the same on all ranks.

The effective batch stays what it is.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from train.batch.window import MASK, Batch
from train.config import Loaded, source_hash
from train.distributed.accelerator import Unsupported
from train.distributed.ranks import Ranks
from train.exactness.lone_sample import check_lone_samples
from train.exactness.preflight import Preflight
from train.memory.cache_file import cache_key, read_cached, write_cached
from train.memory.memory_trace import (
    AS_CONFIGURED,
    save_trace,
    saved_trace,
    trace_in_subprocess,
)
from train.memory.probe import Probe, limit_of
from train.memory.restore import restored_afterwards
from train.memory.search import (
    all_fitting,
    candidates,
    doublings,
    largest_fitting,
    measured_down,
    smallest_fast,
)
from train.memory.sizes import GIB, parameters_and_buffers, stored_bytes
from train.plan.make import Prepared, as_shrunk
from train.plan.stages import largest_effective
from train.plan.steps import plan_batch
from train.step import Learner

KIND = "micro_batches"
CLOCK: Callable[[], float] = time.perf_counter


@dataclass(frozen=True, kw_only=True)
class MicroSearch:
    """The result of a search; plan.json has it as `micro_search`."""

    largest_fitting: int
    chosen: int  # the smallest within 3 % of the best throughput
    evaluation: int  # samples that a rank evaluates at once
    samples_per_second: Mapping[str, float]  # of a rank, by micro-batch: measured
    predicted: int | None  # the largest that was predicted to fit; None: not traced
    source: str = "searched"


def choose_micro_batch(
    prepared: Prepared, learner: Learner, tried: Preflight, loaded: Loaded, ranks: Ranks
) -> Prepared:
    """`prepared` with the micro-batch that batch.micro=auto finds, and a predicted peak.

    Model, optimizer, buffers and generators are bit for bit as they were. Raises
    torch.OutOfMemoryError on all ranks where not one sample fits on one of them, and Unsupported
    where weights are sharded.
    """
    if loaded.config.batch.micro != "auto":
        return _with_prediction(prepared, learner, loaded, ranks)
    if learner.parallel.is_sharded:
        raise Unsupported(
            "batch.micro=auto: a forward pass of a sharded model (FSDP2) is one of all ranks, and "
            "one that runs out of memory alone would leave the others waiting. Set a number, such "
            "as: batch.micro=8"
        )
    # Steps are taken on the run's own model and optimizer: a copy of both would take the memory
    # that is to be measured.
    with restored_afterwards(learner), _frozen_heap():
        result = _Search(prepared, learner, tried, loaded, ranks).result()
    config = loaded.config
    with_number = replace(config, batch=replace(config.batch, micro=result.chosen))
    plan = prepared.plan
    batch = plan_batch(with_number, plan.loop, plan.batch.world_size, plan.batch.dataset_size)
    # Into the plan, and so into plan.json: a reader sees what was tried, and how fast it was.
    prepared = replace(prepared, plan=replace(plan, batch=batch, micro_search=asdict(result)))
    # A run that has shrunk before keeps the smaller size: it is what has fitted in a real step.
    prepared = as_shrunk(prepared, config, ranks)
    # The preflight had another micro-batch: the tail of an epoch may now leave one sample alone.
    ranks.together(lambda: check_lone_samples(learner, tried.trial, prepared.plan, config))
    return _with_prediction(prepared, learner, loaded, ranks)


@contextmanager
def _frozen_heap() -> Iterator[None]:
    """Inside, no garbage collection looks at the objects that are there now.

    Each probe collects: over all that torch and datasets have imported, that takes 0.2 s.
    """
    if gc.get_freeze_count():  # by somebody else, who would not have it undone
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _with_prediction(
    prepared: Prepared, learner: Learner, loaded: Loaded, ranks: Ranks
) -> Prepared:
    """With the predicted peak, where this model was traced before and a peak will be measured."""
    target = learner.device.type
    # A prediction is stored only to be compared: on a CPU no peak is measured but in a smoke run.
    is_measured = target == "cuda" or (target == "cpu" and "--smoke" in loaded.flags)
    # The trace is of a model that is not sharded.
    if not is_measured or learner.parallel.is_sharded:
        return prepared
    # The prediction is for the largest share, but each rank measures its own.
    if prepared.plan.batch.weights:
        return prepared
    trace = ranks.from_main(lambda: saved_trace(loaded.config, target))
    if trace is None:
        return prepared
    batch = prepared.plan.batch
    try:
        anatomy = trace.anatomy(batch.micro, batch.accumulation_steps, batch.world_size)
    except KeyError:  # not traced in this size
        return prepared
    if target == "cpu":
        # They are on the device already, before the step that is measured.
        del anatomy["samples"]
    return replace(prepared, plan=replace(prepared.plan, predicted_peak=sum(anatomy.values())))


class _Search:
    """The same on all ranks: they agree on the answer to each question before the next one."""

    def __init__(
        self, prepared: Prepared, learner: Learner, tried: Preflight, loaded: Loaded, ranks: Ranks
    ) -> None:
        plan = prepared.plan.batch
        self.ranks = ranks
        self.loaded = loaded
        self.learner = learner
        # Rounded up: of the rank with the most samples.
        self.share = -(-plan.effective // plan.world_size)
        self.largest_share = -(-largest_effective(plan) // plan.world_size)
        shares = [-(-len(rows) // plan.world_size) for rows in prepared.sets.evaluation.values()]
        self.evaluated = max(shares, default=0)  # samples of a rank in the largest evaluation
        self.probe = ranks.together(lambda: self._make_probe(tried, plan.world_size))

        self.sizes = candidates(self.share)
        # Asked before the search, in which BatchNorm's error would end the run.
        if not self._agreed(self.probe.takes_one_sample):
            # Without those that leave a micro-batch of one sample anywhere in the step.
            several = [size for size in self.sizes if self.share // -(-self.share // size) > 1]
            self.sizes = several or self.sizes

    def _make_probe(self, tried: Preflight, world_size: int) -> Probe:
        config = self.loaded.config
        average = 0
        if config.ema.decay is not None:
            average = stored_bytes(parameters_and_buffers(self.learner.module))
        return Probe(
            learner=self.learner,
            terms=list(tried.exactness.terms),
            like=_unmasked(tried.trial),
            world_size=world_size,
            limit=limit_of(self.learner.device, config.memory.limit_gib),
            average=average,
            clock=CLOCK,
        )

    def result(self) -> MicroSearch:
        # Rank 0's cache counts for all: each machine may have another one.
        key = self.ranks.from_main(lambda: cache_key(self._facts()))
        cached = self.ranks.from_main(lambda: read_cached(KIND, key))
        if cached is not None:
            with suppress(TypeError):  # written by another version of this package
                result = MicroSearch(**cached | {"source": "remembered"})
                if self._still_fits(result):
                    return result
        result = self._searched()
        self.ranks.from_main(lambda: write_cached(KIND, key, asdict(result)))
        return result

    def _still_fits(self, result: MicroSearch) -> bool:
        """Tried again: less memory may be free than when it was cached."""
        return (
            result.chosen in self.sizes
            and self._fits(result.chosen)
            and self._evaluates(result.evaluation)
        )

    def _searched(self) -> MicroSearch:
        # Traced by rank 0 alone: a trace takes a process and seconds, and all ranks need the same
        # guess, to ask the same questions.
        guess = self.ranks.from_main(self._predicted)
        fitting = all_fitting(self.sizes, self._fits, guess)
        if not fitting:
            raise torch.OutOfMemoryError(
                f"out of memory: not one sample at a time fits on each rank (batch.micro=auto; "
                f"{self.probe.limit / GIB:.3g} GiB may be used)"
            )
        throughput = measured_down(doublings(fitting), self._samples_per_second)
        chosen = smallest_fast(throughput)
        return MicroSearch(
            largest_fitting=fitting[-1],
            chosen=chosen,
            evaluation=self._evaluation(chosen),
            samples_per_second={str(size): speed for size, speed in throughput.items()},
            predicted=guess,
        )

    def _evaluation(self, chosen: int) -> int:
        """As many samples at once as fit; without a gradient, more than a micro-batch."""
        if not self.evaluated:
            return chosen
        sizes = doublings(candidates(self.evaluated))
        return largest_fitting(sizes, self._evaluates, guess=min(chosen, self.evaluated)) or 1

    def _fits(self, size: int) -> bool:
        return self._agreed(lambda: self.probe.fits(size, self._steps(size)))

    def _evaluates(self, size: int) -> bool:
        return self._agreed(lambda: self.probe.evaluates(size))

    def _agreed(self, fits: Callable[[], bool]) -> bool:
        """Whether it holds on all ranks."""
        # Two messages: an error other than out of memory is raised on all ranks, and a full one
        # makes all say no.
        fits_here = self.ranks.together(fits)
        return self.ranks.sum([not fits_here])[0] == 0

    def _samples_per_second(self, size: int) -> float:
        seconds = self.ranks.together(lambda: self.probe.seconds(size, self._steps(size)))
        # The slowest rank counts, since the others wait for it in the reduction.
        return self.largest_share / max(self.ranks.gather(seconds))

    def _steps(self, size: int) -> int:
        """Micro-steps in the largest stage of a schedule.

        With several, gradients persist between them; a lone rank with one frees them.
        """
        return -(-self.largest_share // size)

    def _predicted(self) -> int | None:
        """The largest that is predicted to fit on rank 0; None where the model cannot be traced."""
        words = [str(self.loaded.path), *self.loaded.overrides]
        target = self.learner.device.type
        trace = trace_in_subprocess(words, target, (AS_CONFIGURED,), doublings(self.sizes))
        save_trace(trace, self.loaded.config)
        fitting = []
        for size in self.sizes:
            with suppress(KeyError):
                peak = trace.peak(size, self._steps(size), self.ranks.world_size)
                if peak <= self.probe.limit:
                    fitting.append(size)
        return max(fitting, default=None)

    def _facts(self) -> dict[str, Any]:
        """Everything that the result depends on."""
        config = self.loaded.config
        device = self.learner.device
        is_gpu = device.type == "cuda"
        samples = {}
        for name, column in self.probe.like.items():
            samples[name] = (list(column.shape[1:]), str(column.dtype))
        return {
            "code": source_hash(config),
            "model": asdict(config.model),
            "task": asdict(config.task),
            "optimizer": asdict(config.optimizer),
            "memory": asdict(config.memory),
            "average": config.ema.decay is not None,
            "precision": config.precision,
            "samples": samples,
            "share": [self.share, self.largest_share],
            "evaluated": self.evaluated,
            "world_size": self.ranks.world_size,
            "device": torch.cuda.get_device_name(device) if is_gpu else "cpu",
            # On a CPU the limit without a config key follows what is free now: never the same.
            "limit": self.probe.limit if is_gpu else config.memory.limit_gib,
            "torch": torch.__version__,
        }


def _unmasked(trial: Batch) -> Batch:
    """The same samples, all of their tokens seen: as much memory as any sample takes."""
    batch = dict(trial)
    if MASK in batch:
        batch[MASK] = torch.ones_like(batch[MASK])
    return batch
