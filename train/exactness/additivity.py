"""Is the gradient of a step that of the full batch? Measured on one micro-batch before the start.

Loss, weight and gradient of a batch must be the sums over its parts, however it is cut.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from train.batch.window import Batch
from train.data import Padding
from train.data.device_prefetch import to_device
from train.errors import UserError
from train.exactness.error_bounds import BOUNDS, ROUNDS, TOLERANCE, arithmetic, full_float32
from train.exactness.findings import Findings
from train.exactness.loss_check import check_loss
from train.exactness.padding import padding_reasons
from train.exactness.reference_gradient import halve_until_it_fits, widest_forward
from train.exactness.training_check import check_training
from train.exactness.trial import Trial
from train.installation import command
from train.models.preserve_state import preserve_state
from train.step import Learner
from train.tasks import Task, TaskError, by_term

HALF_PRECISION = ("float16", "bfloat16")


class NotExact(UserError):
    """batch.exact=required, and the run would not be exact."""


@dataclass(frozen=True)
class Exactness:
    """The verdict on a run before it starts."""

    exact: str
    """`verified`: checked, and it holds. `declared`: not checked, but declared. `false`."""
    reasons: tuple[str, ...]
    """For the verdict."""
    terms: tuple[str, ...]
    """Of the loss."""
    mistakes: tuple[str, ...] = ()
    """Those of the reasons that no task can have meant."""
    beyond_rounding: tuple[str, ...] = ()
    """Those of the reasons that no wider arithmetic would remove."""

    def lines(self, mode: str) -> list[str]:
        """For the screen; `mode` is batch.exact."""
        if mode == "ignore":
            return []
        if self.exact == "false":
            return [f"exact     no: {reason}" for reason in self.reasons]
        return [f"exact     {self.exact}: {'; '.join(self.reasons)}"]


@dataclass(frozen=True)
class _Measured:
    """What the checks gave, and how they were run."""

    findings: Findings
    terms: tuple[str, ...]
    plain_error: str
    """What the model raised without autocast; empty: it was checked without."""
    narrower_inside: str
    """The dtype that the model computes in, where it is narrower than that of the weights."""


def check_additivity(
    learner: Learner, batch: Batch, precision: str, padding: Padding | None = None
) -> Exactness:
    """Compare loss, weight and gradient of `batch` with the sums over its parts.

    `batch` is on the CPU, as a rank would be fed. With `padding`, the parts are cut as in training:
    each to its longest text. Fewer samples are checked where these do not fit in memory. Buffers,
    attributes and random number generators stay as they were. Raises TaskError where loss_sum and
    loss_weight do not fit together at all.
    """

    def check(samples: Batch) -> Exactness:
        measured = _measure(learner, samples, precision, padding)
        return _verdict(learner, measured, precision)

    return halve_until_it_fits(check, batch)


def _measure(learner: Learner, batch: Batch, precision: str, padding: Padding | None) -> _Measured:
    # Attributes are put back by the trial itself, at the end: preserve_state knows buffers, modes
    # and generators alone.
    with preserve_state(learner.module, learner.device) as training_modes, torch.no_grad():
        trial = Trial(learner, batch, padding)
        # Terms and their types first, in eval mode: no check below makes sense without them.
        learner.module.eval()
        terms = _checked_terms(learner, batch)
        try:
            # Without autocast: its rounding would hide what couples samples a little. With it only
            # where the model takes nothing else.
            with full_float32(), widest_forward(learner, batch) as plain_error:
                tolerance = TOLERANCE[_checked_in(learner, precision, plain_error)]
                findings = _check_without_training(trial, terms, tolerance)
                training_modes()
                # A loss that does not add up in eval mode is reason enough: training mode would
                # only repeat it.
                if not findings.is_inexact:
                    findings = findings.joined(_check_in_training(trial, tolerance))
        finally:
            trial.start.restore()
    return _Measured(
        findings=findings,
        terms=terms,
        plain_error=plain_error,
        narrower_inside=trial.narrower_inside,
    )


def _checked_in(learner: Learner, precision: str, plain_error: str) -> str:
    """The arithmetic of the checks: a key of TOLERANCE."""
    # Tried under autocast, the model rounds as autocast does: its tolerance is the one that holds.
    checked_in = arithmetic(learner, precision) if plain_error else _widest_arithmetic(learner)
    # full_float32 switches TF32 off.
    return "fp32" if checked_in == "tf32" else checked_in


def _widest_arithmetic(learner: Learner) -> str:
    """That of the parameters, without autocast."""
    return arithmetic(learner, "fp64" if learner.dtype == torch.float64 else "fp32")


def _check_without_training(trial: Trial, terms: Sequence[str], tolerance: float) -> Findings:
    """In eval mode: the loss without all that is random and without statistics of a batch."""
    learner = trial.learner
    learner.module.eval()
    findings = Findings()
    if trial.padding:
        findings = findings.plus(
            reasons=padding_reasons(learner, trial.full_batch, trial.padding, tolerance)
        )
    # Believed without a trial, which sees no coupling below 1e-5 of the gradient.
    if getattr(learner.task, "couples_samples", False):
        findings = findings.plus(
            reasons=[
                f"{type(learner.task).__name__} says of its loss that it couples the samples of a "
                "batch (couples_samples)"
            ]
        )
    return check_loss(trial, terms, tolerance, findings)


def _check_in_training(trial: Trial, tolerance: float) -> Findings:
    findings = check_training(trial, tolerance)
    if trial.samples == 1:
        findings = findings.plus(unchecked=["one sample cannot be split"])
    return findings


def _verdict(learner: Learner, measured: _Measured, precision: str) -> Exactness:
    findings = measured.findings
    terms = measured.terms
    # In this order: what was seen to be wrong, what could not be checked, what holds.
    rounding = _rounding_reasons(learner, measured, precision)
    # What the model runs in alone, half precision, is no finding: it is declared below.
    if findings.is_inexact or (rounding and not measured.plain_error):
        beyond_rounding = _without_repeats([*findings.mistakes, *findings.reasons])
        return Exactness(
            exact="false",
            reasons=(*beyond_rounding, *rounding),
            terms=terms,
            mistakes=findings.mistakes,
            beyond_rounding=beyond_rounding,
        )
    if measured.plain_error:
        only = (
            f"the model runs in {arithmetic(learner, precision)} only ({measured.plain_error}): "
            f"tried in that alone, its parts add up to {findings.error:.0e}"
        )
        return Exactness("declared", (only, *rounding), terms)
    if findings.unchecked:
        return Exactness("declared", _without_repeats(findings.unchecked), terms)
    checked_in = _widest_arithmetic(learner)
    # Named in the verdict: "fp32" alone would claim more digits than the model computes with.
    if measured.narrower_inside:
        checked_in = f"{checked_in}, {measured.narrower_inside} inside"
    reason = f"a split micro-batch adds up, to {findings.error:.0e} ({checked_in})"
    return Exactness("verified", (reason,), terms)


def _rounding_reasons(learner: Learner, measured: _Measured, precision: str) -> list[str]:
    """Why the gradient depends on the cut even where all adds up in wider arithmetic."""
    trained_in = arithmetic(learner, precision)
    # The trial runs without autocast where it can, and does not show this: it follows from the
    # run's precision.
    if trained_in in ROUNDS:
        return [
            f"{ROUNDS[trained_in]}: within {BOUNDS[trained_in]:.0e} of the big batch's gradient "
            f"({command('verify').removeprefix('python ')} measures)"
        ]
    if measured.narrower_inside in HALF_PRECISION:
        return [
            f"the model computes in {measured.narrower_inside} inside, which rounds each "
            f"micro-batch: its parts add up to {measured.findings.error:.0e}"
        ]
    return []


def _without_repeats(texts: Sequence[str]) -> tuple[str, ...]:
    """Several cuts find the same."""
    return tuple(dict.fromkeys(texts))


def _checked_terms(learner: Learner, batch: Batch) -> tuple[str, ...]:
    """The terms of the loss. Raises TaskError where loss_weight and loss_sum do not fit."""
    task = learner.task
    name = type(task).__name__
    # Weights of the batch on the CPU, as the loop counts them before anything is sent to a device.
    weights = by_term(task.loss_weight(batch))
    on_device = to_device(batch, learner.device, learner.dtype)
    sums = by_term(task.loss_sum(learner.module, on_device))
    if weights.keys() != sums.keys():
        raise TaskError(
            f"{name}: loss_weight has the terms {', '.join(weights)}, loss_sum {', '.join(sums)}: "
            "they must be the same"
        )
    _check_coefficients(task, list(weights))
    for term, value in sums.items():
        if not _is_loss(value):
            raise TaskError(
                f"{name}.loss_sum ({term}) must be a 0-dim tensor of float32 or float64: got "
                f"{_kind(value)}"
            )
    return tuple(weights)


def _is_loss(value: Any) -> bool:
    if not isinstance(value, Tensor):
        return False
    return value.dim() == 0 and value.dtype in (torch.float32, torch.float64)


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype}, shape {tuple(value.shape)}"
    return type(value).__name__


def _check_coefficients(task: Task, terms: Sequence[str]) -> None:
    """A coefficient of a term that does not exist would leave the real one at 1."""
    for term in getattr(task, "coefficients", {}):
        if term not in terms:
            nearest = difflib.get_close_matches(str(term), terms, n=1, cutoff=0.4)
            meant = f"Did you mean {nearest[0]!r}? " if nearest else ""
            raise TaskError(
                f"{type(task).__name__}.coefficients names the term {term!r}, but the loss has the "
                f"terms {', '.join(terms)}. {meant}Change coefficients, or the names in loss_sum "
                "and loss_weight"
            )
