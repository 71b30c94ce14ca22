"""Ranges and combinations of values: from {key: value} to (key, what is wrong and what to type).

The range of a key stands beside its field. Here are the rules about several keys together.
"""

import math
from collections.abc import Iterator
from pathlib import Path

from train.config.annotations import Choices, Range
from train.config.check_batch import BATCH_RULES
from train.config.check_data import DATA_RULES
from train.config.check_names import NAME_RULES
from train.config.check_wandb import WANDB_RULES
from train.config.keys import KEYS
from train.config.merge import ALTERNATIVES
from train.config.problems import Finding, Values, closest, show
from train.config.schema import PRECISIONS

TOKENS = (
    "batch.effective_tokens",
    "batch.schedule_tokens",
    "duration.tokens",
    "schedule.warmup_tokens",
    "evaluate.every_tokens",
)


def check(values: Values) -> list[Finding]:
    """Everything that is wrong with values of the right types."""
    # In the order in which the problems are printed.
    rules = (
        _ranges,
        _choices,
        _fp16,
        _dtype,
        *BATCH_RULES,
        _alternatives,
        _duration,
        _tokens,
        _decay,
        _ema,
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
    # One finding of a rule hides none of another: all are told at once.
    return [finding for rule in rules for finding in rule(values)]


def _ranges(values: Values) -> Iterator[Finding]:
    for name, key in KEYS.items():
        value = values[name]
        # Values are of the right type by now: convert has replaced the others by their defaults.
        if isinstance(key.values, Range) and value is not None and not key.values.contains(value):
            yield name, f"got {show(value)}; it must be {key.values.words}"


def _choices(values: Values) -> Iterator[Finding]:
    for name, key in KEYS.items():
        value = values[name]
        if isinstance(key.values, Choices) and value not in key.values.texts:
            choices = ", ".join(key.values.texts)
            hint = _did_you_mean(str(value), key.values.texts)
            yield name, f"got {show(value)}; it takes one of {choices}{hint}"


def _did_you_mean(text: str, choices: tuple[str, ...]) -> str:
    near = closest(text, choices)
    return f". Did you mean {near}?" if near else ""


def _fp16(values: Values) -> Iterator[Finding]:
    if _precision(values) == "fp16" and values["on_nonfinite"] == "stop":
        why = "precision=fp16 finds the scale of its loss by skipping the steps that overflow"
        yield "on_nonfinite", f"got 'stop'; {why}. Write on_nonfinite=skip, or precision=bf16"


def _dtype(values: Values) -> Iterator[Finding]:
    dtype = values["model.dtype"]
    precision = _precision(values)
    if dtype is None:
        return
    # Long names are still long here: load shortens them when all is checked.
    if PRECISIONS.get(dtype, dtype) != "bf16":
        takes = "it takes bf16, or null: float32, and float64 under precision=fp64"
        yield "model.dtype", f"got {show(dtype)}; {takes}"
    elif precision in ("fp16", "fp64"):
        why = f"precision={precision} needs wider parameters"
        yield "model.dtype", f"got {dtype}; {why}. Leave it out, or precision=bf16"


def _precision(values: Values) -> str:
    precision: str = values["precision"]
    return PRECISIONS.get(precision, precision)


def _alternatives(values: Values) -> Iterator[Finding]:
    # Layers cannot disagree here: merge drops what a later layer replaces. One layer may state two.
    for group in ALTERNATIVES:
        stated = [f"{key}={values[key]}" for key in group if values[key] is not None]
        if len(stated) > 1:
            section = group[0].partition(".")[0]
            yield section, f"got {' and '.join(stated)}; they exclude each other. Keep one"


def _duration(values: Values) -> Iterator[Finding]:
    # The hours only cut a run that another key ends.
    keys = [key for key in values if key.startswith("duration.") and key != "duration.hours"]
    if all(values[key] is None for key in keys):
        add = f"Add one of {', '.join(keys)}, such as duration.epochs=10"
        yield "duration", f"got nothing; a run needs an end. {add}"


def _tokens(values: Values) -> Iterator[Finding]:
    """A sample has a known number of tokens only where it is a block."""
    if values["data.block_size"] is not None:
        return
    why = "tokens are counted in blocks. Add data.block_size=..., tokens per sample"
    for key in TOKENS:
        if values[key] is not None:
            yield key, f"got {values[key]}; {why}"


def _ema(values: Values) -> Iterator[Finding]:
    decay = values["ema.decay"]
    if decay is not None and values["model.dtype"] == "bf16":
        why = "in bf16 an average does not move: a step of 1 - decay is less than its rounding"
        got = f"got {show(decay)} beside model.dtype=bf16"
        yield "ema.decay", f"{got}; {why}. Write precision=bf16"


def _decay(values: Values) -> Iterator[Finding]:
    warmup = values["schedule.warmup_fraction"] or 0
    decay = values["schedule.decay_fraction"]
    if values["schedule.name"] == "wsd" and warmup + decay > 1:
        why = f"with warmup_fraction={warmup} that is more than all steps"
        fix = f"Write schedule.decay_fraction={1 - warmup:.4g}"
        yield "schedule.decay_fraction", f"got {decay}; {why}. {fix}"


def _scaling(values: Values) -> Iterator[Finding]:
    rule = values["optimizer.lr_scaling"]
    if rule != "none" and values["optimizer.lr_reference_batch"] is None:
        why = f"lr_scaling={rule} starts from the batch that lr was tuned at"
        fix = "Add optimizer.lr_reference_batch=..."
        yield "optimizer.lr_reference_batch", f"got nothing; {why}. {fix}"
    if rule == "noise" and values["optimizer.noise_scale"] is None:
        why = (
            "lr_scaling=noise goes by the noise scale, which runs measure as batch/noise_scale, "
            "in samples"
        )
        yield "optimizer.noise_scale", f"got nothing; {why}. Add optimizer.noise_scale=..."


def _optimizer_arguments(values: Values) -> Iterator[Finding]:
    # The rate moves at every step. As an argument it would be a constant, and the stated one would
    # be ignored.
    if "lr" in values["optimizer.args"]:
        lr = values["optimizer.args"]["lr"]
        fix = f"the rate has its own key. Write optimizer.lr={lr}"
        yield "optimizer.args.lr", f"got {show(lr)}; {fix}"


def _groups(values: Values) -> Iterator[Finding]:
    for number, group in enumerate(values["optimizer.groups"]):
        # The default, an empty text, matches no name of a parameter.
        if not group["match"]:
            why = "a group is chosen by a pattern over the parameters' names"
            fix = "Add match: 'embedding.*'"
            yield "optimizer.groups", f"got no match in group {number}; {why}. {fix}"
        multiplier = group["lr_multiplier"]
        if not 0 <= multiplier < math.inf:
            got = f"got lr_multiplier {multiplier} in group {number}"
            yield "optimizer.groups", f"{got}; it must be 0 or more"


def _profile(values: Values) -> Iterator[Finding]:
    steps = values["profile.steps"]
    # Optimizer steps count from 1.
    if steps and not (len(steps) == 2 and 1 <= steps[0] <= steps[1]):
        takes = "it takes the first and the last step, such as [10, 12]"
        yield "profile.steps", f"got {show(steps)}; {takes}"


def _resume(values: Values) -> Iterator[Finding]:
    resume = values["checkpoint.resume"]
    words = ("auto", "never")
    # `~` is expanded by now (home.py).
    if resume not in words and not Path(resume).exists():
        takes = "auto, never, or the path of a run folder or a checkpoint"
        got = f"got {show(resume)}, which is not there"
        yield "checkpoint.resume", f"{got}; it takes {takes}{_did_you_mean(str(resume), words)}"


def _name(values: Values) -> Iterator[Finding]:
    name = values["name"]
    # Characters that Windows or a shell gives a meaning, too: a run folder is copied to other
    # systems.
    if name is not None and (not name.strip(" .") or set(name) & set('/\\:*?"<>|')):
        why = "it names a folder: letters, digits, - and _ are safe on every system"
        yield "name", f"got {show(name)}; {why}"
