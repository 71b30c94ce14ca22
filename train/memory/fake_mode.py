"""torch's FakeTensorMode, with modules that can be moved and cast inside it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode


@contextmanager
def fake_mode() -> Iterator[None]:
    """Inside, new tensors have shapes and types, no values, and take no memory.

    Tensors from before may be used inside; what is computed from them is fake.
    """
    # {id of the old parameter: (old, new)}: a tied weight stays tied. The old one is kept, so that
    # nothing else gets its id.
    moved: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}

    def apply(
        self: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> nn.Module:
        """As nn.Module._apply, which swaps tensors in place: fake ones refuse that (torch 2.13)."""
        if recurse:
            for child in self.children():
                apply(child, function)
        for name, parameter in self._parameters.items():
            if parameter is not None:
                if id(parameter) not in moved:
                    moved[id(parameter)] = (parameter, _apply_to(parameter, function))
                self._parameters[name] = moved[id(parameter)][1]
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = function(buffer)
        return self

    mode: Any = FakeTensorMode(allow_non_fake_inputs=True)
    with patch.object(nn.Module, "_apply", apply), mode:
        yield


def _apply_to(parameter: nn.Parameter, function: Callable[[Tensor], Tensor]) -> nn.Parameter:
    with torch.no_grad():
        changed = function(parameter)
    # The same object where nothing changes: whatever holds on to it still has the model's.
    if changed is parameter:
        return parameter
    return nn.Parameter(changed, parameter.requires_grad)
