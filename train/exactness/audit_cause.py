"""What may be at fault where a gradient depends on how a step is cut: in the user's words."""

import contextlib
from collections.abc import Callable, Sequence

import torch

from train.batch.window import MicroBatch
from train.data.pixels import scaled
from train.errors import some
from train.exactness.audit_cut import Samples
from train.exactness.culprit import first_that_couples
from train.exactness.trial import Part, Trial
from train.step import Learner

TOLERANCE = 1e-5
"""Relative, of what a module gives for a sample."""


def cause_of(
    learner: Learner, samples: Samples, begin: Callable[[], None], changed: Sequence[str]
) -> str:
    """`changed`: the names of what the gradient of the step has changed besides."""
    where = ""
    several = next((each for each in samples.own if each.samples > 1), None)
    if several is not None and not learner.parallel.is_sharded:
        with contextlib.suppress(Exception):  # it is asked of a model that may not take every size
            where = _first_module(learner, several, begin)
    if where:
        return f"{where} gives a sample something else when it is with others"
    if changed:
        return (
            f"{some(changed)} changes from one micro-batch to the next: does the gradient depend "
            "on it?"
        )
    return (
        "the outputs of all modules are the same: look at the loss, at hooks, and at a state "
        "that is kept"
    )


def _first_module(learner: Learner, micro_batch: MicroBatch, begin: Callable[[], None]) -> str:
    begin()
    whole = {n: scaled(c) if n in micro_batch.pixels else c for n, c in micro_batch.batch.items()}
    trial = Trial(learner, whole, None)
    order = torch.arange(micro_batch.samples)
    parts = []
    for places in order.split([1, micro_batch.samples - 1]):
        parts.append(Part({name: column[places] for name, column in whole.items()}, places))
    return first_that_couples(trial, parts, TOLERANCE)
