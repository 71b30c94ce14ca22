"""What a loss is. A task is a class with these members; a config names it by file, or by its dotted
path.

A task calls `model(...)` and nothing inside it, since a forward of the wrapped module would miss
the reduction of its gradients. It never divides, never reduces over ranks and knows nothing of
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

ONLY = "loss"  # the name of the term of a task that has one


def by_term(value: T | Mapping[str, T]) -> Mapping[str, T]:
    """What loss_weight and loss_sum give, by the names of the terms."""
    return value if isinstance(value, Mapping) else {ONLY: value}


def stacked(values: Sequence[Tensor]) -> Tensor:
    """(n,), of n 0-dim tensors; one alone stays as it is: a stack of one costs each micro-step an
    operator.
    """
    return values[0] if len(values) == 1 else torch.stack(list(values))


class TaskError(UserError):
    """A task whose loss, weight and coefficients do not fit together."""


class Task(Protocol):
    """A loss may have several terms, each with a weight of its own: loss_weight and loss_sum then
    give {term: value}, under the same names, and the attribute `coefficients`, if there is one, is
    {term: factor}.
    """

    columns: tuple[str, ...]
    """What a batch must hold."""

    def loss_weight(self, batch: Batch) -> float | Mapping[str, float]:
        """What the sum of losses over the step is divided by: the number of samples, of valid
        labels, ... in `batch`, counted on the CPU before the first forward pass.
        """
        ...

    def loss_sum(self, model: Any, batch: Batch) -> Tensor | Mapping[str, Tensor]:
        """The sum of the losses in `batch`: 0-dim, float32 or wider."""
        ...

    def eval_sums(
        self, model: Any, batch: Batch
    ) -> Mapping[str, tuple[Tensor, Tensor | float] | Moments]:
        """{name: (sum, weight)} of the loss (name `loss`) and of each metric, from one forward
        pass.

        A batch, or a rank, may lack a metric, such as that of a class that does not occur: it
        counts nothing there.
        """
        ...

    # Optional, for tasks that have more to say:
    #
    # weight_columns: those that loss_weight reads. Where no transform makes them, weights are
    # counted from these alone, one step ahead, and samples are read as their micro-batch comes.
    # Else a loss of one term is divided once, at the update; one of several holds all samples of a
    # step in memory.
    #
    # split_invariant_draws = True (of the task, or of a module): what it draws from the global
    # generators gives a sample the same numbers however a batch is cut. Any other draw in training
    # makes a run not exact.
    #
    # couples_samples = True: the loss of a sample depends on the others of its micro-batch
    # (negatives within the batch, a balance loss), so that no split of a batch has its gradient.
    # Said where a trial cannot find it out.
    #
    # finish(metrics) -> metrics: what follows from {name: sum / weight} over a whole set without
    # being a sum itself, such as perplexity = exp(loss). A metric that nobody could measure is
    # absent.
    #
    # num_classes(model, batch) -> how many classes the model tells apart: whole-number labels of
    # every set, in memory or not, are compared with it before the first step, and a wrong one is
    # told by its row; those of a stream as they come. class_columns: the columns that are compared
    # so in a stream, where that is not `labels` alone.
    #
    # check(model, one, columns) -> what is wrong, or None: before the first step, on every set that
    # is in memory. `one` holds one sample, as a step is fed; `columns` all samples, on the CPU.
    #
    # samples(model, batch, decode) -> rows of a table, {column: text}: what the model makes of
    # `batch`, some held-out samples, at each evaluation; `decode` turns tokens into text.


def coefficients_of(task: Task) -> Mapping[str, float]:
    """By which the terms of the loss are added up: 1 where the task names none. Raises TaskError
    for what is no number.

    Whether the terms that it names exist is seen once the loss has given its own
    (exactness.additivity).
    """
    given = getattr(task, "coefficients", {})
    name = type(task).__name__
    if not isinstance(given, Mapping):
        raise TaskError(
            f"{name}.coefficients must be {{term: number}}: got {type(given).__name__}. "
            f"Type: coefficients = {{{ONLY!r}: 1.0}}"
        )
    for term, factor in given.items():
        if isinstance(factor, Tensor) and factor.dim() == 0 and not factor.requires_grad:
            continue
        if isinstance(factor, bool) or not isinstance(factor, Real) or not math.isfinite(factor):
            raise TaskError(
                f"{name}.coefficients[{term!r}] must be a finite number: got {factor!r}"
            )
    return defaultdict(lambda: 1.0, given)


def weight_columns(task: Task) -> Sequence[str]:
    """Those that the task says its weights are counted from; none where loss_weight is of a class
    that says nothing, such as the user's own, made from one that does.
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
    """The task that `task.target` names. What it draws when it is made follows from the
    run's seed.
    """
    target = resolve(config.task.target, "train.tasks")
    with drawn_from(config.seed):
        task: Task = target(**config.task.args)
    return task
