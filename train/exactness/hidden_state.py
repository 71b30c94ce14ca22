"""What a forward may change outside of modules and task: attributes of their classes, globals
beside them, closures.
"""

import random
import sys
import types
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from train.exactness.state import LIBRARIES, State, capture, follow

NOT_LOOKED_INTO = LIBRARIES | {"train", "torchvision", "timm", "peft"}
"""Packages whose classes and functions keep nothing of a run."""

VALUES = (
    *(bool, int, float, complex, str, bytes, type(None), list, dict, set, deque),
    *(
        Tensor,
        np.ndarray,
        torch.Generator,
        random.Random,
        np.random.RandomState,
        np.random.Generator,
    ),
)


def capture_all(module: nn.Module, task: object) -> State:
    """As `capture`, copies on the host; and what lies outside of modules and task, where the user's
    code does.
    """
    hidden = _Hidden(capture(module, task, on_host=True))
    for holder in (*module.modules(), task):
        for kind in type(holder).__mro__:
            if _is_users(kind):
                hidden.follow_space(
                    f"class {kind.__module__}.{kind.__qualname__}",
                    vars(kind),
                    partial(setattr, kind),
                )
                hidden.follow_globals(kind.__module__)
        for value in list(getattr(holder, "__dict__", {}).values()):
            if isinstance(value, types.FunctionType) and _is_users(value):
                hidden.follow_function(value)
    return hidden.state


def _is_users(thing: Any) -> bool:
    module: str = getattr(thing, "__module__", None) or "builtins"
    return module.partition(".")[0] not in NOT_LOOKED_INTO


@dataclass
class _Hidden:
    state: State
    _seen: set[Any] = field(default_factory=set)

    def follow_space(
        self, where: str, space: Mapping[str, Any], put: Callable[[str, Any], object]
    ) -> None:
        if where in self._seen:
            return
        self._seen.add(where)
        for name, value in list(space.items()):
            if not name.startswith("__") and isinstance(value, VALUES):
                self._follow(f"{where}.{name}", value, partial(put, name))

    def follow_globals(self, module: str) -> None:
        found = sys.modules.get(module)
        if found is not None:
            self.follow_space(f"global {module}", vars(found), vars(found).__setitem__)

    def follow_function(self, function: types.FunctionType) -> None:
        self.follow_globals(function.__module__)
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            if id(cell) in self._seen:
                continue
            self._seen.add(id(cell))
            try:
                value = cell.cell_contents
            except ValueError:  # it is empty
                continue
            if isinstance(value, VALUES):
                self._follow(
                    f"{function.__name__}: {name}", value, partial(setattr, cell, "cell_contents")
                )

    def _follow(self, name: str, value: Any, put: Callable[[Any], object]) -> None:
        self.state.undo(partial(put, value))
        follow(self.state, value, name, 0)
