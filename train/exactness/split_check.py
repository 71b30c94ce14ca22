"""One step of a run, split in many ways, against the same step unsplit: by how much does its
gradient differ?
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.batch import BatchPlan, make_plan
from train.batch.window import Batch, Place
from train.data import TrainingSet, Windows
from train.data.device_prefetch import to_device
from train.distributed.ranks import Ranks
from train.distributed.sharded import local
from train.exactness.additivity import BOUNDS, ROUNDS
from train.exactness.difference import difference
from train.exactness.reference_gradient import at_work
from train.step import ComputeGradient, Learner
from train.tasks import by_term

COLUMNS = "{:<15}  {:<24}  {:<8}  {:<24}  {}"


@dataclass(frozen=True)
class Line:
    """One split, measured."""

    precision: str  # a key of BOUNDS
    split: str
    error: float  # |gradient - reference| / |reference|
    worst: str  # the parameter with the largest error of its own

    @property
    def is_exact(self) -> bool:
        return self.error <= BOUNDS[self.precision]

    def __str__(self) -> str:
        good = f"within {self.precision}" if self.precision in ROUNDS else "exact"
        verdict = good if self.is_exact else f"NOT EXACT (bound {BOUNDS[self.precision]:.0e})"
        return COLUMNS.format(self.precision, self.split, f"{self.error:.1e}", self.worst, verdict)


@dataclass
class Step:
    """The first step of the run, in one precision."""

    learner: Learner
    data: TrainingSet
    plan: BatchPlan
    seed: int
    ranks: Ranks
    precision: str
    compute_gradient: ComputeGradient  # of the accumulation loop

    @property
    def size(self) -> int:
        return min(self.plan.effective, self.data.size or self.plan.effective)

    def samples(self, count: int) -> Batch:
        return self.data.first(self.seed, count)

    def lines(self, terms: Sequence[str]) -> Iterator[Line]:
        unsplit = self.unsplit(terms)
        largest_share = -(-self.size // self.plan.world_size)
        seen = set()
        normalised = bool(at_work(self.learner.module, nn.modules.batchnorm._BatchNorm))
        for wanted in sorted({1, 2, 3, self.plan.accumulation_steps, largest_share // 2}):
            # With one sample in a micro-batch, BatchNorm would raise instead of being found out.
            own = wanted == self.plan.accumulation_steps and not normalised
            if own or 1 <= wanted <= max(1, largest_share // 2):
                found, count = self.gradient(wanted, terms)
                if count not in seen:
                    yield self.compare(unsplit, found, count)
                seen.add(count)

    def unsplit(self, terms: Sequence[str]) -> list[Tensor]:
        """One backward pass over the whole step, on each rank by itself; over the largest part that
        all have room for, where not over the whole.
        """
        whole, too_large, largest = self.size, self.size, 0
        found = self._fitting(terms)
        if found is not None:
            return found
        while largest + 1 < too_large:
            self._resize((largest + too_large) // 2)
            tried = self._fitting(terms)
            if tried is None:
                too_large = self.size
            else:
                largest, found = self.size, tried
        if found is None:
            raise torch.OutOfMemoryError("one sample does not fit the memory")
        self._resize(largest)
        if self.ranks.is_main:
            print(
                f"verify: {whole} samples do not fit unsplit; the reference is a step of {largest}"
            )
        return found

    def _resize(self, samples: int) -> None:
        """Of the step; micro-batches stay as large as they are."""
        share = -(-samples // self.plan.world_size)
        count = -(-share // self.plan.micro)
        self.plan = dataclasses.replace(self.plan, effective=samples, accumulation_steps=count)

    def _fitting(self, terms: Sequence[str]) -> list[Tensor] | None:
        """The unsplit gradient; None where a rank has no room for it."""
        while True:
            found = None
            with contextlib.suppress(torch.OutOfMemoryError):
                found = self._unsplit(terms)
            if self.ranks.sum([found is None])[0]:
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                return None
            assert found is not None
            if not self.learner.scaler.is_enabled() or all(
                gradient.isfinite().all() for gradient in found
            ):
                return found
            self.learner.scaler.update(self.learner.scaler.get_scale() / 2)  # too large for float16

    def _unsplit(self, terms: Sequence[str]) -> list[Tensor]:
        learner = self.learner
        with self._fresh(0):
            batch = self.samples(self.size)
            weights = by_term(learner.task.loss_weight(batch))
            sums = by_term(
                learner.task.loss_sum(
                    learner.module, to_device(batch, learner.device, learner.dtype)
                )
            )
            parts = [
                learner.coefficients[term] * sums[term] / weights[term]
                for term in terms
                if weights[term]
            ]
            learner.accelerator.backward(learner.scaler.scale(torch.stack(parts).sum()))
            return self._taken()

    def gradient(self, accumulation_steps: int, terms: Sequence[str]) -> tuple[list[Tensor], int]:
        """As the loop would compute it, in so many micro-batches on each rank; and how many there
        were: texts that are cut to their length may need fewer.
        """
        plan = make_plan(
            self.size,
            "all",
            accumulation_steps,
            world_size=self.plan.world_size,
            dataset_size=self.data.size,
        )
        task = self.learner.task
        data = self.data.one_step(plan, self.seed)
        shares = data.shares(plan, self.seed, self.ranks.rank, Place(), None)
        windows = Windows(
            shares=shares,
            announce=self.learner.feed.announce,
            ranks=self.ranks,
            terms=terms,
            loss_weight=lambda batch: by_term(task.loss_weight(batch)),
            stop_requested=lambda: False,
            last=1,
        )
        with self._fresh(accumulation_steps):
            window = next(iter(windows))
            self.learner.parallel.around(self.compute_gradient)(self.learner, window)
            return self._taken(), len(window.micro_batches)

    def compare(self, reference: Sequence[Tensor], found: Sequence[Tensor], count: int) -> Line:
        found_out = difference(self.learner, reference, found)
        loop = "standard" if count == 1 else "accumulate"
        split = f"{self.plan.world_size} x {count} ({loop})"
        return Line(self.precision, split, found_out.error, found_out.worst)

    @contextmanager
    def _fresh(self, draw: int) -> Iterator[None]:
        """No gradients before or after, and the same buffers for every split; not the same random
        numbers, which may agree by chance: halves draw one after the other what the whole draws at
        once.
        """
        self.learner.optimizer.zero_grad(set_to_none=True)
        buffers = [(buffer, buffer.clone()) for buffer in self.learner.module.buffers()]
        torch.manual_seed(self.seed + draw)
        try:
            yield
        finally:
            self.learner.optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                for buffer, kept in buffers:
                    buffer.copy_(kept)

    def _taken(self) -> list[Tensor]:
        wide = torch.promote_types(self.learner.dtype, torch.float32)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.learner.parameters]
        return [local(gradient).to(wide, copy=True) for gradient in grads]
