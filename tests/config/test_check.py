"""Ranges and combinations: each rule refuses what it should, and says what to type."""

import math
from typing import Any

import pytest

from train.config.annotations import Range
from train.config.check import check
from train.config.keys import DEFAULTS, KEYS

GOOD: dict[str, Any] = {**DEFAULTS, "batch.effective": 100, "duration.epochs": 20.0}
BY_LENGTH: dict[str, Any] = {"batch.micro_tokens": 640, "data.max_length": 80}


def test_a_good_config_has_no_problem() -> None:
    assert check(GOOD) == []
    assert check({**GOOD, **BY_LENGTH}) == []


def test_each_default_is_in_its_range() -> None:
    """The ranges and choices that stand beside the fields."""
    ranges = {name: key.values for name, key in KEYS.items() if isinstance(key.values, Range)}

    assert len(ranges) > 30
    for name, each in ranges.items():
        assert DEFAULTS[name] is None or each.contains(DEFAULTS[name]), name


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"seed": -1}, "seed", "got -1; it must be from 0 to 2**63 - 1"),
        ({"seed": 2**63}, "seed", "from 0 to 2**63 - 1"),
        ({"batch.effective": 0}, "batch.effective", "got 0; it must be 1 or more"),
        ({"batch.accumulation_steps": 0}, "batch.accumulation_steps", "1 or more"),
        ({"batch.micro": 0}, "batch.micro", "a list of them, one a rank, all or auto"),
        ({"batch.micro": "most"}, "batch.micro", "got 'most'; it takes a whole number"),
        ({"batch.micro": "16"}, "batch.micro", "Write 16 without quotes"),
        (
            {"batch.effective": None},
            "batch",
            "got nothing; no effective batch follows from it. Add batch.effective=",
        ),
        ({"batch.effective": None, "batch.micro": 8}, "batch", "got batch.micro=8 alone"),
        ({"batch.effective": None, "batch.micro": 8}, "batch", "or batch.accumulation_steps="),
        (
            {"batch.effective": None, "batch.accumulation_steps": 4},
            "batch",
            "got batch.accumulation_steps=4 alone",
        ),
        ({"batch.effective": None, "batch.accumulation_steps": 4}, "batch", "or batch.micro="),
        (
            {**BY_LENGTH, "batch.micro": 8},
            "batch",
            "got batch.micro_tokens=640 and batch.micro=8; they exclude",
        ),
        (
            {**BY_LENGTH, "batch.micro": 8, "batch.effective": None},
            "batch",
            "and batch.micro=8; they exclude",
        ),
        (
            {**BY_LENGTH, "batch.accumulation_steps": 2},
            "batch",
            "and batch.accumulation_steps=2; they exclude",
        ),
        (
            {**BY_LENGTH, "batch.micro_tokens": 0},
            "batch.micro_tokens",
            "got 0; it must be 1 or more",
        ),
        (
            {**BY_LENGTH, "batch.micro_tokens": 79},
            "batch.micro_tokens",
            "Write batch.micro_tokens=80 or more",
        ),
        ({**BY_LENGTH, "data.max_length": None}, "batch.micro_tokens", "Add data.max_length="),
        (
            {**BY_LENGTH, "data.streaming": True},
            "batch.micro_tokens",
            "write batch.micro=8, or data.streaming=false",
        ),
        (
            {**BY_LENGTH, "data.transform": "a.b"},
            "batch.micro_tokens",
            "may change the length of a text",
        ),
        (
            {**BY_LENGTH, "data.eval_transform": "a.b"},
            "batch.micro_tokens",
            "may change the length of a text",
        ),
        (
            {**BY_LENGTH, "data.max_length": None, "data.block_size": 64},
            "batch.micro_tokens",
            "blocks are all of data.block_size=64 tokens. Leave it out, and write batch.micro=10",
        ),
        (
            {"duration.epochs": None},
            "duration",
            "Add one of duration.steps, duration.epochs, duration.samples",
        ),
        (
            {"duration.steps": 5},
            "duration",
            "got duration.steps=5 and duration.epochs=20.0; they exclude each other",
        ),
        ({"duration.epochs": 0.0}, "duration.epochs", "above 0"),
        ({"duration.epochs": math.inf}, "duration.epochs", "finite"),
        ({"duration.epochs": None, "duration.steps": 0}, "duration.steps", "1 or more"),
        ({"schedule.warmup_steps": 1, "schedule.warmup_samples": 2}, "schedule", "Keep one"),
        ({"evaluate.every_steps": 1, "evaluate.every_samples": 2}, "evaluate", "Keep one"),
        (
            {"schedule.warmup_fraction": 1.1},
            "schedule.warmup_fraction",
            "got 1.1; it must be from 0 to 1",
        ),
        ({"schedule.warmup_fraction": math.nan}, "schedule.warmup_fraction", "got nan"),
        ({"schedule.warmup_steps": -1}, "schedule.warmup_steps", "0 or more"),
        ({"schedule.final_fraction": -0.1}, "schedule.final_fraction", "from 0 to 1"),
        (
            {"schedule.name": "cosin"},
            "schedule.name",
            "got 'cosin'; it takes one of constant, linear, cosine, wsd. Did",
        ),
        (
            {"data.eval_fraction": 1.0},
            "data.eval_fraction",
            "got 1.0; it must be from 0 to below 1",
        ),
        ({"optimizer.lr": 0.0}, "optimizer.lr", "got 0.0; it must be above 0 and finite"),
        ({"optimizer.lr": math.nan}, "optimizer.lr", "got nan"),
        ({"optimizer.max_grad_norm": 0.0}, "optimizer.max_grad_norm", "above 0"),
        (
            {"optimizer.lr_scaling": "sq", "optimizer.lr_reference_batch": 8},
            "optimizer.lr_scaling",
            "none, linear, sqrt, sde, halflife",
        ),
        (
            {"optimizer.lr_scaling": "sqrt"},
            "optimizer.lr_reference_batch",
            "Add optimizer.lr_reference_batch=",
        ),
        ({"optimizer.args": {"lr": 0.1}}, "optimizer.args.lr", "Write optimizer.lr=0.1"),
        ({"precision": "fp8"}, "precision", "got 'fp8'; it takes one of fp32, bf16, fp16, fp64"),
        (
            {"precision": "half", "on_nonfinite": "stop"},
            "on_nonfinite",
            "Write on_nonfinite=skip, or precision=bf16",
        ),
        ({"model.dtype": "fp16"}, "model.dtype", "got 'fp16'; it takes bf16, or null"),
        ({"model.dtype": "bf16", "ema.decay": 0.999}, "ema.decay", "an average does not move"),
        (
            {"model.dtype": "bf16", "precision": "fp64"},
            "model.dtype",
            "precision=fp64 needs wider parameters",
        ),
        (
            {"model.dtype": "bfloat16", "precision": "fp16"},
            "model.dtype",
            "precision=fp16 needs wider parameters",
        ),
        ({"precision": "bf61"}, "precision", "Did you mean bf16?"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite", "one of skip, stop"),
        ({"max_nonfinite_steps": 0}, "max_nonfinite_steps", "1 or more"),
        ({"evaluate.every_steps": 0}, "evaluate.every_steps", "1 or more"),
        ({"log.every_steps": 0}, "log.every_steps", "1 or more"),
        ({"runtime.timeout_seconds": 0}, "runtime.timeout_seconds", "1 or more"),
        ({"data.overfit": 0}, "data.overfit", "1 or more"),
        (
            {"checkpoint.resume": "nevr"},
            "checkpoint.resume",
            "a run folder or a checkpoint. Did you mean never?",
        ),
        ({"wandb.mode": "on"}, "wandb.mode", "one of auto, online, offline, disabled"),
        (
            {"profile.steps": [3, 2]},
            "profile.steps",
            "got [3, 2]; it takes the first and the last step",
        ),
        ({"profile.steps": [3]}, "profile.steps", "got [3]"),
        ({"name": "a/b"}, "name", "got 'a/b'; it names a folder"),
        ({"name": ".."}, "name", "it names a folder"),
    ],
)
def test_a_wrong_value_is_refused(changes: dict[str, Any], key: str, message: str) -> None:
    findings = check({**GOOD, **changes})
    assert [found for found, _ in findings] == [key]
    assert message in findings[0][1]


