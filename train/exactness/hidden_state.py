"""Captures also what lies outside of modules and task: class attributes, globals, closures.

A counter or a cache may be anywhere in the user's code, and an audit has to restore it.
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

from train.exactness.capture import LIBRARIES, capture, capture_value
from train.exactness.captured_state import State

NOT_LOOKED_INTO = LIBRARIES | {"train", "torchvision", "timm", "peft"}
"""Packages whose classes and functions keep nothing of a run."""

PLAIN_VALUES = (bool, int, float, complex, str, bytes, type(None), list, dict, set, deque)
NUMERIC_VALUES = (Tensor, np.ndarray)
GENERATORS = (torch.Generator, random.Random, np.random.RandomState, np.random.Generator)
CAPTURED = (*PLAIN_VALUES, *NUMERIC_VALUES, *GENERATORS)
"""Types of the values that are captured there. Functions, classes and modules are not."""


def capture_all(module: nn.Module, task: object) -> State:
    """As `capture`, with copies on the host, and with what the user's code holds elsewhere."""
    hidden = _HiddenState(capture(module, task, on_host=True))
    for holder in (*module.modules(), task):
        hidden.capture_classes_of(holder)
        hidden.capture_functions_of(holder)
    return hidden.state


def _is_users_code(thing: Any) -> bool:
    module: str = getattr(thing, "__module__", None) or "builtins"
    package = module.partition(".")[0]
    return package not in NOT_LOOKED_INTO


@dataclass
class _HiddenState:
    state: State
    _seen: set[Any] = field(default_factory=set)

    def capture_classes_of(self, holder: object) -> None:
        """Attributes of its classes, and the globals of the files that define them."""
        # Base classes, too: a counter of a base class is shared by all that inherit from it.
        for kind in type(holder).__mro__:
            if _is_users_code(kind):
                name = f"class {kind.__module__}.{kind.__qualname__}"
                # By setattr: the __dict__ of a class cannot be written to.
                self._capture_namespace(id(kind), name, vars(kind), partial(setattr, kind))
                self._capture_globals(kind.__module__)

    def capture_functions_of(self, holder: object) -> None:
        """What the functions that it keeps as attributes have in their closures and globals."""
        for value in list(getattr(holder, "__dict__", {}).values()):
            if isinstance(value, types.FunctionType) and _is_users_code(value):
                self._capture_globals(value.__module__)
                self._capture_closure(value)

    def _capture_namespace(
        self, key: Any, name: str, values: Mapping[str, Any], put: Callable[[str, Any], object]
    ) -> None:
        # By the class itself, not by its name: two classes of one name each keep a counter.
        if key in self._seen:
            return
        self._seen.add(key)
        for attribute, value in list(values.items()):
            # Data alone: functions and classes are the code of a run, which no step changes.
            if not attribute.startswith("__") and isinstance(value, CAPTURED):
                self._capture(f"{name}.{attribute}", value, partial(put, attribute))

    def _capture_globals(self, module_name: str) -> None:
        module = sys.modules.get(module_name)
        if module is not None:
            name = f"global {module_name}"
            self._capture_namespace(name, name, vars(module), vars(module).__setitem__)

    def _capture_closure(self, function: types.FunctionType) -> None:
        cells = function.__closure__ or ()
        for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
            if id(cell) in self._seen:
                continue
            self._seen.add(id(cell))
            try:
                value = cell.cell_contents
            except ValueError:  # the variable is not assigned yet
                continue
            if isinstance(value, CAPTURED):
                put = partial(setattr, cell, "cell_contents")
                self._capture(f"{function.__name__}: {name}", value, put)

    def _capture(self, name: str, value: Any, put: Callable[[Any], object]) -> None:
        # The binding first, then what the value holds: a forward may have assigned another object.
        self.state.on_restore(partial(put, value))
        capture_value(self.state, value, name, 0)
