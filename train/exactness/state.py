"""What a forward may change besides gradients: buffers, plain attributes, generators that a model
keeps for itself.
"""

import operator
import random
import sys
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

MOST_LEAVES = 10_000
"""Beyond so many values nothing more is followed: a task may hold a vocabulary, or a data set."""

DEEPEST = 4
"""How far lists, dicts and objects inside one another are followed."""

LARGEST = 2**26
"""Bytes of a tensor that is copied; of a larger one it is seen whether it was written to, and no
more.
"""

LONG = 100
"""Of more numbers and texts, such as a vocabulary, it is seen that they have changed, but not
which.
"""

PLAIN = (bool, int, float, complex, str, bytes, type(None))

LIBRARIES = sys.stdlib_module_names | {
    "accelerate",
    "datasets",
    "numpy",
    "omegaconf",
    "torch",
    "transformers",
    "wandb",
}
"""Whose objects are not followed: a logger leads to all others."""

NOT_FOLLOWED = frozenset(vars(nn.Module())) | {
    "forward",
    "_original_forward",
    "_compiled_call_impl",
}
"""What nn.Module keeps for itself, and what accelerate and plain_forward put into a module."""


@dataclass
class State:
    """As it was when it was captured. `leaves`: by its name in the user's words."""

    leaves: dict[str, Any] = field(default_factory=dict)
    on_host: bool = False  # copies lie there, also those of tensors on a device
    # of the leaves: a change is seen, and cannot be put back
    uncopied: set[str] = field(default_factory=set)
    is_partial: bool = False  # there was more than is followed
    _undo: list[Callable[[], object]] = field(default_factory=list)
    _advance: list[Callable[[], object]] = field(default_factory=list)
    _seen: set[int] = field(default_factory=set)

    def restore(self) -> None:
        """Put back what was captured: the same objects, with the values they had."""
        with torch.no_grad():
            for undo in self._undo:
                undo()

    def undo(self, step: Callable[[], object]) -> None:
        """One more thing to do where it is restored."""
        self._undo.append(step)

    def advance(self) -> None:
        """Draw a number from each generator that model or task keep for themselves."""
        for draw in self._advance:
            draw()

    def changed_since(self, earlier: "State", tolerance: float) -> list[str]:
        """Names of what differs by more than rounding; what was not there before counts
        as changed.
        """
        names = dict.fromkeys([*earlier.leaves, *self.leaves])
        return [
            name
            for name in names
            if _differ(earlier.leaves.get(name), self.leaves.get(name), tolerance)
        ]


def capture(module: nn.Module, task: object, on_host: bool = False) -> State:
    """The state of all modules and of the task. Parameters are told by their version alone: a copy
    may not fit.
    """
    state = State(on_host=on_host)
    for name, part in module.named_modules():
        where = f"{name}." if name else ""
        _follow_buffers(state, part, where)
        for parameter_name, parameter in part.named_parameters(recurse=False):
            state.leaves[f"parameter {where}{parameter_name}"] = parameter._version
            state.uncopied.add(f"parameter {where}{parameter_name}")
        _follow_attributes(state, part, f"{where}", 0)
    _follow_attributes(state, task, f"{type(task).__name__}.", 0)
    return state


def _follow_buffers(state: State, part: nn.Module, where: str) -> None:
    own = part._buffers
    kept = dict(own)

    def bind() -> None:
        own.clear()
        own.update(kept)

    state._undo.append(bind)
    for name, buffer in kept.items():
        if buffer is not None:
            follow(state, buffer, f"buffer {where}{name}", 0)


def _follow_attributes(state: State, holder: object, where: str, depth: int) -> None:
    own = getattr(holder, "__dict__", None)
    if not isinstance(own, dict):
        return
    kept = {name: value for name, value in own.items() if name not in NOT_FOLLOWED}

    def bind() -> None:
        for name in [name for name in own if name not in kept and name not in NOT_FOLLOWED]:
            del own[name]
        own.update(kept)

    state._undo.append(bind)
    for name, value in kept.items():
        follow(state, value, f"{where}{name}", depth)


def follow(state: State, value: Any, name: str, depth: int) -> None:
    """Remember a value, and how to put it back where it can be changed in place."""
    if isinstance(value, nn.Module | nn.Parameter | type):
        return
    if len(state.leaves) >= MOST_LEAVES:
        state.is_partial = True
        return
    if isinstance(value, PLAIN):
        state.leaves[name] = value
        return
    if id(value) in state._seen:
        return
    state._seen.add(id(value))
    if isinstance(value, Tensor):
        _follow_tensor(state, value, name)
    elif isinstance(value, np.ndarray):
        copy = state.leaves[name] = value.copy()
        if value.flags.writeable:
            state._undo.append(lambda: np.copyto(value, copy))
    elif isinstance(
        value, torch.Generator | random.Random | np.random.RandomState | np.random.Generator
    ):
        _follow_generator(state, value, f"generator {name}")
    elif depth < DEEPEST:
        _follow_inside(state, value, name, depth + 1)


