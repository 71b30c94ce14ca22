"""For `verify`: the gradient of one step, split in many ways, against the same step unsplit."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from train.batch import BatchPlan, make_plan
from train.batch.window import Batch, Place
from train.data import TrainingSet, Windows
from train.distributed.ranks import Ranks
from train.exactness.difference import gradient_difference
from train.exactness.error_bounds import BOUNDS, ROUNDS
from train.exactness.reference_gradient import (
    active_batch_norms,
    gradients_or_zeros,
    loss_sums,
)
from train.step import ComputeGradient, Learner
from train.tasks import by_term

COLUMNS = "{:<15}  {:<24}  {:<8}  {:<24}  {}"


@dataclass(frozen=True, kw_only=True)
class SplitResult:
    """One split, measured."""

    precision: str  # a key of BOUNDS
    split: str
    error: float  # |gradient - reference| / |reference|
    worst_parameter: str  # with the largest error relative to its own norm

    @property
    def is_exact(self) -> bool:
        return self.error <= BOUNDS[self.precision]

    def __str__(self) -> str:
        bound = BOUNDS[self.precision]
        if not self.is_exact:
            verdict = f"NOT EXACT (bound {bound:.0e})"
        elif self.precision in ROUNDS:
            verdict = f"within {self.precision}"
        else:
            verdict = "exact"
        error = f"{self.error:.1e}"
        return COLUMNS.format(self.precision, self.split, error, self.worst_parameter, verdict)


@dataclass(frozen=True)
class SplitGradient:
    gradient: list[Tensor]
    micro_batches: int  # of each rank, in the whole step


@dataclass
class SplitCheck:
    """Of the first step of the run, in one precision."""

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

    def results(self, terms: Sequence[str]) -> Iterator[SplitResult]:
        """In 1, 2, 3, half a share's and the run's own number of micro-batches on each rank."""
        # The reference first: where memory is short it makes the step smaller, for all splits
        # alike.
        reference = self.unsplit(terms)
        largest_share = -(-self.size // self.plan.world_size)
        most = max(1, largest_share // 2)
        has_batch_norm = bool(active_batch_norms(self.learner.module))
        measured = set()
        for steps in sorted({1, 2, 3, self.plan.accumulation_steps, largest_share // 2}):
            # With one sample in a micro-batch, BatchNorm would raise instead of being found out.
            is_runs_own = steps == self.plan.accumulation_steps and not has_batch_norm
            if not is_runs_own and not 1 <= steps <= most:
                continue
            split = self.gradient(steps, terms)
            if split.micro_batches not in measured:
                yield self.compare(reference, split)
            measured.add(split.micro_batches)

    def unsplit(self, terms: Sequence[str]) -> list[Tensor]:
        """The gradient of one backward pass over the whole step, on each rank alone.

        Where that does not fit in memory: over the largest step that fits on all ranks, found by
        bisection. The plan is then that of the smaller step.
        """
        full_size = self.size
        gradient = self._unsplit_if_it_fits(terms)
        if gradient is not None:
            return gradient
        too_large = full_size
        largest = 0
        while largest + 1 < too_large:
            self._resize((largest + too_large) // 2)
            tried = self._unsplit_if_it_fits(terms)
            if tried is None:
                too_large = self.size
            else:
                largest = self.size
                gradient = tried
        if gradient is None:
            raise torch.OutOfMemoryError("one sample does not fit the memory")
        self._resize(largest)
        if self.ranks.is_main:
            print(
                f"verify: {full_size} samples do not fit unsplit; the reference is a step of "
                f"{largest}"
            )
        return gradient

    def _resize(self, samples: int) -> None:
        """Of the step; micro-batches stay as large as they are."""
        share = -(-samples // self.plan.world_size)
        count = -(-share // self.plan.micro)
        self.plan = dataclasses.replace(self.plan, effective=samples, accumulation_steps=count)

    def _unsplit_if_it_fits(self, terms: Sequence[str]) -> list[Tensor] | None:
        """None where it does not fit on a rank."""
        while True:
            gradient = None
            with contextlib.suppress(torch.OutOfMemoryError):
                gradient = self._unsplit(terms)
            # All ranks agree: the other splits need all of them.
            if self.ranks.sum([gradient is None])[0]:
                # Blocks of the failed try have its sizes: the smaller one would not fit between
                # them.
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                return None
            assert gradient is not None
            scaler = self.learner.scaler
            if not scaler.is_enabled() or all(part.isfinite().all() for part in gradient):
                return gradient
            # Too large for float16: as the scaler does after a step that overflows.
            scaler.update(scaler.get_scale() / 2)

    def _unsplit(self, terms: Sequence[str]) -> list[Tensor]:
        learner = self.learner
        with self._fresh(0):
            batch = self.samples(self.size)
            weights = by_term(learner.task.loss_weight(batch))
            sums = loss_sums(learner, batch)
            losses = []
            for term in terms:
                if weights[term]:
                    losses.append(learner.coefficients[term] * sums[term] / weights[term])
            learner.accelerator.backward(learner.scaler.scale(torch.stack(losses).sum()))
            return self._copied_gradient()

    def gradient(self, accumulation_steps: int, terms: Sequence[str]) -> SplitGradient:
        """As the loop computes it, in so many micro-batches on each rank.

        Texts that are cut to their length may need fewer.
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
        windows = Windows(
            shares=data.shares(plan, self.seed, self.ranks.rank, Place(), None),
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
            return SplitGradient(self._copied_gradient(), len(window.micro_batches))

    def compare(self, reference: Sequence[Tensor], split: SplitGradient) -> SplitResult:
        difference = gradient_difference(self.learner, reference, split.gradient)
        loop = "standard" if split.micro_batches == 1 else "accumulate"
        return SplitResult(
            precision=self.precision,
            split=f"{self.plan.world_size} x {split.micro_batches} ({loop})",
            error=difference.error,
            worst_parameter=difference.worst_parameter,
        )

    @contextmanager
    def _fresh(self, draw: int) -> Iterator[None]:
        """No gradients before or after, and the same buffers for every split.

        Not the same random numbers, which may hide a mask: halves of a batch draw one after the
        other what the full batch draws at once.
        """
        self.learner.optimizer.zero_grad(set_to_none=True)
        buffers = [(buffer, buffer.clone()) for buffer in self.learner.module.buffers()]
        torch.manual_seed(self.seed + draw)
        try:
            yield
        finally:
            self.learner.optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                for buffer, saved in buffers:
                    buffer.copy_(saved)

    def _copied_gradient(self) -> list[Tensor]:
        """In float32 or wider: copied, since the next split overwrites `.grad`."""
        wide = torch.promote_types(self.learner.dtype, torch.float32)
        gradients = gradients_or_zeros(self.learner.parameters)
        return [gradient.to(wide, copy=True) for gradient in gradients]
