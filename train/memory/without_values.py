"""Inside, tensors have shapes and types and no values, and take no memory: torch's FakeTensorMode,
with modules that can be moved and cast in it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode


@contextmanager
def without_values() -> Iterator[None]:
    """Values that were there before may be used inside; what is made of them has none."""
    # by the old one's id: a tied weight stays tied
    made: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}

    def apply(
        self: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> nn.Module:
        """nn.Module._apply, which swaps tensors in place; those without values refuse it (torch
        2.13).
        """
        for child in self.children() if recurse else ():
            apply(child, function)
        for name, parameter in self._parameters.items():
            if parameter is not None:
                self._parameters[name] = _moved(parameter, function, made)
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = function(buffer)
        return self

    mode: Any = FakeTensorMode(allow_non_fake_inputs=True)
    with patch.object(nn.Module, "_apply", apply), mode:
        yield


def _moved(
    parameter: nn.Parameter,
    function: Callable[[Tensor], Tensor],
    made: dict[int, tuple[nn.Parameter, nn.Parameter]],
) -> nn.Parameter:
    if id(parameter) not in made:
        with torch.no_grad():
            changed = function(parameter)
        new = parameter if changed is parameter else nn.Parameter(changed, parameter.requires_grad)
        # the old one is kept, so that nothing else gets its id
        made[id(parameter)] = (parameter, new)
    return made[id(parameter)][1]
