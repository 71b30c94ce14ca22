"""What may be the cause where a gradient depends on how a step is cut, in the user's words."""

import contextlib
from collections.abc import Callable, Sequence

import torch

from train.batch.window import Batch, MicroBatch
from train.data.pixels import scaled
from train.errors import some
from train.exactness.audit_cut import StepSamples
from train.exactness.culprit import first_coupling_module
from train.exactness.trial import BatchPart, Trial
from train.step import Learner

TOLERANCE = 1e-5
"""Relative, of a module's output for a sample."""


def find_cause(
    learner: Learner,
    samples: StepSamples,
    rewind: Callable[[], None],
    changed_state: Sequence[str],
) -> str:
    """`changed_state`: names of what the step's gradient has changed besides."""
    module = ""
    # Under FSDP2 a forward pass needs all ranks, and here each looks at its own samples.
    if not learner.parallel.is_sharded:
        # One is tried: this looks for words for a verdict, and the verdict stands already.
        for micro_batch in samples.own:
            if micro_batch.samples > 1:
                # A model may not take every size; then the cause is looked for elsewhere.
                with contextlib.suppress(Exception):
                    module = _first_coupling_module(learner, micro_batch, rewind)
                break
    if module:
        return f"{module} gives a sample something else when it is with others"
    if changed_state:
        return (
            f"{some(changed_state)} changes from one micro-batch to the next: does the gradient "
            "depend on it?"
        )
    return (
        "the outputs of all modules are the same: look at the loss, at hooks, and at a state "
        "that is kept"
    )


def _first_coupling_module(
    learner: Learner, micro_batch: MicroBatch, rewind: Callable[[], None]
) -> str:
    """The first sample alone, and the others, against all of them at once."""
    # The trial begins from the state that it is made in: that of the step.
    rewind()
    batch: Batch = {}
    for name, column in micro_batch.batch.items():
        # The trial sends the batch to the device by itself, without the feed that scales pixels of
        # a step.
        batch[name] = scaled(column) if name in micro_batch.pixels else column
    trial = Trial(learner, batch, None)
    parts = []
    for indices in torch.arange(micro_batch.samples).split([1, micro_batch.samples - 1]):
        part = {name: column[indices] for name, column in batch.items()}
        parts.append(BatchPart(part, indices))
    return first_coupling_module(trial, parts, TOLERANCE)