def _follow_tensor(state: State, value: Tensor, name: str) -> None:
    version = value._version
    # by expand(): not writable
    is_spread = value.layout is torch.strided and 0 in value.stride() and value.numel() > 1
    if value.numel() * value.element_size() > LARGEST:
        state.leaves[name] = version
        state.uncopied.add(name)
        return
    copy = value.detach().to("cpu", copy=True) if state.on_host else value.detach().clone()
    state.leaves[name] = copy

    def put_back() -> None:
        # Part of a graph, and nobody wrote to it: a copy would make its backward pass raise.
        # Writing to `.data` does not count as a version, so that all others are put back in any
        # case.
        if (value.grad_fn is None or value._version != version) and not is_spread:
            value.detach().copy_(copy)

    state._undo.append(put_back)


def _follow_inside(state: State, value: Any, name: str, depth: int) -> None:
    is_long = (
        isinstance(value, list | deque | dict | set) and len(value) > LONG and _is_plain(value)
    )
    if isinstance(value, list | deque):
        items = list(value)

        def refill_list() -> None:
            if not _same_objects(value, items):
                value.clear()
                value.extend(items)

        state.leaves[f"{name} (length)"] = len(items)
        state._undo.append(refill_list)
        if is_long:
            state.leaves[f"{name} (values)"] = hash(tuple(items))
        for i, item in enumerate(() if is_long else items):
            follow(state, item, f"{name}[{i}]", depth)
    elif isinstance(value, dict | set):
        kept = value.copy()

        def refill() -> None:
            if not _same_objects(value, kept) or isinstance(value, dict):
                value.clear()
                value.update(kept)

        state.leaves[f"{name} (length)"] = len(kept)
        state._undo.append(refill)
        if is_long:
            state.leaves[f"{name} (values)"] = hash(
                tuple(kept.items() if isinstance(kept, dict) else kept)
            )
        for key, item in kept.items() if isinstance(kept, dict) and not is_long else ():
            follow(state, item, f"{name}[{key!r}]", depth)
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            follow(state, item, f"{name}[{i}]", depth)
    elif not callable(value) and type(value).__module__.partition(".")[0] not in LIBRARIES:
        _follow_attributes(state, value, f"{name}.", depth)


def _is_plain(value: Collection[Any]) -> bool:
    items = value.values() if isinstance(value, dict) else value
    return all(isinstance(item, PLAIN) for item in items)


def _same_objects(some: Collection[Any], others: Collection[Any]) -> bool:
    return len(some) == len(others) and all(map(operator.is_, some, others))


def _follow_generator(state: State, value: Any, name: str) -> None:
    if isinstance(value, torch.Generator):
        at = value.get_state()
        state.leaves[name] = at
        state._undo.append(lambda: value.set_state(at))
        state._advance.append(lambda: torch.rand(1, generator=value, device=value.device))
    elif isinstance(value, np.random.Generator):
        bits = value.bit_generator.state
        state.leaves[name] = repr(bits)
        state._undo.append(lambda: setattr(value.bit_generator, "state", bits))
        state._advance.append(value.random)
    elif isinstance(value, np.random.RandomState):
        legacy = value.get_state()
        state.leaves[name] = repr(legacy)
        state._undo.append(lambda: value.set_state(legacy))
        state._advance.append(value.random_sample)
    else:
        python = value.getstate()
        state.leaves[name] = python
        state._undo.append(lambda: value.setstate(python))
        state._advance.append(value.random)


def _differ(before: Any, after: Any, tolerance: float) -> bool:
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        if before.shape != after.shape or before.dtype != after.dtype:
            return True
        if not before.is_floating_point() and not before.is_complex():
            return not torch.equal(before, after)
        apart = torch.linalg.vector_norm(
            (after - before).double() if not before.is_complex() else after - before
        )
        size = torch.linalg.vector_norm(before.double() if not before.is_complex() else before)
        return bool(apart > tolerance * size)
    if isinstance(before, np.ndarray) and isinstance(after, np.ndarray):
        return not np.array_equal(before, after)
    if type(before) is not type(after):
        return True
    if isinstance(before, float):
        return abs(after - before) > tolerance * max(abs(before), abs(after))
    return bool(before != after)


def buffers_of(names: Sequence[str]) -> list[str]:
    return [name for name in names if name.startswith("buffer ")]


def generators_of(names: Sequence[str]) -> list[str]:
    """The generators that model or task keep for themselves."""
    return [name for name in names if name.startswith("generator ")]