def test_auto_alone_is_not_sent_to_what_it_cannot_be_beside() -> None:
    ((key, message),) = check({**GOOD, "batch.effective": None, "batch.micro": "auto"})

    assert key == "batch"
    assert message.endswith("Add batch.effective=..., the samples per step over all ranks")


@pytest.mark.parametrize(
    "changes",
    [
        {"batch.micro": 16},
        {"batch.accumulation_steps": 4},
        {"batch.micro": 16, "batch.accumulation_steps": 4},
        {"batch.effective": None, "batch.micro": 16, "batch.accumulation_steps": 4},
        {"duration.epochs": 0.5},
        {"profile.steps": [2, 2]},
        {"seed": 2**63 - 1},
        {"precision": "bfloat16"},
        {"precision": "float16"},
        {"model.dtype": "bfloat16", "precision": "bf16"},
        {"optimizer.lr_scaling": "sqrt", "optimizer.lr_reference_batch": 32},
        {"schedule.warmup_steps": 0},
        {"data.eval_fraction": 0.0},
    ],
)
def test_the_edges_of_what_is_right_pass(changes: dict[str, Any]) -> None:
    assert check({**GOOD, **changes}) == []


def test_all_findings_come_at_once() -> None:
    findings = check({**GOOD, "seed": -1, "precision": "fp8", "batch.effective": 0, "name": "a:b"})
    assert {key for key, _ in findings} == {"seed", "precision", "batch.effective", "name"}
