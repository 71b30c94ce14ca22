"""Ranges and combinations of values: from {key: value} to (key, what is wrong and what to type)."""

import difflib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from train.config.check_batch import BATCH_RULES
from train.config.check_data import DATA_RULES
from train.config.check_names import NAME_RULES
from train.config.check_wandb import WANDB_RULES
from train.config.merge import ALTERNATIVES
from train.config.problems import Finding, Values, show

PRECISIONS = {
    "float32": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float64": "fp64",
}
"""{long name: the short one that the config ends up with}."""

CHOICES: dict[str, tuple[str, ...]] = {
    "precision": ("fp32", "bf16", "fp16", "fp64", *PRECISIONS),
    "on_nonfinite": ("skip", "stop"),
    "batch.sync": ("step", "micro"),
    "batch.on_oom": ("shrink", "stop"),
    "batch.exact": ("warn", "required", "ignore"),
    "optimizer.lr_scaling": ("none", "linear", "sqrt", "sde", "halflife", "noise"),
    "optimizer.lr_on_schedule": ("rescale", "keep"),
    "schedule.name": ("constant", "linear", "cosine", "wsd"),
    "schedule.decay_shape": ("linear", "1-sqrt"),
    "wandb.mode": ("auto", "online", "offline", "disabled"),
    "runtime.reduction": ("auto", "explicit"),
}

TOKENS = (
    "batch.effective_tokens",
    "batch.schedule_tokens",
    "duration.tokens",
    "schedule.warmup_tokens",
    "evaluate.every_tokens",
)

_AT_LEAST_1: tuple[str, Callable[[Any], bool]] = ("1 or more", lambda value: value >= 1)
_AT_LEAST_0: tuple[str, Callable[[Any], bool]] = ("0 or more", lambda value: value >= 0)
_SHARE: tuple[str, Callable[[Any], bool]] = ("from 0 to 1", lambda value: 0 <= value <= 1)
_POSITIVE: tuple[str, Callable[[Any], bool]] = (
    "above 0 and finite",
    lambda value: 0 < value < math.inf,
)

RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "seed": ("from 0 to 2**63 - 1", lambda value: 0 <= value < 2**63),
    "max_nonfinite_steps": _AT_LEAST_1,
    "batch.effective": _AT_LEAST_1,
    "batch.effective_tokens": _AT_LEAST_1,
    "batch.accumulation_steps": _AT_LEAST_1,
    "batch.micro_tokens": _AT_LEAST_1,
    "batch.audit_every_steps": _AT_LEAST_0,
    "data.shuffle_buffer": _AT_LEAST_0,
    "data.max_length": _AT_LEAST_1,
    "data.workers": _AT_LEAST_0,
    "data.overfit": _AT_LEAST_1,
    "data.block_size": _AT_LEAST_1,
    "data.eval_fraction": ("from 0 to below 1", lambda value: 0 <= value < 1),
    "optimizer.lr": _POSITIVE,
    "optimizer.lr_reference_batch": _AT_LEAST_1,
    "optimizer.noise_scale": _POSITIVE,
    "optimizer.max_grad_norm": ("above 0", lambda value: value > 0),
    "schedule.warmup_steps": _AT_LEAST_0,
    "schedule.warmup_fraction": _SHARE,
    "schedule.warmup_samples": _AT_LEAST_0,
    "schedule.warmup_tokens": _AT_LEAST_0,
    "schedule.final_fraction": _SHARE,
    "schedule.decay_fraction": _SHARE,
    "duration.steps": _AT_LEAST_1,
    "duration.epochs": _POSITIVE,
    "duration.samples": _AT_LEAST_1,
    "duration.tokens": _AT_LEAST_1,
    "evaluate.every_steps": _AT_LEAST_1,
    "evaluate.every_samples": _AT_LEAST_1,
    "duration.hours": _POSITIVE,
    "checkpoint.every_steps": _AT_LEAST_1,
    "checkpoint.keep": _AT_LEAST_1,
    "evaluate.every_tokens": _AT_LEAST_1,
    "ema.decay": ("from 0 to below 1", lambda value: 0 <= value < 1),
    "log.every_steps": _AT_LEAST_1,
    "noise_scale.every_steps": _AT_LEAST_0,
    "memory.chunked_loss": _AT_LEAST_0,
    "memory.limit_gib": _POSITIVE,
    "runtime.timeout_seconds": _AT_LEAST_1,
}


def check(values: Values) -> list[Finding]:
    """Everything that is wrong with values of the right types."""
    rules = (
        _ranges,
        _choices,
        _half,
        _dtype,
        *BATCH_RULES,
        _alternatives,
        _duration,
        _tokens,
        _decay,
        _average,
        _scaling,
        _optimizer_arguments,
        _groups,
        _profile,
        _resume,
        _name,
        *DATA_RULES,
        *NAME_RULES,
        *WANDB_RULES,
    )
    return [finding for rule in rules for finding in rule(values)]


def _ranges(values: Values) -> Iterator[Finding]:
    for key, (words, holds) in RANGES.items():
        if values[key] is not None and not holds(values[key]):
            yield key, f"got {show(values[key])}; it must be {words}"


def _choices(values: Values) -> Iterator[Finding]:
    for key, choices in CHOICES.items():
        value = values[key]
        if value not in choices:
            near = difflib.get_close_matches(str(value).lower(), choices, n=1)
            did_you_mean = f". Did you mean {near[0]}?" if near else ""
            yield key, f"got {show(value)}; it takes one of {', '.join(choices)}{did_you_mean}"


