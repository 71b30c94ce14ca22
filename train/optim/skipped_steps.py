"""Counts the steps that were not applied, without making the host wait for the device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from train.errors import RunFailed


class NonFiniteGradient(RunFailed):
    """The gradient of a step, or of too many in a row, is not finite, and the run was told to stop
    there.
    """


def stop_at(norm: Tensor) -> NonFiniteGradient:
    """What is raised under on_nonfinite=stop."""
    return NonFiniteGradient(
        f"the norm of the gradient is {norm.item()}, and on_nonfinite=stop: no update was made. "
        "Try a smaller optimizer.lr, a warm-up, optimizer.max_grad_norm=1.0, or on_nonfinite=skip"
    )


def is_not_finite(norm: Tensor) -> Tensor:
    """1 where a norm is infinite or NaN, else 0: 0-dim float32 on its device, as a fused
    optimizer's found_inf.

    Two operators, where isfinite alone is four: 0 times a number is 0, and times anything else NaN.
    """
    return norm.mul(0).nan_to_num_(1.0).float()


class Watcher(Protocol):
    """Wants to know which steps were applied, and numbers of its own that are on the device."""

    def pending(self) -> Tensor | None:
        """What is read together with everything else, once; None: nothing waits."""
        ...

    def count(self, applied: Sequence[bool], numbers: Sequence[float]) -> None:
        """Of the steps since the last look; `numbers`: what was pending, flat."""
        ...


@dataclass
class SkippedSteps:
    """Steps that were not applied because their gradient was not finite; the device is asked when
    somebody looks.
    """

    total: int = 0
    in_a_row: int = 0  # up to the last step
    longest: int = 0  # in a row, ever
    watchers: list[Watcher] = field(default_factory=list)
    # of the steps since somebody looked: 0-dim, on the device
    _skipped: list[Tensor] = field(default_factory=list)

    def add(self, skipped: Tensor) -> None:
        """Of one step: 1 where it was not applied, else 0."""
        self._skipped.append(skipped)
        if len(self._skipped) >= 1000:  # rows are rare: let them not pile up
            self.look()

    def state_dict(self) -> dict[str, int]:
        self.look()
        return {"total": self.total, "in_a_row": self.in_a_row, "longest": self.longest}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.total, self.in_a_row, self.longest = (
            state["total"],
            state["in_a_row"],
            state["longest"],
        )

    def look(self, more: Sequence[Tensor] = ()) -> list[list[float]]:
        """Bring all counts up to date, and give the numbers of `more`: one copy, for which the host
        waits once.
        """
        skipped = torch.stack(self._skipped) if self._skipped else None
        of_watchers = [watcher.pending() for watcher in self.watchers]
        flags, *numbers = read_together([skipped, *of_watchers, *more])
        applied = [flag == 0 for flag in flags]
        self._skipped.clear()
        for was_applied in applied:
            self.in_a_row = 0 if was_applied else self.in_a_row + 1
            self.total += not was_applied
            self.longest = max(self.longest, self.in_a_row)
        for watcher, own in zip(self.watchers, numbers, strict=False):
            watcher.count(applied, own)
        return numbers[len(self.watchers) :]

    def check(self, k: int, limit: int) -> None:
        """Raises NonFiniteGradient where `limit` steps in a row were not applied, by step k."""
        if self.longest >= limit:
            raise NonFiniteGradient(
                f"by step {k} the gradient was not finite in {self.longest} steps in a row "
                f"(max_nonfinite_steps={limit}). Try a smaller optimizer.lr, a warm-up, "
                "optimizer.max_grad_norm=1.0; precision=fp32 tells whether low precision is to "
                "blame"
            )


def read_together(tensors: Sequence[Tensor | None]) -> list[list[float]]:
    """The numbers of each, flat, by one copy from the device; none of None."""
    flat = [tensor.detach().reshape(-1).double() for tensor in tensors if tensor is not None]
    numbers = iter(torch.cat(flat).tolist() if flat else [])
    sizes = [0 if tensor is None else tensor.numel() for tensor in tensors]
    return [list(islice(numbers, size)) for size in sizes]
