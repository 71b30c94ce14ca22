"""Some samples of the first step, put through loss and gradient in several cuts: whole, in parts,
one by one.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from train.batch.window import Batch
from train.data import Padding
from train.exactness.forced_draws import forced_draws
from train.exactness.reference_gradient import Result, loss_and_gradient, squares, sums_of
from train.exactness.state import State, capture
from train.randomness import Generators, States
from train.step import Learner

INVARIANT = "split_invariant_draws"
"""A module or a task with this attribute set says that its random numbers are the same however a
batch is cut.
"""


@dataclass(frozen=True)
class Part:
    """Samples that are put through the model at once."""

    batch: Batch
    places: Tensor  # of its samples in the whole


@dataclass(frozen=True)
class Outcome:
    """Of the parts of a cut, one after the other."""

    total: Result  # the sum of the losses, then a gradient per parameter; of all parts
    # sums over the parts of |loss| and |gradient|: what rounding is relative to
    size: tuple[float, float]
    state: State  # afterwards
    drawn: tuple[str, ...]  # the generators that something was drawn from


@dataclass
class Trial:
    """Runs in the mode that the module is in, from the state that it was made in."""

    learner: Learner
    whole: Batch
    padding: Padding | None
    start: State = field(init=False)
    draws_in_eval: bool = False  # the loss itself draws random numbers
    # the type of numbers that explained a difference, where it is not that of the weights
    narrower_inside: str = ""
    generators: Generators = field(init=False)
    _drawn_in_model: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start = capture(self.learner.module, self.learner.task)
        self.generators = Generators(self.learner.device)

    @property
    def samples(self) -> int:
        return len(next(iter(self.whole.values())))

    def cuts(self) -> Iterator[Sequence[Part]]:
        """Uneven and shuffled parts: halves would leave together what sits side by side."""
        count = self.samples
        order = torch.arange(count)
        if self.padding:
            # The shortest text alone: its padding is cut off, that of the whole is not.
            shortest_first = self.padding.lengths(self.whole).argsort(stable=True)
            yield self._cut(shortest_first, [1, count - 1])
        if count > 2:
            strided = torch.cat([order[first::3] for first in range(3)])
            yield self._cut(
                strided, [count * 3 // 8, count - count * 3 // 8] if count > 3 else [1, 2]
            )
            yield self._cut(order.flip(0), [1, (count - 1) // 3, count - 1 - (count - 1) // 3])
        yield self.cuts_of_one()

    def cuts_of_one(self) -> Sequence[Part]:
        return self._cut(torch.arange(self.samples), [1] * self.samples)

    def _cut(self, order: Tensor, sizes: Sequence[int]) -> Sequence[Part]:
        parts = []
        for places in torch.split(order, [size for size in sizes if size]):
            batch = {name: column[places] for name, column in self.whole.items()}
            parts.append(Part(self.padding.cut(batch) if self.padding else batch, places))
        return parts

    def uncut(self, part: Part) -> Batch:
        """Its samples with all their padding, as their weights are counted."""
        return {name: column[part.places] for name, column in self.whole.items()}

    def all_at_once(self) -> Sequence[Part]:
        return [Part(self.whole, torch.arange(self.samples))]

    def run(
        self,
        parts: Sequence[Part],
        seed: int,
        start: State | None = None,
        *,
        advance: bool = False,
        forced: bool | None = None,
    ) -> Outcome:
        """The parts one after the other, as the loop would take them, from the state `start`.

        `advance`: the generators that model and task keep for themselves stand elsewhere. `forced`:
        see forced_draws.
        """
        start = start or self.start
        start.restore()
        if advance:
            start.advance()
        return self.run_on(parts, seed, forced)

    def run_on(self, parts: Sequence[Part], seed: int, forced: bool | None = None) -> Outcome:
        """From the state that is there."""
        total: Result = ()
        losses, norms = 0.0, 0.0
        drawn: dict[str, None] = {}
        for i, part in enumerate(parts):
            # A part that says that its draws are invariant gets the same numbers in each
            # micro-batch.
            self.generators.seed(seed if self._invariant() else seed + 1000 * i)
            before = self.generators.states()
            self._drawn_in_model.clear()
            with (
                contextlib.nullcontext() if forced is None else forced_draws(forced),
                torch.enable_grad(),
            ):
                found = loss_and_gradient(self.learner, part.batch)
            moved = self.generators.states().moved_since(before)
            drawn.update(
                dict.fromkeys(self._drawn_in_model if self._task_is_invariant() else moved)
            )
            total = (
                tuple(a + b for a, b in zip(total, found, strict=True)) if total else tuple(found)
            )
            loss, norm = self._size_of(found)
            losses += loss
            norms += norm
        after = capture(self.learner.module, self.learner.task)
        return Outcome(total=total, size=(losses, norms), state=after, drawn=tuple(drawn))

    def evaluated_apart(self, first: State, second: State) -> float:
        """By how much the loss in an evaluation differs between two states, relative to it."""
        modes = [(part, part.training) for part in self.learner.module.modules()]
        self.learner.module.eval()
        try:
            before = self.sums(self.whole, first)
            after = self.sums(self.whole, second)
        finally:
            for part, mode in modes:
                part.training = mode
        largest = 0.0
        for term, value in before.items():
            if after[term] != value:
                largest = max(largest, abs(after[term] - value) / max(abs(value), abs(after[term])))
        return largest

    def sums(self, batch: Batch, start: State | None = None) -> dict[str, float]:
        """The terms of the loss, without a gradient."""
        (start or self.start).restore()
        self.generators.seed(0)
        before = self.generators.states()
        sums = {term: float(value) for term, value in sums_of(self.learner, batch).items()}
        if not self._invariant() and self.generators.states().moved_since(before):
            self.draws_in_eval = True
        return sums

    def apart(self, found: Outcome, expected: Outcome) -> float:
        """The larger one of the relative differences of the loss and of the gradient."""
        differences = self._size_of(
            [a - b for a, b in zip(found.total, expected.total, strict=True)]
        )
        relative = 0.0
        for difference, first, second in zip(differences, found.size, expected.size, strict=True):
            if difference != difference or max(first, second) == float("inf"):
                return float("nan")
            if difference:
                relative = max(relative, difference / max(first, second))
        return relative

    def _size_of(self, values: Sequence[Tensor]) -> tuple[float, float]:
        """Of the loss, and of the gradient."""
        loss, gradient = squares(self.learner, values).sqrt().tolist()
        return loss, gradient

    def _task_is_invariant(self) -> bool:
        return bool(getattr(self.learner.task, INVARIANT, False))

    def _invariant(self) -> bool:
        return self._task_is_invariant() or bool(says_invariant(self.learner.module))

    @contextmanager
    def counting_draws(self) -> Iterator[None]:
        """What a module draws that says that its draws are invariant does not count as drawn."""
        stack: list[States] = []
        generators = self.generators

        def enter(*_: object) -> None:
            stack.append(generators.states())

        def leave(*_: object) -> None:
            generators.restore(stack.pop())

        def leave_model(*_: object) -> None:
            self._drawn_in_model += generators.states().moved_since(stack.pop())

        with contextlib.ExitStack() as hooks:
            if self._task_is_invariant():
                root = self.learner.module
                hooks.callback(root.register_forward_pre_hook(enter).remove)
                hooks.callback(root.register_forward_hook(leave_model, always_call=True).remove)
            for part in says_invariant(self.learner.module).values():
                hooks.callback(part.register_forward_pre_hook(enter).remove)
                hooks.callback(part.register_forward_hook(leave, always_call=True).remove)
            yield


def says_invariant(module: nn.Module) -> dict[str, nn.Module]:
    """Modules that say that their draws are the same however a batch is cut."""
    return {name: part for name, part in module.named_modules() if getattr(part, INVARIANT, False)}
