"""Walks through modules and task, and captures what a forward pass may change (State)."""

import operator
import random
import sys
from collections import deque
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from train.exactness.captured_state import State

MAX_LEAVES = 10_000
"""More values are not followed: a task may hold a vocabulary, or a data set."""

MAX_DEPTH = 4
"""How far lists, dicts and objects inside one another are followed."""

MAX_TENSOR_BYTES = 2**26
"""A larger tensor is not copied: only that it was written to is seen."""

MAX_ITEMS = 100
"""Of more numbers and texts, such as a vocabulary, a change is seen, but not which item it was."""

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
"""Packages whose objects are not followed: a logger leads to all others."""

# What nn.Module keeps for itself, and what accelerate and plain_forward put into a module.
NOT_FOLLOWED = frozenset(vars(nn.Module())) | {
    "forward",
    "_original_forward",
    "_compiled_call_impl",
}


def capture(module: nn.Module, task: object, on_host: bool = False) -> State:
    """The state of all modules and of the task.

    Of parameters only the version is kept: a copy of all weights may not fit in memory.
    """
    # Modules are visited one by one: their nesting does not count for MAX_DEPTH.
    state = State(copies_on_host=on_host)
    for name, part in module.named_modules():
        prefix = f"{name}." if name else ""
        _capture_buffers(state, part, prefix)
        for parameter_name, parameter in part.named_parameters(recurse=False):
            # The version counts what writes to it in place, except by way of `.data`: that stays
            # unseen here.
            leaf = f"parameter {prefix}{parameter_name}"
            state.leaves[leaf] = parameter._version
            state.uncopied.add(leaf)
        _capture_attributes(state, part, prefix, 0)
    _capture_attributes(state, task, f"{type(task).__name__}.", 0)
    return state


def capture_value(state: State, value: Any, name: str, depth: int) -> None:
    """Remember a value, and how to restore it where it can be changed in place."""
    if isinstance(value, nn.Module | nn.Parameter | type):
        return  # modules and parameters are walked through by `capture`
    # Marked, not raised: who asks decides what half a state is good for. An audit takes none.
    if len(state.leaves) >= MAX_LEAVES:
        state.is_partial = True
        return
    if isinstance(value, PLAIN):
        state.leaves[name] = value
        return
    # Objects may refer to each other in a circle.
    if id(value) in state.seen:
        return
    state.seen.add(id(value))
    if isinstance(value, Tensor):
        _capture_tensor(state, value, name)
    elif isinstance(value, np.ndarray):
        _capture_array(state, value, name)
    elif isinstance(
        value, torch.Generator | random.Random | np.random.RandomState | np.random.Generator
    ):
        _capture_generator(state, value, f"generator {name}")
    elif depth < MAX_DEPTH:
        _capture_inside(state, value, name, depth + 1)


def _capture_buffers(state: State, part: nn.Module, prefix: str) -> None:
    buffers = part._buffers
    saved = dict(buffers)

    def rebind() -> None:
        buffers.clear()
        buffers.update(saved)

    # Before the values: a forward may have put another tensor in a buffer's place.
    state.on_restore(rebind)
    for name, buffer in saved.items():
        if buffer is not None:
            capture_value(state, buffer, f"buffer {prefix}{name}", 0)


def _capture_attributes(state: State, holder: object, prefix: str, depth: int) -> None:
    attributes = getattr(holder, "__dict__", None)
    if not isinstance(attributes, dict):
        return
    # The bindings, beside the values below: a forward may assign an attribute anew, or add one.
    saved = {name: value for name, value in attributes.items() if name not in NOT_FOLLOWED}

    def rebind() -> None:
        for name in list(attributes):
            if name not in saved and name not in NOT_FOLLOWED:
                del attributes[name]
        attributes.update(saved)

    state.on_restore(rebind)
    for name, value in saved.items():
        capture_value(state, value, f"{prefix}{name}", depth)


