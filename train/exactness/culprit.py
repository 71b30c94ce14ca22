"""Finds the module at fault: the first one whose output for a sample changes with the cut.

Or with the draws. Outputs are compared in the order in which the calls of modules end, so the first
one that differs is an innermost one.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from train.exactness.trial import BatchPart, Trial

Outputs = dict[tuple[str, int], Tensor]
"""By (name of the module, number of the call), in the order in which the calls ended."""


def first_coupling_module(trial: Trial, parts: Sequence[BatchPart], tolerance: float) -> str:
    """As `name (Class)`; empty where every module gives each sample the same whatever the cut.

    Then it is the loss.
    """
    # One seed for both: what differs is then the cut, not a draw.
    together = _outputs(trial, trial.all_at_once(), 1)
    split = _outputs(trial, parts, 1)
    return _first_difference(trial, together, split, tolerance)


def first_drawing_module(trial: Trial, tolerance: float) -> str:
    """As `name (Class)`; empty where it is not the model."""
    first = _outputs(trial, trial.all_at_once(), 1)
    second = _outputs(trial, trial.all_at_once(), 2)
    return _first_difference(trial, first, second, tolerance)


def _first_difference(trial: Trial, expected: Outputs, actual: Outputs, tolerance: float) -> str:
    module = trial.learner.module
    # In the order in which calls ended: what lies inside a module comes before it.
    for (name, call), output in expected.items():
        other = actual.get((name, call))
        # Not called so often, or not by sample: other modules tell more.
        if other is None or other.shape != output.shape:
            continue
        difference = torch.linalg.vector_norm((other - output).double())
        if difference > tolerance * torch.linalg.vector_norm(output.double()):
            kind = type(module.get_submodule(name)).__name__
            return f"{name} ({kind})" if name else kind
    return ""


def _outputs(trial: Trial, parts: Sequence[BatchPart], seed: int) -> Outputs:
    """Of all parts, their samples in the order of the full batch."""
    outputs_of_parts = []
    with _recorded_outputs(trial.learner.module) as recorded:
        trial.start.restore()
        for part in parts:
            # A part at a time: calls are numbered anew in each, so that the same call is joined
            # over the parts.
            recorded.clear()
            trial.run_on([part], seed)
            outputs_of_parts.append(recorded.with_samples(len(part.indices)))
    # Parts are shuffled: samples go back to their places in the full batch, or all would differ.
    order = torch.cat([part.indices for part in parts]).argsort()
    joined: Outputs = {}
    for key, first in outputs_of_parts[0].items():
        pieces = []
        for outputs in outputs_of_parts:
            piece = outputs.get(key)
            # Padding may be cut off: texts of another length cannot be joined, and are no evidence.
            if piece is not None and piece.shape[1:] == first.shape[1:]:
                pieces.append(piece)
        if len(pieces) == len(parts):
            joined[key] = torch.cat(pieces)[order.to(first.device)]
    return joined


class _Recorded:
    """The outputs of all modules in one run."""

    def __init__(self) -> None:
        self._outputs: Outputs = {}
        self._calls: Counter[str] = Counter()

    def clear(self) -> None:
        self._outputs.clear()
        self._calls.clear()

    def add(self, name: str, output: object) -> None:
        if isinstance(output, tuple) and output:
            output = output[0]  # as of attention: (output, weights)
        if isinstance(output, Tensor) and output.is_floating_point():
            # Cloned: the next module may write into it, as nn.ReLU(inplace=True) does.
            self._outputs[name, self._calls[name]] = output.detach().clone()
        self._calls[name] += 1

    def with_samples(self, samples: int) -> Outputs:
        """Those whose first dimension can be that of the samples."""
        selected = {}
        for key, output in self._outputs.items():
            if output.dim() and len(output) == samples:
                selected[key] = output
        return selected


@contextmanager
def _recorded_outputs(module: nn.Module) -> Iterator[_Recorded]:
    recorded = _Recorded()
    hooks = []

    def hook_of(name: str) -> Any:
        return lambda part, arguments, output: recorded.add(name, output)

    for name, part in module.named_modules():
        hooks.append(part.register_forward_hook(hook_of(name)))
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()
