"""Do model, data and task fit together? The first forward and loss, before anything is written."""

import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn

from train.batch.window import Batch
from train.data import DataError, Datasets, TrainingSet, in_memory, in_range
from train.data.device_prefetch import to_device
from train.errors import UserError, is_out_of_memory
from train.exactness.reference_gradient import halve_until_it_fits
from train.models.preserve_state import preserve_state
from train.step import Learner
from train.tasks import TaskError, by_term
from train.tasks._calling import ModelOutputs

RAISED_AS_THEY_ARE = (
    DataError,
    ModelOutputs,
    TaskError,
    MemoryError,
    OSError,
    torch.OutOfMemoryError,
    torch.AcceleratorError,
)
"""Errors with a message of their own, or of the machine, where another start may help."""

TORCH_FOLDER = str(Path(torch.__file__).parent)


class FirstForwardError(UserError):
    """The first forward or loss failed; the error that ended it is the cause."""


def check_first_forward(
    learner: Learner, sets: Datasets, batch: Batch, columns: Mapping[str, Any]
) -> TrainingSet:
    """Run the first forward and loss on `batch` (on the CPU), and check what is known of the sets.

    Returns the training set, whose labels are checked as they come where they are not in memory.
    `columns`: their names in the data. Raises FirstForwardError where forward or loss fail,
    DataError for a label that the model has no output for, TaskError for a set that the task cannot
    be trained on. Buffers, modes and random numbers stay as they were.
    """
    return halve_until_it_fits(lambda fewer: _check(learner, sets, fewer, columns), batch)


def _check(
    learner: Learner, sets: Datasets, batch: Batch, columns: Mapping[str, Any]
) -> TrainingSet:
    task = learner.task
    module = learner.module
    on_device = to_device(batch, learner.device, learner.dtype)
    count_classes = getattr(task, "num_classes", None)
    with _explained(learner, on_device), preserve_state(module, learner.device), torch.no_grad():
        classes_of: dict[str, int] = {}
        # Before any loss: on a GPU a label out of range ends the process.
        if count_classes:
            classes = count_classes(module, on_device)
            for labels in sets.labels:
                labels.check(classes)
            classes_of = dict.fromkeys(getattr(task, "class_columns", ("labels",)), classes)
        samples = in_range(sets.train, classes_of, columns, batch)
        _check_sets(learner, sets)
        by_term(task.loss_weight(batch))
        by_term(task.loss_sum(module, on_device))
    return samples


def _check_sets(learner: Learner, sets: Datasets) -> None:
    """Let the task check the sets, where it has a `check`. Raises TaskError."""
    check = getattr(learner.task, "check", None)
    if check is None:
        return
    rows_of_sets = {"training": in_memory(sets.train)}
    for name, samples in sets.evaluation.items():
        rows_of_sets[name] = in_memory(samples)
    with preserve_state(learner.module, learner.device), torch.no_grad():
        learner.module.eval()
        for name, rows in rows_of_sets.items():
            if rows is None:
                continue  # a stream is known as it comes
            # One sample is enough for the model to show its outputs; the labels are looked at as
            # columns.
            first_row = rows.fetch(np.zeros(1, dtype=np.int64))
            on_device = to_device(first_row, learner.device, learner.dtype)
            problem = check(learner.module, on_device, rows.columns)
            if problem:
                raise TaskError(f"{name or 'held-out'} samples: {problem}")


@contextmanager
def _explained(learner: Learner, batch: Batch) -> Iterator[None]:
    """Errors of the user's code become a FirstForwardError, which names the module and the line."""
    try:
        yield
    except RAISED_AS_THEY_ARE:
        raise
    except Exception as error:
        # On a CPU torch raises a plain RuntimeError for it.
        if is_out_of_memory(error):
            raise
        frames = list(traceback.walk_tb(error.__traceback__))
        shapes = []
        for name, column in batch.items():
            if name != "sample_id":
                dtype = str(column.dtype).removeprefix("torch.")
                shapes.append(f"{name} {tuple(column.shape)} {dtype}")
        raise FirstForwardError(
            "model, data and task do not fit together: "
            f"{_raiser(learner, [frame for frame, _ in frames])} raised {type(error).__name__}: "
            f"{str(error).strip()} ({_location(frames)}). It was given a batch of "
            f"{', '.join(shapes)}. "
            f"Look at model.args{_more_to_look_at(batch)}, or at the code in that line"
        ) from error


def _raiser(learner: Learner, frames: list[FrameType]) -> str:
    """The innermost module of the model that was running, else the task."""
    names = {id(part): name for name, part in learner.module.named_modules()}
    model = type(learner.module).__name__
    # From the inside out: the module that is nearest to the error says most.
    for frame in reversed(frames):
        part = frame.f_locals.get("self")
        if isinstance(part, nn.Module) and id(part) in names:
            name = names[id(part)]
            return f"{name} ({type(part).__name__}) of {model}" if name else model
    return f"the task {type(learner.task).__name__}"


def _location(frames: list[tuple[FrameType, int]]) -> str:
    """FILE:LINE of the last frame outside torch."""
    file = frames[-1][0].f_code.co_filename
    line = frames[-1][1]
    for frame, line_number in reversed(frames):
        name = frame.f_code.co_filename
        if not name.startswith((TORCH_FOLDER, "<")):
            file = name
            line = line_number
            break
    # Relative where that is shorter to read; a path that leads out of the folder is given whole.
    relative = os.path.relpath(file)
    return f"{file if relative.startswith('..') else relative}:{line}"


def _more_to_look_at(batch: Batch) -> str:
    """One integer for each sample may have been meant as a measurement."""
    inputs = batch.get("inputs")
    if inputs is None or inputs.dim() > 1 or inputs.is_floating_point():
        return " and data.columns"
    return (
        " and data.columns; whole numbers become floating-point ones in a list: "
        "'data.columns={inputs: [NAME]}'"
    )