def _capture_tensor(state: State, value: Tensor, name: str) -> None:
    version = value._version
    if value.numel() * value.element_size() > MAX_TENSOR_BYTES:
        state.leaves[name] = version
        state.uncopied.add(name)
        return
    if state.copies_on_host:
        # On the host for an audit: a GPU that a step has filled has no room for copies of its
        # buffers.
        copy = value.detach().to("cpu", copy=True)
    else:
        copy = value.detach().clone()
    state.leaves[name] = copy
    # expand() gives a stride of 0: several elements share memory, and torch refuses to write.
    is_strided = value.layout is torch.strided
    is_expanded = is_strided and 0 in value.stride() and value.numel() > 1

    def restore() -> None:
        # Part of a graph, and not written to: copying would make its backward pass raise. All other
        # tensors are copied in any case, since writing to `.data` does not count as a version.
        is_untouched_result = value.grad_fn is not None and value._version == version
        if not is_untouched_result and not is_expanded:
            value.detach().copy_(copy)

    state.on_restore(restore)


def _capture_array(state: State, value: "np.ndarray[Any, Any]", name: str) -> None:
    copy = value.copy()
    state.leaves[name] = copy
    # np.copyto raises where an array is read-only.
    if value.flags.writeable:
        state.on_restore(lambda: np.copyto(value, copy))


def _capture_inside(state: State, value: Any, name: str, depth: int) -> None:
    if isinstance(value, list | deque):
        _capture_list(state, value, name, depth)
    elif isinstance(value, dict | set):
        _capture_dict_or_set(state, value, name, depth)
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            capture_value(state, item, f"{name}[{i}]", depth)
    elif not callable(value) and type(value).__module__.partition(".")[0] not in LIBRARIES:
        _capture_attributes(state, value, f"{name}.", depth)


def _capture_list(state: State, value: "list[Any] | deque[Any]", name: str, depth: int) -> None:
    saved = list(value)

    def refill() -> None:
        if not _holds_the_same(value, saved):
            value.clear()
            value.extend(saved)

    state.leaves[f"{name} (length)"] = len(saved)
    state.on_restore(refill)
    if _is_long_and_plain(saved):
        # One leaf for all items: a vocabulary would use up MAX_LEAVES.
        state.leaves[f"{name} (values)"] = hash(tuple(saved))
        return
    for i, item in enumerate(saved):
        capture_value(state, item, f"{name}[{i}]", depth)


def _capture_dict_or_set(
    state: State, value: "dict[Any, Any] | set[Any]", name: str, depth: int
) -> None:
    saved = value.copy()

    def refill() -> None:
        # A dict always: the same keys may hold other values.
        if isinstance(value, dict) or not _holds_the_same(value, saved):
            value.clear()
            value.update(saved)

    state.leaves[f"{name} (length)"] = len(saved)
    state.on_restore(refill)
    items = saved.items() if isinstance(saved, dict) else saved
    if _is_long_and_plain(saved):
        state.leaves[f"{name} (values)"] = hash(tuple(items))
    elif isinstance(saved, dict):
        for key, item in saved.items():
            capture_value(state, item, f"{name}[{key!r}]", depth)


def _is_long_and_plain(value: Collection[Any]) -> bool:
    items = value.values() if isinstance(value, dict) else value
    return len(value) > MAX_ITEMS and all(isinstance(item, PLAIN) for item in items)


def _holds_the_same(value: Collection[Any], saved: Collection[Any]) -> bool:
    # By identity: == on tensors gives a tensor, and on the user's objects may do anything.
    return len(value) == len(saved) and all(map(operator.is_, value, saved))


def _capture_generator(state: State, value: Any, name: str) -> None:
    if isinstance(value, torch.Generator):
        torch_state = value.get_state()
        state.leaves[name] = torch_state
        state.on_restore(lambda: value.set_state(torch_state))
        state.on_advance(lambda: torch.rand(1, generator=value, device=value.device))
    elif isinstance(value, np.random.Generator):
        bits = value.bit_generator.state
        # As text: the state is a dict of numbers and arrays, which == does not compare as a whole.
        state.leaves[name] = repr(bits)
        state.on_restore(lambda: setattr(value.bit_generator, "state", bits))
        state.on_advance(value.random)
    elif isinstance(value, np.random.RandomState):
        legacy = value.get_state()
        state.leaves[name] = repr(legacy)
        state.on_restore(lambda: value.set_state(legacy))
        state.on_advance(value.random_sample)
    else:
        python = value.getstate()
        state.leaves[name] = python
        state.on_restore(lambda: value.setstate(python))
        state.on_advance(value.random)
