"""Is the gradient of a step that of the one big batch? Tried at the start on one micro-batch, not taken on trust."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from train.data import Padding, Sets, in_memory
from train.feed import to_device
from train.padded import padding_reasons
from train.step import Learner
from train.tasks import Task, by_term
from train.undisturbed import undisturbed
from train.window import Batch

TOLERANCE = {"fp64": 1e-11, "fp32": 1e-5, "tf32": 1e-2, "fp16": 1e-2, "bf16": 5e-2, "bf16 parameters": 5e-2}
"""Largest relative difference between the loss of a batch and the sum over its halves that rounding explains."""

ROUNDS = {
    "tf32": "runtime.tf32 rounds each micro-batch",
    "fp16": "fp16 rounds each micro-batch",
    "bf16": "bf16 rounds each micro-batch",
    "bf16 parameters": "model.dtype=bf16 rounds the gradient of each micro-batch, though their sum is kept in float32",
}
"""Arithmetic in which the gradient depends on how a batch is split, by more than anybody would call exact."""


class NotExact(ValueError):
    """batch.exact=required, and the run would not be exact."""


class TaskError(ValueError):
    """A task whose loss and weight do not fit together."""


@dataclass(frozen=True)
class Exactness:
    """`verified`: tried, and it held. `declared`: cannot be tried, the task's word is taken. `false`: see reasons."""

    exact: str
    reasons: tuple[str, ...]
    terms: tuple[str, ...]  # of the loss
    mistakes: tuple[str, ...] = ()  # those reasons that no task can have meant
    trial: Batch = field(default_factory=dict)  # the samples that were tried

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
    """Split `batch` (on the CPU, as a rank would be fed) in two, and see whether loss and weight add up.

    With `padding` its parts are cut as training would: the shortest text from the others, each part to its longest.

    Leaves the module's buffers and the random number generators as they were. Raises TaskError where loss_sum and
    loss_weight do not fit together at all.
    """
    task, module = learner.task, learner.module
    device, dtype = learner.device, learner.dtype
    precision = arithmetic(learner, precision)
    tolerance = TOLERANCE[precision]
    parts = _split(batch, padding)
    fed: Sequence[Batch] = parts
    size = len(next(iter(batch.values())))
    mistakes: list[str] = []
    reasons: list[str] = []
    error = 0.0
    untried = "" if size > 1 else "one sample cannot be split"
    with undisturbed(module, device) as training_modes, torch.no_grad():
        terms = _checked_terms(task, module, to_device(batch, device, dtype), batch)
        if padding:
            plain = arithmetic(learner, "fp64" if dtype == torch.float64 else "fp32")  # without autocast
            reasons += padding_reasons(learner, batch, padding, TOLERANCE[plain])
            fed = parts if reasons else (batch, *map(padding.cut, parts[1:]))
        for term in terms if size > 1 else ():

            def loss(part: Batch, term: str = term) -> float:
                return float(by_term(task.loss_sum(module, to_device(part, device, dtype)))[term])

            module.eval()
            weights = [by_term(task.loss_weight(part))[term] for part in parts]
            sums = [loss(part) for part in fed]
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
            if not mistakes and not reasons:
                reasons += _training_reasons(loss, module, fed, tolerance)
    if precision in ROUNDS:
        reasons.append(f"{ROUNDS[precision]}: the loss of a split batch differs by {error:.0e} here")
    if mistakes or reasons:
        return Exactness("false", tuple(dict.fromkeys([*mistakes, *reasons])), terms, tuple(mistakes))
    if untried:
        return Exactness("declared", (untried,), terms)
    return Exactness("verified", (f"a split micro-batch adds up, to {error:.0e} ({precision})",), terms)


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
    return (
        f"the loss ({term}) couples the samples of a batch: {sums[0]:.6g} for a batch, "
        f"{sums[1] + sums[2]:.6g} for its halves (negatives within the batch, a balance loss?)"
    )


def _training_reasons(
    loss: Callable[[Batch], float], module: nn.Module, parts: Sequence[Batch], tolerance: float
) -> Iterator[str]:
    """What training mode adds: statistics over the micro-batch, and random masks."""
    normalising = _names(module, nn.modules.batchnorm._BatchNorm)
    if normalising:
        yield (
            f"BatchNorm in train mode takes its statistics from each micro-batch ({_some(normalising)}): use GroupNorm "
            f"or LayerNorm, or freeze it by .eval() in the model's constructor"
        )
    torch.manual_seed(1)
    once = loss(parts[0])
    torch.manual_seed(2)
    if _differ(once, loss(parts[0]), tolerance):
        masking = _names(module, nn.modules.dropout._DropoutNd)
        where = f" ({_some(masking)})" if masking else ""
        yield f"dropout or the like draws other masks for other micro-batches{where}: same distribution, other numbers"
    elif not normalising and _differ(once, loss(parts[1]) + loss(parts[2]), tolerance):
        yield "in train mode, and only there, a batch's loss is not the sum over its halves: the model couples samples"


def _differ(a: float, b: float, tolerance: float) -> bool:
    return abs(a - b) > tolerance * max(abs(a), abs(b))


def _names(module: nn.Module, kind: type[nn.Module]) -> list[str]:
    """Modules of a kind that are at work in training: a frozen BatchNorm and a Dropout of 0 are not."""
    return [n for n, m in module.named_modules() if isinstance(m, kind) and m.training and getattr(m, "p", 1.0) > 0]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
