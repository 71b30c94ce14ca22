"""Some samples of the first step, put through loss and gradient in several cuts of the batch.

All at once, in a few uneven parts, one by one: where the run is exact, all give the same sum.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from train.batch.window import Batch
from train.data import Padding
from train.exactness.capture import capture
from train.exactness.captured_state import State
from train.exactness.forced_draws import forced_draws
from train.exactness.reference_gradient import (
    LossAndGradient,
    loss_and_gradient,
    loss_sums,
    number_of_samples,
    squared_norms,
)
from train.randomness import Generators, States
from train.step import Learner

INVARIANT = "split_invariant_draws"
"""Attribute of a module or a task whose draws are the same however a batch is cut."""


@dataclass(frozen=True)
class BatchPart:
    """Samples that are put through the model at once."""

    batch: Batch
    indices: Tensor  # of its samples in the full batch


@dataclass(frozen=True)
class Norms:
    """Norms of the loss and of the gradient over all parameters."""

    loss: float
    gradient: float


@dataclass(frozen=True)
class Outcome:
    """What the parts of a cut gave, run one after the other."""

    total: LossAndGradient
    """Over all parts."""
    scale: Norms
    """Sums over the parts of |loss| and |gradient|: what rounding is relative to."""
    state: State
    """Afterwards."""
    drawn: tuple[str, ...]
    """Names of the generators that something was drawn from."""


@dataclass
class Trial:
    """Runs samples in the mode that the module is in, from the state that it was made in."""

    learner: Learner
    full_batch: Batch
    padding: Padding | None
    start: State = field(init=False)
    draws_in_eval: bool = False
    """The loss itself draws random numbers."""
    narrower_inside: str = ""
    """The dtype that explained a difference, where it is narrower than that of the weights."""
    generators: Generators = field(init=False)
    _drawn_in_model: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start = capture(self.learner.module, self.learner.task)
        self.generators = Generators(self.learner.device)

    @property
    def samples(self) -> int:
        return number_of_samples(self.full_batch)

    def cuts(self) -> Iterator[Sequence[BatchPart]]:
        """Uneven and shuffled parts.

        Halves in order would keep neighbouring samples together, which may be coupled.
        """
        count = self.samples
        order = torch.arange(count)
        if self.padding:
            # The shortest text alone: its padding is cut off, that of the full batch is not.
            shortest_first = self.padding.lengths(self.full_batch).argsort(stable=True)
            yield self._cut(shortest_first, [1, count - 1])
        if count > 2:
            # Every third sample: pairs, and groups of four, are torn apart.
            every_third = torch.cat([order[first::3] for first in range(3)])
            smaller = count * 3 // 8 if count > 3 else 1
            yield self._cut(every_third, [smaller, count - smaller])
            third = (count - 1) // 3
            # Backwards, beginning with the last sample alone: a first or last one may be special to
            # the model.
            yield self._cut(order.flip(0), [1, third, count - 1 - third])
        yield self.one_by_one()

    def one_by_one(self) -> Sequence[BatchPart]:
        return self._cut(torch.arange(self.samples), [1] * self.samples)

    def all_at_once(self) -> Sequence[BatchPart]:
        return [BatchPart(self.full_batch, torch.arange(self.samples))]

    def _cut(self, order: Tensor, sizes: Sequence[int]) -> Sequence[BatchPart]:
        parts = []
        nonempty_sizes = [size for size in sizes if size]
        for indices in torch.split(order, nonempty_sizes):
            batch = self._select(indices)
            if self.padding:
                batch = self.padding.cut(batch)
            parts.append(BatchPart(batch, indices))
        return parts

    def _select(self, indices: Tensor) -> Batch:
        return {name: column[indices] for name, column in self.full_batch.items()}

    def with_padding(self, part: BatchPart) -> Batch:
        """Its samples with all their padding, as their weights are counted."""
        return self._select(part.indices)

    def run(
        self,
        parts: Sequence[BatchPart],
        seed: int,
        start: State | None = None,
        *,
        advance: bool = False,
        forced: bool | None = None,
    ) -> Outcome:
        """Run the parts one after the other, as the loop would, from the state `start`.

        `advance`: generators that model and task keep for themselves stand elsewhere than at the
        start. `forced`: draws come out high or low (see forced_draws); None: at random.
        """
        start = start or self.start
        start.restore()
        if advance:
            start.advance_generators()
        return self.run_on(parts, seed, forced)

    def run_on(self, parts: Sequence[BatchPart], seed: int, forced: bool | None = None) -> Outcome:
        """From the state that model and task are in."""
        total: LossAndGradient = ()
        loss_scale = 0.0
        gradient_scale = 0.0
        drawn: dict[str, None] = {}
        for i, part in enumerate(parts):
            # Other numbers for each part: on a CPU, halves of a batch that draw one after the other
            # get what the full batch draws at once, which would hide a mask. Where the draws are
            # declared invariant, each part gets the same numbers, as each micro-batch does.
            part_seed = seed if self._has_invariant_draws() else seed + 1000 * i
            self.generators.seed(part_seed)
            before = self.generators.states()
            self._drawn_in_model.clear()
            with contextlib.ExitStack() as stack:
                if forced is not None:
                    stack.enter_context(forced_draws(forced))
                stack.enter_context(torch.enable_grad())
                result = loss_and_gradient(self.learner, part.batch)
            if self._task_is_invariant():
                drawn_from = self._drawn_in_model
            else:
                drawn_from = self.generators.states().moved_since(before)
            drawn.update(dict.fromkeys(drawn_from))
            if total:
                total = tuple(a + b for a, b in zip(total, result, strict=True))
            else:
                total = tuple(result)
            # Norms of each part, since parts may cancel: rounding is relative to what was added up,
            # not to the sum.
            norms = self._norms_of(result)
            loss_scale += norms.loss
            gradient_scale += norms.gradient
        return Outcome(
            total=total,
            scale=Norms(loss_scale, gradient_scale),
            # After the last part: what one micro-batch leaves behind is what the next one begins
            # with.
            state=capture(self.learner.module, self.learner.task),
            drawn=tuple(drawn),
        )

    def sums(self, batch: Batch, start: State | None = None) -> dict[str, float]:
        """The terms of the loss, without a gradient."""
        (start or self.start).restore()
        self.generators.seed(0)
        before = self.generators.states()
        sums = {term: float(value) for term, value in loss_sums(self.learner, batch).items()}
        has_drawn = bool(self.generators.states().moved_since(before))
        if has_drawn and not self._has_invariant_draws():
            self.draws_in_eval = True
        return sums

    def difference(self, actual: Outcome, expected: Outcome) -> float:
        """The larger one of the relative differences of the loss and of the gradient.

        NaN where one of them is not finite.
        """
        norms = self._norms_of([a - b for a, b in zip(actual.total, expected.total, strict=True)])
        of_loss = _relative(norms.loss, actual.scale.loss, expected.scale.loss)
        of_gradient = _relative(norms.gradient, actual.scale.gradient, expected.scale.gradient)
        # Not max() alone: it drops a NaN that does not come first.
        if of_loss != of_loss or of_gradient != of_gradient:
            return float("nan")
        return max(of_loss, of_gradient)

    def difference_in_evaluation(self, first: State, second: State) -> float:
        """In eval mode, from two states: the largest relative difference of a term of the loss."""
        modes = [(part, part.training) for part in self.learner.module.modules()]
        self.learner.module.eval()
        try:
            before = self.sums(self.full_batch, first)
            after = self.sums(self.full_batch, second)
        finally:
            # One by one: a user may have frozen some of them.
            for part, mode in modes:
                part.training = mode
        largest = 0.0
        for term, value in before.items():
            other = after[term]
            if other != value:
                largest = max(largest, abs(other - value) / max(abs(value), abs(other)))
        return largest

    def _norms_of(self, result: Sequence[Tensor]) -> Norms:
        loss, gradient = squared_norms(self.learner, result).sqrt().tolist()
        return Norms(loss, gradient)

    def _task_is_invariant(self) -> bool:
        return bool(getattr(self.learner.task, INVARIANT, False))

    def _has_invariant_draws(self) -> bool:
        return self._task_is_invariant() or bool(invariant_modules(self.learner.module))

    @contextmanager
    def ignoring_invariant_draws(self) -> Iterator[None]:
        """Inside, draws of modules that declare them invariant do not count as drawn."""
        entered: list[States] = []
        generators = self.generators

        def enter(*_: object) -> None:
            entered.append(generators.states())

        def leave(*_: object) -> None:
            # Put back, so that these draws move nothing: what has moved in the end was drawn by
            # others.
            generators.restore(entered.pop())

        def leave_model(*_: object) -> None:
            self._drawn_in_model += generators.states().moved_since(entered.pop())

        with contextlib.ExitStack() as hooks:
            if self._task_is_invariant():
                # The task's own draws do not count, those of its model do.
                root = self.learner.module
                hooks.callback(root.register_forward_pre_hook(enter).remove)
                hooks.callback(root.register_forward_hook(leave_model, always_call=True).remove)
            for part in invariant_modules(self.learner.module).values():
                hooks.callback(part.register_forward_pre_hook(enter).remove)
                hooks.callback(part.register_forward_hook(leave, always_call=True).remove)
            yield


def _relative(difference: float, first_scale: float, second_scale: float) -> float:
    scale = max(first_scale, second_scale)
    if difference != difference or scale == float("inf"):
        return float("nan")
    return difference / scale if difference else 0.0


def exceeds(difference: float, tolerance: float) -> bool:
    """NaN exceeds every tolerance."""
    return not difference <= tolerance


def invariant_modules(module: nn.Module) -> dict[str, nn.Module]:
    """Modules which declare that their draws are the same however a batch is cut, by name."""
    return {name: part for name, part in module.named_modules() if getattr(part, INVARIANT, False)}
