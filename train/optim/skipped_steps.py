"""Counts the steps that were not applied, without making the host wait for the device."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from train.errors import RunFailed


class NonFiniteGradient(RunFailed):
    """The gradient of a step, or of too many in a row, is not finite, and the run was told to stop there."""


@dataclass
class SkippedSteps:
    """Steps that were not applied because their gradient was not finite; the device is asked when somebody looks."""

    total: int = 0
    in_a_row: int = 0  # up to the last step
    longest: int = 0  # in a row, ever
    watchers: list[Callable[[Sequence[bool]], object]] = field(default_factory=list)
    """Whenever somebody looks, they are given which of the steps since the last look were applied."""
    _finite: list[Tensor] = field(default_factory=list)  # of the steps since somebody looked: 0-dim, on the device

    def add(self, finite: Tensor) -> None:
        self._finite.append(finite)
        if len(self._finite) >= 1000:  # rows are rare: let them not pile up
            self.look()

    def state_dict(self) -> dict[str, int]:
        self.look()
        return {"total": self.total, "in_a_row": self.in_a_row, "longest": self.longest}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.total, self.in_a_row, self.longest = state["total"], state["in_a_row"], state["longest"]

    def look(self) -> None:
        """Bring the counts up to date; the host waits for the device here."""
        applied = torch.stack(self._finite).tolist() if self._finite else []
        for finite in applied:
            self.in_a_row = 0 if finite else self.in_a_row + 1
            self.total += not finite
            self.longest = max(self.longest, self.in_a_row)
        self._finite.clear()
        for watcher in self.watchers:
            watcher(applied)

    def check(self, k: int, limit: int) -> None:
        """Raises NonFiniteGradient where `limit` steps in a row were not applied, by step k."""
        if self.longest >= limit:
            raise NonFiniteGradient(
                f"by step {k} the gradient was not finite in {self.longest} steps in a row "
                f"(max_nonfinite_steps={limit}). Try a smaller optimizer.lr, a warm-up, "
                f"optimizer.max_grad_norm=1.0; precision=fp32 tells whether low precision is to blame"
            )
