"""Is the gradient of a step that of the one big batch? Tried at the start on one micro-batch, not taken on trust."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from train.batch.window import Batch
from train.data import Padding, Sets, in_memory
from train.data.device_prefetch import to_device
from train.errors import UserError
from train.exactness.padding import padding_reasons
from train.exactness.reference_gradient import as_many_as_fit, in_training, plain_forward
from train.models.preserve_state import undisturbed
from train.step import Learner
from train.tasks import Task, by_term

TOLERANCE = {"fp64": 1e-11, "fp32": 1e-5, "tf32": 1e-2, "fp16": 1e-2, "bf16": 5e-2, "bf16 parameters": 5e-2}
"""Largest relative difference between the loss of a batch and the sum over its halves that rounding explains."""

BOUNDS = {"fp64": 1e-12, "fp32": 2e-6, "tf32": 2.5e-3, "fp16": 2.5e-3, "bf16": 2e-2, "bf16 parameters": 2e-2}
"""Largest relative error of a gradient that the arithmetic itself explains; bf16 and fp16: of autocast's activations.
tf32 and fp16 keep three bits more than bf16."""

ROUNDS = {
    "tf32": "runtime.tf32 rounds each micro-batch",
    "fp16": "fp16 rounds each micro-batch",
    "bf16": "bf16 rounds each micro-batch",
    "bf16 parameters": "model.dtype=bf16 rounds the gradient of each micro-batch, though their sum is kept in float32",
}
"""Arithmetic in which the gradient depends on how a batch is split, by more than anybody would call exact."""


class NotExact(UserError):
    """batch.exact=required, and the run would not be exact."""


class TaskError(UserError):
    """A task whose loss and weight do not fit together."""


@dataclass(frozen=True)
class Exactness:
    """`verified`: tried, and it held. `declared`: cannot be tried, the task's word is taken. `false`: see reasons."""

    exact: str
    reasons: tuple[str, ...]
    terms: tuple[str, ...]  # of the loss
    mistakes: tuple[str, ...] = ()  # those reasons that no task can have meant

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
    """Ask the task whether whole sets can be trained on, where it has a `check`. Raises TaskError where not."""
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


def judge(learner: Learner, batch: Batch, precision: str, padding: Padding | None = None) -> Exactness:
    """Split `batch` (on the CPU, as a rank would be fed) in two, and see whether loss, weight and gradient add up.

    Tried without autocast, whose rounding would hide what couples samples a little. With `padding` its parts are cut as
    training would: the shortest text from the others, each part to its longest.

    Fewer samples are tried where these do not fit the memory. Leaves the module's buffers and the random number
    generators as they were. Raises TaskError where loss_sum and loss_weight do not fit together at all.
    """
    return as_many_as_fit(lambda samples: _judge(learner, samples, precision, padding), batch)


def _judge(learner: Learner, batch: Batch, precision: str, padding: Padding | None) -> Exactness:
    task, module, device, dtype = learner.task, learner.module, learner.device, learner.dtype
    own, plain = arithmetic(learner, precision), arithmetic(learner, "fp64" if dtype == torch.float64 else "fp32")
    tolerance = TOLERANCE[plain]
    parts = _split(batch, padding)
    size = len(next(iter(batch.values())))
    mistakes: list[str] = []
    reasons = list(_declared(task))
    error = 0.0
    untried = "" if size > 1 else "one sample cannot be split"
    with undisturbed(module, device) as training_modes, torch.no_grad():
        terms = _checked_terms(task, module, to_device(batch, device, dtype), batch)
        fed: Sequence[Batch] = parts
        if padding:
            reasons += padding_reasons(learner, batch, padding, tolerance)
            fed = parts if reasons else (batch, *map(padding.cut, parts[1:]))
        module.eval()
        with plain_forward(module):
            losses = [_sums(learner, part) for part in fed] if size > 1 else []
        for term in terms if losses else ():
            weights = [by_term(task.loss_weight(part))[term] for part in parts]
            sums = [of_part[term] for of_part in losses]
            if not all(map(math.isfinite, sums)):
                reasons.append(f"the loss ({term}) of the first samples is {sums[0]}: not finite before the first step")
                continue
            if not weights[0]:
                untried = f"none of the first {size} samples counts for the loss ({term})"
            elif padding and not weights[1]:
                untried = f"the shortest text does not count for the loss ({term}): cutting padding off was not tried"
            error = max(error, abs(sums[0] - sums[1] - sums[2]) / (abs(sums[0]) or 1.0))
            mistakes += [*_weight_mistakes(term, weights), *_mean_mistakes(term, sums, weights, tolerance)]
            if not mistakes and _differ(sums[0], sums[1] + sums[2], tolerance):
                reasons.append(_coupling(term, sums))
        training_modes()
        if losses and not mistakes and not reasons:
            apart, reasons, hidden = in_training(learner, fed, tolerance)
            error, untried = max(error, apart), untried or hidden
    if own in ROUNDS:
        reasons.append(
            f"{ROUNDS[own]}: within {BOUNDS[own]:.0e} of the big batch's gradient (scripts/verify.py measures)"
        )
    if mistakes or reasons:
        return Exactness("false", tuple(dict.fromkeys([*mistakes, *reasons])), terms, tuple(mistakes))
    if untried:
        return Exactness("declared", (untried,), terms)
    return Exactness("verified", (f"a split micro-batch adds up, to {error:.0e} ({plain})",), terms)


