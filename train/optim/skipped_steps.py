"""Counts the steps that were not applied, without making the host wait for the device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from train.errors import RunFailed


class NonFiniteGradient(RunFailed):
    """The gradient of a step, or of too many in a row, is not finite, and the config says stop."""


def stop_at(norm: Tensor) -> NonFiniteGradient:
    """What is raised under on_nonfinite=stop."""
    return NonFiniteGradient(
        f"the norm of the gradient is {norm.item()}, and on_nonfinite=stop: no update was made. "
        "Try a smaller optimizer.lr, a warm-up, optimizer.max_grad_norm=1.0, or on_nonfinite=skip"
    )


def is_not_finite(norm: Tensor) -> Tensor:
    """1 where a norm is infinite or NaN, else 0: 0-dim float32, like an optimizer's found_inf."""
    # Two operators, where isfinite alone is four: 0 times a number is 0, and times anything else
    # NaN.
    return norm.mul(0).nan_to_num_(1.0).float()


class Watcher(Protocol):
    """Is informed of which steps were applied; may have more numbers read from the device."""

    def pending(self) -> Tensor | None:
        """What is read together with everything else, once; None: nothing waits."""
        ...

    def count(self, applied: Sequence[bool], numbers: Sequence[float]) -> None:
        """The steps since the last look; `numbers`: what was pending, flat."""
        ...


@dataclass
class SkippedSteps:
    """Steps that were not applied because their gradient was not finite.

    They are counted on the device, and read when somebody looks, not in a step.
    """

    total: int = 0
    in_a_row: int = 0
    """Up to the last step."""
    longest: int = 0
    """In a row, ever."""
    watchers: list[Watcher] = field(default_factory=list)
    _skipped: list[Tensor] = field(default_factory=list)
    """Of the steps since the last look: 0-dim, on the device."""

    def add(self, skipped: Tensor) -> None:
        """Of one step: 1 where it was not applied, else 0."""
        self._skipped.append(skipped)
        # Rows may be rare: the tensors must not pile up until the next one.
        if len(self._skipped) >= 1000:
            self.look()

    def state_dict(self) -> dict[str, int]:
        self.look()
        # The steps that are still on the device have to be counted first: a checkpoint would lose
        # them, and a resumed run would stop too late.
        return {"total": self.total, "in_a_row": self.in_a_row, "longest": self.longest}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.total = state["total"]
        self.in_a_row = state["in_a_row"]
        self.longest = state["longest"]

    def look(self, more: Sequence[Tensor] = ()) -> list[list[float]]:
        """Bring all counts up to date, and return the numbers of `more`.

        Everything is read in one copy, for which the host waits once.
        """
        skipped = torch.stack(self._skipped) if self._skipped else None
        of_watchers = [watcher.pending() for watcher in self.watchers]
        flags, *numbers = read_together([skipped, *of_watchers, *more])
        self._skipped.clear()
        applied = [flag == 0 for flag in flags]
        for was_applied in applied:
            if was_applied:
                self.in_a_row = 0
                continue
            self.total += 1
            self.in_a_row += 1
            # Beside in_a_row: one look covers many steps, and a run of skipped ones may be over by
            # then.
            self.longest = max(self.longest, self.in_a_row)
        # Not strict: behind the numbers of the watchers come those of `more`.
        for watcher, of_watcher in zip(self.watchers, numbers, strict=False):
            watcher.count(applied, of_watcher)
        return numbers[len(self.watchers) :]

    def check(self, k: int, limit: int) -> None:
        """Raises NonFiniteGradient where `limit` steps in a row were not applied, by step k."""
        if self.longest >= limit:
            raise NonFiniteGradient(
                f"by step {k} the gradient was not finite in {self.longest} steps in a row "
                f"(max_nonfinite_steps={limit}). Try a smaller optimizer.lr, a warm-up, "
                "optimizer.max_grad_norm=1.0; precision=fp32 shows whether low precision is to "
                "blame"
            )


def read_together(tensors: Sequence[Tensor | None]) -> list[list[float]]:
    """The numbers of each, flat, by one copy from the device; none of None."""
    # float64 holds every flag, count and float32 exactly, and one type makes one copy of all.
    flat = [tensor.detach().reshape(-1).double() for tensor in tensors if tensor is not None]
    numbers = iter(torch.cat(flat).tolist() if flat else [])
    sizes = [0 if tensor is None else tensor.numel() for tensor in tensors]
    return [list(islice(numbers, size)) for size in sizes]
