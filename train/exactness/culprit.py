"""Which module it is: the first one whose output for a sample changes with the cut of the batch, or
with the draws.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from train.exactness.trial import Part, Trial

Outputs = dict[tuple[str, int], Tensor]
"""By the name of the module and the how-manieth of its calls, in the order in which the calls
ended.
"""


def first_that_couples(trial: Trial, parts: Sequence[Part], tolerance: float) -> str:
    """In the user's words; empty where every module gives each sample the same whatever the cut: it
    is the loss.
    """
    whole = _outputs(trial, trial.all_at_once(), 1)
    split = _outputs(trial, parts, 1)
    return _first_difference(trial, whole, split, tolerance)


def first_that_draws(trial: Trial, tolerance: float) -> str:
    """In the user's words; empty where it is not the model."""
    first = _outputs(trial, trial.all_at_once(), 1)
    second = _outputs(trial, trial.all_at_once(), 2)
    return _first_difference(trial, first, second, tolerance)


def _first_difference(trial: Trial, expected: Outputs, found: Outputs, tolerance: float) -> str:
    module = trial.learner.module
    for (name, call), output in expected.items():
        other = found.get((name, call))
        if other is None or other.shape != output.shape:
            continue
        apart = torch.linalg.vector_norm((other - output).double())
        if apart > tolerance * torch.linalg.vector_norm(output.double()):
            kind = type(module.get_submodule(name)).__name__
            return f"{name} ({kind})" if name else kind
    return ""


def _outputs(trial: Trial, parts: Sequence[Part], seed: int) -> Outputs:
    """Of all parts, their samples in the order of the whole."""
    of_parts = []
    with _listening(trial.learner.module) as (calls, count):
        trial.start.restore()
        for part in parts:
            calls.clear()
            count.clear()
            trial.run_on([part], seed)
            size = len(part.places)
            of_parts.append(
                {key: value for key, value in calls.items() if value.dim() and len(value) == size}
            )
    order = torch.cat([part.places for part in parts]).argsort()
    joined: Outputs = {}
    for key, first in of_parts[0].items():
        pieces = [calls.get(key) for calls in of_parts]
        found = [
            piece for piece in pieces if piece is not None and piece.shape[1:] == first.shape[1:]
        ]
        if len(found) == len(parts):
            joined[key] = torch.cat(found)[order.to(first.device)]
    return joined


@contextmanager
def _listening(module: nn.Module) -> Iterator[tuple[Outputs, Counter[str]]]:
    calls: Outputs = {}
    count: Counter[str] = Counter()
    hooks = []

    def listener(name: str) -> Any:
        def listen(part: nn.Module, arguments: object, output: object) -> None:
            if isinstance(output, tuple) and output:
                output = output[0]
            if isinstance(output, Tensor) and output.is_floating_point():
                calls[name, count[name]] = output.detach().clone()
            count[name] += 1

        return listen

    for name, part in module.named_modules():
        hooks.append(part.register_forward_hook(listener(name)))
    try:
        yield calls, count
    finally:
        for hook in hooks:
            hook.remove()
