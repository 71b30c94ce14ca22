"""Is the gradient of a step that of the one big batch? Tried at the start on one micro-batch, not
taken on trust.
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from train.batch.window import Batch
from train.data import Padding, Sets, in_memory
from train.data.device_prefetch import to_device
from train.errors import UserError
from train.exactness.loss_trial import try_loss
from train.exactness.padding import padding_reasons
from train.exactness.reference_gradient import as_many_as_fit, widest_forward
from train.exactness.training_trial import Findings, try_training
from train.exactness.trial import Trial
from train.installation import command
from train.models.preserve_state import undisturbed
from train.step import Learner
from train.tasks import Task, TaskError, by_term

TOLERANCE = {
    "fp64": 1e-11,
    "fp32": 1e-5,
    "tf32": 1e-2,
    "fp16": 1e-2,
    "bf16": 5e-2,
    "bf16 parameters": 5e-2,
}
"""Largest relative difference between the loss of a batch and the sum over its halves that rounding
explains.
"""

BOUNDS = {
    "fp64": 1e-12,
    "fp32": 2e-6,
    "tf32": 2.5e-3,
    "fp16": 2.5e-3,
    "bf16": 2e-2,
    "bf16 parameters": 2e-2,
}
"""Largest relative error of a gradient that the arithmetic itself explains; bf16 and fp16: of
autocast's activations. tf32 and fp16 keep three bits more than bf16.
"""

ROUNDS = {
    "tf32": "runtime.tf32 rounds each micro-batch",
    "fp16": "fp16 rounds each micro-batch",
    "bf16": "bf16 rounds each micro-batch",
    "bf16 parameters": (
        "model.dtype=bf16 rounds the gradient of each micro-batch, though their sum is kept in "
        "float32"
    ),
}
"""Arithmetic in which the gradient depends on how a batch is split, by more than anybody would call
exact.
"""

HALF = ("float16", "bfloat16")


class NotExact(UserError):
    """batch.exact=required, and the run would not be exact."""


@dataclass(frozen=True)
class Exactness:
    """`verified`: tried, and it held. `declared`: cannot be tried, the task's word is taken.
    `false`: see reasons.
    """

    exact: str
    reasons: tuple[str, ...]
    terms: tuple[str, ...]  # of the loss
    mistakes: tuple[str, ...] = ()  # those reasons that no task can have meant
    beyond_rounding: tuple[str, ...] = ()  # those reasons that no wider arithmetic would remove

    def lines(self, wanted: str) -> list[str]:
        """For the screen; `wanted` is batch.exact."""
        if wanted == "ignore":
            return []
        if self.exact == "false":
            return [f"exact     no: {reason}" for reason in self.reasons]
        return [f"exact     {self.exact}: {'; '.join(self.reasons)}"]


def arithmetic(learner: Learner, precision: str) -> str:
    """What rounds a gradient: the precision, or what is coarser than it says."""
    if learner.dtype == torch.bfloat16:
        return "bf16 parameters"
    tf32 = learner.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    return "tf32" if tf32 and precision == "fp32" else precision


def check_sets(learner: Learner, sets: Sets) -> None:
    """Ask the task whether whole sets can be trained on, where it has a `check`. Raises TaskError
    where not.
    """
    check = getattr(learner.task, "check", None)
    if check is None:
        return
    with undisturbed(learner.module, learner.device), torch.no_grad():
        learner.module.eval()
        held = {name: in_memory(samples) for name, samples in sets.evaluation.items()}
        for name, rows in {"training": in_memory(sets.train), **held}.items():
            if rows is None:
                continue  # a stream is known as it comes
            one = to_device(rows.fetch(np.zeros(1, dtype=np.int64)), learner.device, learner.dtype)
            wrong = check(learner.module, one, rows.columns)
            if wrong:
                raise TaskError(f"{name or 'held-out'} samples: {wrong}")


def judge(
    learner: Learner, batch: Batch, precision: str, padding: Padding | None = None
) -> Exactness:
    """Put `batch` (on the CPU, as a rank would be fed) through whole and in parts: do loss, weight
    and gradient add up?

    Tried without autocast, whose rounding would hide what couples samples a little; with it where
    the model takes nothing else. With `padding` its parts are cut as training would: each to its
    longest.

    Fewer samples are tried where these do not fit the memory. Leaves buffers, attributes and the
    random number generators as they were. Raises TaskError where loss_sum and loss_weight do not
    fit together at all.
    """
    return as_many_as_fit(lambda samples: _judge(learner, samples, precision, padding), batch)


def _judge(learner: Learner, batch: Batch, precision: str, padding: Padding | None) -> Exactness:
    widest = arithmetic(learner, "fp64" if learner.dtype == torch.float64 else "fp32")
    own = arithmetic(learner, precision)
    with undisturbed(learner.module, learner.device) as training_modes, torch.no_grad():
        trial = Trial(learner, batch, padding)
        learner.module.eval()
        terms = _checked_terms(
            learner.task, learner.module, to_device(batch, learner.device, learner.dtype), batch
        )
        try:
            with full_float32(), widest_forward(learner, batch) as refused:
                tried_in = own if refused else widest
                found = _try(
                    trial, terms, "fp32" if tried_in == "tf32" else tried_in, training_modes
                )
        finally:
            trial.start.restore()
    rounds = []
    if own in ROUNDS:
        rounds.append(
            f"{ROUNDS[own]}: within {BOUNDS[own]:.0e} of the big batch's gradient "
            f"({command('verify').removeprefix('python ')} measures)"
        )
    elif trial.narrower_inside in HALF:
        rounds.append(
            f"the model computes in {trial.narrower_inside} inside, which rounds each micro-batch: "
            f"its parts add up to {found.error:.0e}"
        )
    if found.mistakes or found.reasons or (rounds and not refused):
        beyond = tuple(dict.fromkeys([*found.mistakes, *found.reasons]))
        return Exactness("false", (*beyond, *rounds), terms, tuple(found.mistakes), beyond)
    if refused:
        only = (
            f"the model runs in {own} only ({refused}): tried in that alone, its parts add up to "
            f"{found.error:.0e}"
        )
        return Exactness("declared", (only, *rounds), terms)
    if found.untried:
        return Exactness("declared", tuple(dict.fromkeys(found.untried)), terms)
    inside = f", {trial.narrower_inside} inside" if trial.narrower_inside else ""
    return Exactness(
        "verified",
        (f"a split micro-batch adds up, to {found.error:.0e} ({widest}{inside})",),
        terms,
    )


def _try(
    trial: Trial, terms: Sequence[str], precision: str, training_modes: Callable[[], None]
) -> Findings:
    """First the loss alone, without all that is random and every statistic of a batch; then in
    training mode.
    """
    learner, tolerance = trial.learner, TOLERANCE[precision]
    learner.module.eval()
    found = Findings()
    if trial.padding:
        found.reasons += padding_reasons(learner, trial.whole, trial.padding, tolerance)
    found.reasons += _declared(learner.task)
    try_loss(trial, terms, tolerance, found)
    training_modes()
    if found.mistakes or found.reasons:
        return found
    trained = try_training(trial, tolerance)
    if trial.samples == 1:
        trained.untried.append("one sample cannot be split")
    return Findings(
        reasons=trained.reasons,
        untried=[*found.untried, *trained.untried],
        error=max(found.error, trained.error),
    )


def _checked_terms(
    task: Task, module: nn.Module, on_device: Batch, batch: Batch
) -> tuple[str, ...]:
    weights, sums = by_term(task.loss_weight(batch)), by_term(task.loss_sum(module, on_device))
    name = type(task).__name__
    if weights.keys() != sums.keys():
        raise TaskError(
            f"{name}: loss_weight has the terms {', '.join(weights)}, loss_sum {', '.join(sums)}: "
            "they must be the same"
        )
    _check_coefficients(task, list(weights))
    for term, value in sums.items():
        if (
            not isinstance(value, Tensor)
            or value.dim()
            or value.dtype not in (torch.float32, torch.float64)
        ):
            got = (
                f"{value.dtype}, shape {tuple(value.shape)}"
                if isinstance(value, Tensor)
                else type(value).__name__
            )
            raise TaskError(
                f"{name}.loss_sum ({term}) must be a 0-dim tensor of float32 or float64: got {got}"
            )
    return tuple(weights)


def _check_coefficients(task: Task, terms: Sequence[str]) -> None:
    """A coefficient of a term that does not exist would leave the real one at 1."""
    for term in getattr(task, "coefficients", {}):
        if term not in terms:
            near = difflib.get_close_matches(str(term), terms, n=1, cutoff=0.4)
            meant = f"Did you mean {near[0]!r}? " if near else ""
            raise TaskError(
                f"{type(task).__name__}.coefficients names the term {term!r}, but the loss has the "
                f"terms {', '.join(terms)}. {meant}Change coefficients, or the names in loss_sum "
                "and loss_weight"
            )


@contextmanager
def full_float32() -> Iterator[None]:
    """No TensorFloat-32 inside, which convolutions on a GPU use unless told otherwise: it rounds as
    much as bf16.
    """
    matmul, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolutions


def _declared(task: Task) -> Iterator[str]:
    if getattr(task, "couples_samples", False):
        yield (
            f"{type(task).__name__} says of its loss that it couples the samples of a batch "
            "(couples_samples)"
        )