def _half(values: Values) -> Iterator[Finding]:
    if _precision(values) == "fp16" and values["on_nonfinite"] == "stop":
        why = "precision=fp16 finds the scale of its loss by leaving out the steps that overflow"
        yield "on_nonfinite", f"got 'stop'; {why}. Write on_nonfinite=skip, or precision=bf16"


def _dtype(values: Values) -> Iterator[Finding]:
    dtype, precision = values["model.dtype"], _precision(values)
    if dtype is None:
        return
    if PRECISIONS.get(dtype, dtype) != "bf16":
        yield (
            "model.dtype",
            f"got {show(dtype)}; it takes bf16, or null: float32, and float64 under precision=fp64",
        )
    elif precision in ("fp16", "fp64"):
        yield (
            "model.dtype",
            f"got {dtype}; precision={precision} needs wider parameters. Leave it out, or "
            "precision=bf16",
        )


def _precision(values: Values) -> str:
    precision: str = values["precision"]
    return PRECISIONS.get(precision, precision)


def _alternatives(values: Values) -> Iterator[Finding]:
    for group in ALTERNATIVES:
        stated = [f"{key}={values[key]}" for key in group if values[key] is not None]
        if len(stated) > 1:
            yield (
                group[0].partition(".")[0],
                f"got {' and '.join(stated)}; they exclude each other. Keep one",
            )


def _duration(values: Values) -> Iterator[Finding]:
    keys = [key for key in values if key.startswith("duration.") and key != "duration.hours"]
    if all(values[key] is None for key in keys):
        yield (
            "duration",
            f"got nothing; a run needs an end. Add one of {', '.join(keys)}, such as "
            "duration.epochs=10",
        )


def _tokens(values: Values) -> Iterator[Finding]:
    """A sample has a known number of tokens only where it is a block."""
    for key in TOKENS:
        if values[key] is not None and values["data.block_size"] is None:
            yield (
                key,
                f"got {values[key]}; tokens are counted in blocks. Add data.block_size=..., tokens "
                "per sample",
            )


def _average(values: Values) -> Iterator[Finding]:
    if values["ema.decay"] is not None and values["model.dtype"] == "bf16":
        why = "in bf16 an average does not move: a step of 1 - decay is less than its rounding"
        yield (
            "ema.decay",
            f"got {show(values['ema.decay'])} beside model.dtype=bf16; {why}. Write precision=bf16",
        )


def _decay(values: Values) -> Iterator[Finding]:
    warmup, decay = values["schedule.warmup_fraction"] or 0, values["schedule.decay_fraction"]
    if values["schedule.name"] == "wsd" and warmup + decay > 1:
        why = f"with warmup_fraction={warmup} that is more than all steps"
        yield (
            "schedule.decay_fraction",
            f"got {decay}; {why}. Write schedule.decay_fraction={1 - warmup:.4g}",
        )


def _scaling(values: Values) -> Iterator[Finding]:
    if values["optimizer.lr_scaling"] != "none" and values["optimizer.lr_reference_batch"] is None:
        why = (
            f"lr_scaling={values['optimizer.lr_scaling']} starts from the batch that lr was tuned "
            "at"
        )
        yield (
            "optimizer.lr_reference_batch",
            f"got nothing; {why}. Add optimizer.lr_reference_batch=...",
        )
    if values["optimizer.lr_scaling"] == "noise" and values["optimizer.noise_scale"] is None:
        why = (
            "lr_scaling=noise goes by the noise scale, which runs measure as batch/noise_scale, "
            "in samples"
        )
        yield "optimizer.noise_scale", f"got nothing; {why}. Add optimizer.noise_scale=..."


def _optimizer_arguments(values: Values) -> Iterator[Finding]:
    if "lr" in values["optimizer.args"]:
        lr = values["optimizer.args"]["lr"]
        yield (
            "optimizer.args.lr",
            f"got {show(lr)}; the rate has a key of its own. Write optimizer.lr={lr}",
        )


def _groups(values: Values) -> Iterator[Finding]:
    for i, group in enumerate(values["optimizer.groups"]):
        if not group["match"]:
            why = (
                "a group is chosen by a pattern over the parameters' names. Add match: "
                "'embedding.*'"
            )
            yield "optimizer.groups", f"got no match in group {i}; {why}"
        if not 0 <= group["lr_multiplier"] < math.inf:
            yield (
                "optimizer.groups",
                f"got lr_multiplier {group['lr_multiplier']} in group {i}; it must be 0 or more",
            )


def _profile(values: Values) -> Iterator[Finding]:
    steps = values["profile.steps"]
    if steps and not (len(steps) == 2 and 1 <= steps[0] <= steps[1]):
        yield (
            "profile.steps",
            f"got {show(steps)}; it takes the first and the last step, such as [10, 12]",
        )


def _resume(values: Values) -> Iterator[Finding]:
    resume = values["checkpoint.resume"]
    if resume not in ("auto", "never") and not Path(resume).exists():
        near = difflib.get_close_matches(str(resume).lower(), ("auto", "never"), n=1)
        did_you_mean = f". Did you mean {near[0]}?" if near else ""
        takes = "auto, never, or the path of a run folder or a checkpoint"
        yield (
            "checkpoint.resume",
            f"got {show(resume)}, which is not there; it takes {takes}{did_you_mean}",
        )


def _name(values: Values) -> Iterator[Finding]:
    name = values["name"]
    if name is not None and (not name.strip(" .") or set(name) & set('/\\:*?"<>|')):
        yield (
            "name",
            f"got {show(name)}; it names a folder: letters, digits, - and _ are safe on every "
            "system",
        )
