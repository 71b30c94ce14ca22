"""Model, optimizer, task and generators as they were, bit for bit, whatever training steps were
tried in between.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from train.exactness.capture import capture
from train.models.preserve_state import undisturbed
from train.step import Learner


@contextmanager
def as_it_was(learner: Learner) -> Iterator[None]:
    """What is inside may train; copies lie in the host's memory meanwhile. Gradients are freed in
    the end.
    """
    weights = [(p, p.detach().to("cpu", copy=True)) for p in learner.module.parameters()]
    state = _copied(learner.optimizer)
    groups = [
        {name: value for name, value in g.items() if name != "params"}
        for g in learner.optimizer.param_groups
    ]
    had_flag = hasattr(learner.optimizer, "found_inf")
    attributes = capture(learner.module, learner.task)
    try:
        with undisturbed(learner.module, learner.device):
            yield
    finally:
        for parameter in learner.module.parameters():
            parameter.grad = None
        attributes.restore()
        with torch.no_grad():
            for parameter, kept in weights:
                parameter.copy_(kept)
            _put_back(learner.optimizer, state)
        for group, numbers in zip(learner.optimizer.param_groups, groups, strict=True):
            group.update(numbers)
        if not had_flag and hasattr(learner.optimizer, "found_inf"):
            del learner.optimizer.found_inf


def _copied(optimizer: Any) -> dict[Any, dict[str, tuple[Any, Any]]]:
    """{parameter: {name: (what is there, a copy of it)}}"""
    return {
        parameter: {name: (value, _copy(value)) for name, value in of_parameter.items()}
        for parameter, of_parameter in optimizer.state.items()
    }


def _copy(value: Any) -> Any:
    return (
        value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)
    )


def _put_back(optimizer: Any, state: dict[Any, dict[str, tuple[Any, Any]]]) -> None:
    optimizer.state.clear()
    for parameter, of_parameter in state.items():
        for name, (value, kept) in of_parameter.items():
            if isinstance(value, Tensor):
                value.copy_(kept)
            optimizer.state[parameter][name] = value if isinstance(value, Tensor) else kept