def _split(batch: Batch, padding: Padding | None) -> tuple[Batch, Batch, Batch]:
    """The batch, and two parts of it: halves; where texts are cut to their length, the shortest one and the others."""
    size = len(next(iter(batch.values())))
    order, cut = torch.arange(size), size // 2
    if padding:
        order, cut = padding.lengths(batch).argsort(stable=True), 1
    first, second = ({name: column[part] for name, column in batch.items()} for part in (order[:cut], order[cut:]))
    return batch, first, second


def _checked_terms(task: Task, module: nn.Module, on_device: Batch, batch: Batch) -> tuple[str, ...]:
    weights, sums = by_term(task.loss_weight(batch)), by_term(task.loss_sum(module, on_device))
    name = type(task).__name__
    if weights.keys() != sums.keys():
        raise TaskError(
            f"{name}: loss_weight has the terms {', '.join(weights)}, loss_sum {', '.join(sums)}: they must be the same"
        )
    for term, value in sums.items():
        if not isinstance(value, Tensor) or value.dim() or value.dtype not in (torch.float32, torch.float64):
            got = f"{value.dtype}, shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise TaskError(f"{name}.loss_sum ({term}) must be a 0-dim tensor of float32 or float64: got {got}")
    return tuple(weights)


def _weight_mistakes(term: str, weights: Sequence[float]) -> Iterator[str]:
    whole, *parts = weights
    if abs(whole - sum(parts)) > 1e-9 * abs(whole):
        yield (
            f"loss_weight ({term}) is {whole:g} for a batch, {parts[0]:g} + {parts[1]:g} for its halves: it must count "
            f"what adds up, such as samples or labels"
        )


def _mean_mistakes(term: str, sums: Sequence[float], weights: Sequence[float], tolerance: float) -> Iterator[str]:
    """With everything random, and every statistic of a batch, switched off: what remains is the loss itself."""
    whole, *parts = sums
    mean = (parts[0] * weights[1] + parts[1] * weights[2]) / (weights[0] or 1.0)
    if _differ(whole, sum(parts), tolerance) and not _differ(whole, mean, tolerance):
        yield (
            f"loss_sum ({term}) returns a mean, {whole:.4g}, where a sum is needed: reduction='sum'; the step divides "
            f"by loss_weight"
        )


def _coupling(term: str, sums: Sequence[float]) -> str:
    whole, *halves = sums
    apart = abs(whole - sum(halves)) / abs(whole or 1.0)
    return (
        f"the loss ({term}) couples the samples of a batch: {whole:.6g}, and the sum over its halves is {apart:.0e} of "
        f"that away (negatives within the batch, a balance loss?)"
    )


def _sums(learner: Learner, batch: Batch) -> dict[str, float]:
    sums = by_term(learner.task.loss_sum(learner.module, to_device(batch, learner.device, learner.dtype)))
    return {term: float(value) for term, value in sums.items()}


def _declared(task: Task) -> Iterator[str]:
    if getattr(task, "couples_samples", False):
        yield f"{type(task).__name__} says of its loss that it couples the samples of a batch (couples_samples)"


def _differ(a: float, b: float, tolerance: float) -> bool:
    return abs(a - b) > tolerance * max(abs(a), abs(b))
