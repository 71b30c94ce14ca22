"""Tasks: what the loss and the metrics are. A config names a task by its file or its dotted path.

A task calls `model(...)` and nothing inside it: a forward of the wrapped module would miss the
reduction of its gradients. It never divides, never reduces over ranks and knows nothing of
micro-batches.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from train.batch.window import Batch
from train.config import Config, resolve
from train.errors import UserError
from train.randomness import drawn_from
from train.tasks.moments import Moments

T = TypeVar("T")

ONLY = "loss"
"""The name of the term of a loss that has one."""


def by_term(value: T | Mapping[str, T]) -> Mapping[str, T]:
    """{term: value} of what loss_weight or loss_sum returned."""
    return value if isinstance(value, Mapping) else {ONLY: value}


def stacked(values: Sequence[Tensor]) -> Tensor:
    """n 0-dim tensors as one (n,); a single one stays 0-dim.

    A stack of one would cost an operator in each micro-step.
    """
    return values[0] if len(values) == 1 else torch.stack(list(values))


class TaskError(UserError):
    """A task whose loss, weight and coefficients do not fit together."""


class Task(Protocol):
    """The members of a task.

    A loss may have several terms, each with its own weight: loss_weight and loss_sum then return
    {term: value} with the same names, and the optional attribute `coefficients` is {term: factor}.
    """

    columns: tuple[str, ...]
    """What a batch must hold."""

    def loss_weight(self, batch: Batch) -> float | Mapping[str, float]:
        """What the sum of losses is divided by: the number of samples, of valid labels, ...

        Counted on the CPU before the first forward pass, and added up over the step.
        """
        ...

    def loss_sum(self, model: Any, batch: Batch) -> Tensor | Mapping[str, Tensor]:
        """The sum of the losses of a batch: 0-dim, float32 or wider."""
        ...

    def eval_sums(
        self, model: Any, batch: Batch
    ) -> Mapping[str, tuple[Tensor, Tensor | float] | Moments]:
        """{name: (sum, weight)} of the loss (named `loss`) and of each metric, from one forward.

        A batch may lack a metric, such as that of a class that does not occur in it.
        """
        ...

    # Optional members:
    #
    # weight_columns: the columns that loss_weight reads. Where no transform makes them, weights are
    # counted from these alone, one step ahead, and samples are read when their micro-batch comes.
    # Without it, a loss of one term is divided once, at the update; one of several terms keeps all
    # samples of a step in memory.
    #
    # split_invariant_draws = True (of the task, or of a module): its draws from the global
    # generators give a sample the same numbers however a batch is split. Any other draw in training
    # makes a run not exact.
    #
    # couples_samples = True: the loss of a sample depends on the others of its micro-batch
    # (negatives within the batch, a balance loss), so that no split of a batch has its gradient.
    # Needed where the preflight cannot find that out.
    #
    # finish(metrics) -> metrics: what follows from {name: sum / weight} over a full set without
    # being a sum itself, such as perplexity = exp(loss). A metric that no batch had is absent.
    #
    # num_classes(model, batch) -> the number of classes of the model. Integer labels of every set,
    # in memory or not, are compared with it before the first step, and a wrong one is reported with
    # its row; those of a stream when they are read. class_columns: the columns that are compared in
    # a stream, where that is not `labels` alone.
    #
    # check(model, one, columns) -> what is wrong, or None: before the first step, on every set that
    # is in memory. `one` holds one sample, as in a step; `columns` all samples, on the CPU.
    #
    # samples(model, batch, decode) -> rows of a table, {column: text}: what the model makes of
    # `batch`, some held-out samples, at each evaluation; `decode` turns tokens into text.


def coefficients_of(task: Task) -> Mapping[str, float]:
    """{term: factor} of the sum of the terms; 1 for a term that the task does not name.

    Raises TaskError for what is no number. Whether the named terms exist is checked with a first
    loss (exactness.additivity).
    """
    coefficients = getattr(task, "coefficients", {})
    name = type(task).__name__
    if not isinstance(coefficients, Mapping):
        raise TaskError(
            f"{name}.coefficients must be {{term: number}}: got {type(coefficients).__name__}. "
            f"Set: coefficients = {{{ONLY!r}: 1.0}}"
        )
    for term, factor in coefficients.items():
        if isinstance(factor, Tensor) and factor.dim() == 0 and not factor.requires_grad:
            continue
        if isinstance(factor, bool) or not isinstance(factor, Real) or not math.isfinite(factor):
            raise TaskError(
                f"{name}.coefficients[{term!r}] must be a finite number: got {factor!r}"
            )
    return defaultdict(lambda: 1.0, coefficients)


def weight_columns(task: Task) -> Sequence[str]:
    """The columns that the task's loss_weight reads; none where they are unknown.

    They hold only if no later class overrides loss_weight: a user's class may be derived from one
    of ours.
    """
    if "weight_columns" in vars(task):
        return tuple(vars(task)["weight_columns"])
    for kind in type(task).__mro__:
        if "weight_columns" in vars(kind):
            return tuple(vars(kind)["weight_columns"])
        if "loss_weight" in vars(kind):
            return ()
    return ()


def make_task(config: Config) -> Task:
    """The task that `task.target` names; its constructor draws from the run's seed."""
    target = resolve(config.task.target, "train.tasks")
    with drawn_from(config.seed):
        task: Task = target(**config.task.args)
    return task
