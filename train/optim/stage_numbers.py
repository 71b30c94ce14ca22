"""The optimizer's numbers over the stages of a batch schedule (optimizer.lr_on_schedule)."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from train.batch import BatchPlan
from train.batch.window import Window
from train.config.recipe import Optimizer as OptimizerConfig
from train.optim.optimizer import numbers_of_groups, numbers_of_stages
from train.parts import Part


def part(
    config: OptimizerConfig,
    batch: BatchPlan,
    optimizer: torch.optim.Optimizer,
    module: torch.nn.Module,
) -> Part:
    """Sets betas, eps and weight decay of the stage before each step; the rate is the plan's."""
    if not batch.stages:
        return Part(name="stage_numbers")
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    numbers = numbers_of_stages(config, batch)
    of_stages = [numbers_of_groups(config, each, parameters) for each in numbers]
    starts = [start for start, _ in batch.stages]

    def set_before(windows: Iterable[Window]) -> Iterator[Window]:
        current = None
        for window in windows:
            stage = bisect_right(starts, window.seen) - 1
            # Also before the first step: a run that resumes may begin in a later stage than its
            # optimizer was made for.
            if stage != current:
                _set(optimizer, of_stages[stage])
            current = stage
            yield window

    return Part(name="stage_numbers", windows=set_before)


def _set(optimizer: torch.optim.Optimizer, groups: Iterable[Mapping[str, Any]]) -> None:
    for group, numbers in zip(optimizer.param_groups, groups, strict=True):
        group.update(numbers)
