"""Whether model, data and task fit together at all: the first forward and loss of a run, before
anything is written.
"""

import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from train.batch.window import Batch
from train.data import DataError, Datasets, TrainingSet, in_range
from train.data.device_prefetch import to_device
from train.errors import UserError, is_out_of_memory
from train.exactness.additivity import check_sets
from train.exactness.reference_gradient import as_many_as_fit
from train.models.preserve_state import undisturbed
from train.step import Learner
from train.tasks import TaskError, by_term
from train.tasks._calling import ModelOutputs

NO_MISFIT = (
    DataError,
    ModelOutputs,
    TaskError,
    MemoryError,
    OSError,
    torch.OutOfMemoryError,
    torch.AcceleratorError,
)
"""What is told in words of its own, or is the machine's fault: another start may help."""

TORCH = str(Path(torch.__file__).parent)


class Misfit(UserError):
    """The first forward and loss have failed; the error that ended them is its cause."""


def try_first(
    learner: Learner, sets: Datasets, batch: Batch, columns: Mapping[str, Any]
) -> TrainingSet:
    """The first forward and loss, on a small batch (on the CPU), and what can be asked of the sets
    before.

    Gives the training set, whose labels are watched from then on where they are not in memory;
    `columns`: their names in the data. Raises Misfit where forward or loss fail, DataError for a
    label that the model has no output for, TaskError for a set that the task cannot be trained on.
    Buffers, modes and random numbers stay as they were.
    """
    return as_many_as_fit(lambda few: _try_first(learner, sets, few, columns), batch)


def _try_first(
    learner: Learner, sets: Datasets, batch: Batch, columns: Mapping[str, Any]
) -> TrainingSet:
    task, module = learner.task, learner.module
    on_device = to_device(batch, learner.device, learner.dtype)
    count_classes = getattr(task, "num_classes", None)
    with _explained(learner, on_device), undisturbed(module, learner.device), torch.no_grad():
        outputs: dict[str, int] = {}
        if count_classes:  # before any loss: on a GPU a wrong label ends the process
            classes = count_classes(module, on_device)
            for labels in sets.labels:
                labels.check(classes)
            outputs = dict.fromkeys(getattr(task, "class_columns", ("labels",)), classes)
        samples = in_range(sets.train, outputs, columns, batch)
        check_sets(learner, sets)
        by_term(task.loss_weight(batch))
        by_term(task.loss_sum(module, on_device))
    return samples


@contextmanager
def _explained(learner: Learner, batch: Batch) -> Iterator[None]:
    try:
        yield
    except NO_MISFIT:
        raise
    except Exception as error:
        if is_out_of_memory(error):  # torch has no kind of its own for a CPU's
            raise
        frames = list(traceback.walk_tb(error.__traceback__))
        got = [
            f"{n} {tuple(c.shape)} {str(c.dtype)[6:]}" for n, c in batch.items() if n != "sample_id"
        ]
        raise Misfit(
            "model, data and task do not fit together: "
            f"{_raiser(learner, [frame for frame, _ in frames])} raised {type(error).__name__}: "
            f"{str(error).strip()} ({_place(frames)}). It was given a batch of {', '.join(got)}. "
            f"Look at model.args{_more(batch)}, or at the code in that line"
        ) from error


def _raiser(learner: Learner, frames: list[FrameType]) -> str:
    """The deepest module of the model that was at work, else the task."""
    names = {id(part): name for name, part in learner.module.named_modules()}
    model = type(learner.module).__name__
    for frame in reversed(frames):
        part = frame.f_locals.get("self")
        if isinstance(part, nn.Module) and id(part) in names:
            name = names[id(part)]
            return f"{name} ({type(part).__name__}) of {model}" if name else model
    return f"the task {type(learner.task).__name__}"


def _place(frames: list[tuple[FrameType, int]]) -> str:
    """FILE:LINE of the last frame outside torch."""
    own = [(frame.f_code.co_filename, line) for frame, line in frames]
    file, line = next(
        (pair for pair in reversed(own) if not pair[0].startswith((TORCH, "<"))), own[-1]
    )
    relative = os.path.relpath(file)
    return f"{file if relative.startswith('..') else relative}:{line}"


def _more(batch: Batch) -> str:
    """Whole numbers, one for each sample, may have been meant as measurements."""
    inputs = batch.get("inputs")
    if inputs is None or inputs.dim() > 1 or inputs.is_floating_point():
        return " and data.columns"
    return (
        " and data.columns; whole numbers become floating-point ones in a list: "
        "'data.columns={inputs: [NAME]}'"
    )
