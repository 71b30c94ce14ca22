"""The state that a forward pass may change besides gradients, captured so that it can be restored.

Buffers, plain attributes of modules and task, and generators that a model keeps for itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class State:
    """The state as it was when it was captured (capture.py)."""

    leaves: dict[str, Any] = field(default_factory=dict)
    """By name, as it is shown to the user: a copy of the value, or what tells that it changed."""
    copies_on_host: bool = False
    """Copies of tensors lie in host memory, also those of tensors on a device."""
    uncopied: set[str] = field(default_factory=set)
    """Names of leaves whose change is seen, but cannot be put back."""
    is_partial: bool = False
    """There was more than is followed."""
    seen: set[int] = field(default_factory=set)
    """Ids of the objects that were captured: each counts once, under its first name."""
    _restore_steps: list[Callable[[], object]] = field(default_factory=list)
    _draws: list[Callable[[], object]] = field(default_factory=list)

    def restore(self) -> None:
        """Put back what was captured: the same objects, with the values they had."""
        with torch.no_grad():
            # In the order of capture: bindings come before the values of what they bind.
            for step in self._restore_steps:
                step()

    def on_restore(self, step: Callable[[], object]) -> None:
        """One more thing to do when it is restored."""
        self._restore_steps.append(step)

    def on_advance(self, draw: Callable[[], object]) -> None:
        """How to draw from a generator of the model's or the task's own."""
        self._draws.append(draw)

    def advance_generators(self) -> None:
        """Draw a number from each generator that model or task keep for themselves."""
        for draw in self._draws:
            draw()

    def changed_since(self, earlier: "State", tolerance: float) -> list[str]:
        """Names of the leaves that differ by more than `tolerance`, relative; new ones included."""
        # A dict for a set that keeps its order: messages name the first ones.
        names = dict.fromkeys([*earlier.leaves, *self.leaves])
        changed = []
        for name in names:
            if _differs(earlier.leaves.get(name), self.leaves.get(name), tolerance):
                changed.append(name)
        return changed


def _differs(before: Any, after: Any, tolerance: float) -> bool:
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return _tensors_differ(before, after, tolerance)
    if isinstance(before, np.ndarray) and isinstance(after, np.ndarray):
        return not np.array_equal(before, after)
    # A leaf that one of the two lacks is None there, and so of another type.
    if type(before) is not type(after):
        return True
    if isinstance(before, float):
        return abs(after - before) > tolerance * max(abs(before), abs(after))
    return bool(before != after)


def _tensors_differ(before: Tensor, after: Tensor, tolerance: float) -> bool:
    if before.shape != after.shape or before.dtype != after.dtype:
        return True
    if before.is_complex():
        difference = torch.linalg.vector_norm(after - before)
        norm = torch.linalg.vector_norm(before)
    elif before.is_floating_point():
        # In float64: the norm of a large float16 buffer overflows in its own type.
        difference = torch.linalg.vector_norm((after - before).double())
        norm = torch.linalg.vector_norm(before.double())
    else:
        return not torch.equal(before, after)
    return bool(difference > tolerance * norm)


def buffers_of(names: Sequence[str]) -> list[str]:
    """Those of the leaves that are buffers of a module."""
    return [name for name in names if name.startswith("buffer ")]


def generators_of(names: Sequence[str]) -> list[str]:
    """Those of the leaves that are generators which model or task keep for themselves."""
    return [name for name in names if name.startswith("generator ")]
