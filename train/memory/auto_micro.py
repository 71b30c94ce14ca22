"""batch.micro=auto: before the first step, which micro-batch? On all ranks the same, and the batch
stays what it is.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from train.batch.window import MASK
from train.config import Loaded, source_hash
from train.distributed.accelerator import Unsupported
from train.distributed.ranks import Ranks
from train.exactness.lone_sample import check_lone_samples
from train.exactness.preflight import Preflight
from train.memory.foresight import AS_CONFIGURED, foresee_apart, keep, recalled
from train.memory.kept import as_it_was
from train.memory.probe import Probe, limit_of
from train.memory.remembered import key_of, recall, remember
from train.memory.search import (
    all_fitting,
    candidates,
    doublings,
    largest_fitting,
    measured_down,
    smallest_fast,
)
from train.memory.sizes import GIB, stored_bytes
from train.plan.make import Prepared, as_shrunk
from train.plan.stages import largest_effective
from train.plan.steps import plan_batch
from train.step import Learner

KIND = "micro_batches"
CLOCK: Callable[[], float] = time.perf_counter


@dataclass(frozen=True, kw_only=True)
class Found:
    """plan.json has it as `micro_search`."""

    largest_fitting: int
    chosen: int  # the smallest within 3 % of the best throughput
    evaluation: int  # samples that a rank evaluates at once
    samples_per_second: Mapping[str, float]  # of a rank, by micro-batch: measured
    predicted: int | None  # the largest that was predicted to fit; None: not traced
    source: str = "searched"


def sized(
    prepared: Prepared, learner: Learner, tried: Preflight, loaded: Loaded, ranks: Ranks
) -> Prepared:
    """What was prepared, with the micro-batch that batch.micro=auto finds; nothing else than that
    changes.

    Model, optimizer, buffers and generators are bit for bit as they were. Raises
    torch.OutOfMemoryError on all ranks where not one sample fits on one of them, and Unsupported
    where weights are divided among the ranks.
    """
    if loaded.config.batch.micro != "auto":
        return _with_prediction(prepared, learner, loaded, ranks)
    if learner.parallel.is_sharded:
        raise Unsupported(
            "batch.micro=auto: a forward pass of a divided model (FSDP2) is one of all ranks, and "
            "one that runs out of memory alone would leave the others waiting. Type a number, such "
            "as: batch.micro=8"
        )
    with as_it_was(learner):
        found = _Search(prepared, learner, tried, loaded, ranks).found()
    config = loaded.config
    stated = replace(config, batch=replace(config.batch, micro=found.chosen))
    plan = prepared.plan
    batch = plan_batch(stated, plan.loop, plan.batch.world_size, plan.batch.dataset_size)
    prepared = replace(prepared, plan=replace(plan, batch=batch, micro_search=asdict(found)))
    prepared = as_shrunk(prepared, config, ranks)
    # Was tried with another micro-batch: the tail of an epoch may now leave one sample alone.
    ranks.together(lambda: check_lone_samples(learner, tried.trial, prepared.plan, config))
    return _with_prediction(prepared, learner, loaded, ranks)


def _with_prediction(
    prepared: Prepared, learner: Learner, loaded: Loaded, ranks: Ranks
) -> Prepared:
    """With the peak that was predicted, where somebody has traced this model, and it can be held
    against a peak.
    """
    target = learner.device.type
    is_measured = target == "cuda" or (target == "cpu" and "--smoke" in loaded.flags)
    if not is_measured or learner.parallel.is_sharded:  # what was traced holds all of the model
        return prepared
    # the largest share alone is predicted, and each rank measures its own
    if prepared.plan.batch.weights:
        return prepared
    foresight = ranks.from_main(lambda: recalled(loaded.config, target))
    batch = prepared.plan.batch
    if foresight is None:
        return prepared
    with suppress(KeyError):  # not traced in this size
        anatomy = foresight.anatomy(batch.micro, batch.accumulation_steps, batch.world_size)
        if target == "cpu":
            del anatomy["samples"]  # they are on the device already
        return replace(prepared, plan=replace(prepared.plan, predicted_peak=sum(anatomy.values())))
    return prepared


class _Search:
    """All ranks ask the same in the same order: what one has found is agreed on before the next is
    asked.
    """

    def __init__(
        self, prepared: Prepared, learner: Learner, tried: Preflight, loaded: Loaded, ranks: Ranks
    ) -> None:
        plan, config = prepared.plan.batch, loaded.config
        self.ranks, self.loaded, self.learner = ranks, loaded, learner
        self.share = -(-plan.effective // plan.world_size)
        self.largest_share = -(-largest_effective(plan) // plan.world_size)
        self.evaluated = max(
            (-(-len(rows) // plan.world_size) for rows in prepared.sets.evaluation.values()),
            default=0,
        )
        like = {name: torch.ones_like(c) if name == MASK else c for name, c in tried.trial.items()}
        module = learner.module
        average = (
            stored_bytes([*module.parameters(), *module.buffers()])
            if config.ema.decay is not None
            else 0
        )
        self.probe = ranks.together(
            lambda: Probe(
                learner=learner,
                terms=list(tried.exactness.terms),
                like=like,
                world_size=plan.world_size,
                limit=limit_of(learner.device, config.memory.limit_gib),
                average=average,
                clock=CLOCK,
            )
        )

        self.sizes = candidates(self.share)
        if not self._agreed(self.probe.takes_one_sample):
            several = [size for size in self.sizes if self.share // -(-self.share // size) > 1]
            self.sizes = several or self.sizes

    def found(self) -> Found:
        key = self.ranks.from_main(lambda: key_of(self._facts()))
        known = self.ranks.from_main(lambda: recall(KIND, key))
        if known is not None:
            with suppress(TypeError):  # of another edition
                found = Found(**known | {"source": "remembered"})
                if (
                    found.chosen in self.sizes
                    and self._fits(found.chosen)
                    and self._evaluates(found.evaluation)
                ):
                    return found
        found = self._searched()
        self.ranks.from_main(lambda: remember(KIND, key, asdict(found)))
        return found

    def _searched(self) -> Found:
        guess = self.ranks.from_main(self._predicted)
        fitting = all_fitting(self.sizes, self._fits, guess)
        if not fitting:
            raise torch.OutOfMemoryError(
                f"out of memory: not one sample at a time fits on each rank (batch.micro=auto; "
                f"{self.probe.limit / GIB:.3g} GiB may be used)"
            )
        throughput = measured_down(doublings(fitting), self._samples_per_second)
        chosen = smallest_fast(throughput)
        return Found(
            largest_fitting=fitting[-1],
            chosen=chosen,
            evaluation=self._evaluation(chosen),
            samples_per_second={str(size): speed for size, speed in throughput.items()},
            predicted=guess,
        )

    def _evaluation(self, chosen: int) -> int:
        """As many at once as fit; without a gradient that is more than a micro-batch."""
        if not self.evaluated:
            return chosen
        sizes = doublings(candidates(self.evaluated))
        return largest_fitting(sizes, self._evaluates, guess=min(chosen, self.evaluated)) or 1

    def _fits(self, size: int) -> bool:
        return self._agreed(lambda: self.probe.fits(size, self._steps(size)))

    def _evaluates(self, size: int) -> bool:
        return self._agreed(lambda: self.probe.evaluates(size))

    def _agreed(self, fits: Callable[[], bool]) -> bool:
        own = self.ranks.together(fits)
        return self.ranks.sum([not own])[0] == 0

    def _samples_per_second(self, size: int) -> float:
        own = self.ranks.together(lambda: self.probe.seconds(size, self._steps(size)))
        return self.largest_share / max(self.ranks.gather(own))

    def _steps(self, size: int) -> int:
        """Of the largest stage: between them gradients stay, which a lone rank does not hold beside
        a single one.
        """
        return -(-self.largest_share // size)

    def _predicted(self) -> int | None:
        """The largest that is predicted to fit on rank 0; None where the model cannot be traced."""
        words = [str(self.loaded.path), *self.loaded.overrides]
        target = self.learner.device.type
        foresight = foresee_apart(words, target, (AS_CONFIGURED,), doublings(self.sizes))
        keep(foresight, self.loaded.config)
        fitting = []
        for size in self.sizes:
            with suppress(KeyError):
                peak = foresight.peak(size, self._steps(size), self.ranks.world_size)
                if peak <= self.probe.limit:
                    fitting.append(size)
        return max(fitting, default=None)

    def _facts(self) -> dict[str, Any]:
        """All that an answer depends on."""
        config, device = self.loaded.config, self.learner.device
        card = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        return {
            "code": source_hash(config),
            "model": asdict(config.model),
            "task": asdict(config.task),
            "optimizer": asdict(config.optimizer),
            "memory": asdict(config.memory),
            "average": config.ema.decay is not None,
            "precision": config.precision,
            "samples": {
                name: (list(c.shape[1:]), str(c.dtype)) for name, c in self.probe.like.items()
            },
            "share": [self.share, self.largest_share],
            "evaluated": self.evaluated,
            "world_size": self.ranks.world_size,
            "device": card,
            "limit": self.probe.limit if device.type == "cuda" else config.memory.limit_gib,
            "torch": torch.__version__,
        }
