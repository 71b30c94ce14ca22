"""How large a difference the arithmetic itself explains, for each precision."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from train.step import Learner

TOLERANCE = {
    "fp64": 1e-11,
    "fp32": 1e-5,
    "tf32": 1e-2,
    "fp16": 1e-2,
    "bf16": 5e-2,
    "bf16 parameters": 5e-2,
}
"""Largest relative difference between a batch and the sum over its parts that rounding explains."""

# tf32 and fp16 keep three bits more than bf16.
BOUNDS = {
    "fp64": 1e-12,
    "fp32": 2e-6,
    "tf32": 2.5e-3,
    "fp16": 2.5e-3,
    "bf16": 2e-2,
    "bf16 parameters": 2e-2,
}
"""Largest relative error of a gradient that rounding explains; bf16 and fp16: under autocast."""

ROUNDS = {
    "tf32": "runtime.tf32 rounds each micro-batch",
    "fp16": "fp16 rounds each micro-batch",
    "bf16": "bf16 rounds each micro-batch",
    "bf16 parameters": (
        "model.dtype=bf16 rounds the gradient of each micro-batch, though their sum is kept in "
        "float32"
    ),
}
"""Arithmetic too coarse to call a gradient exact: it depends visibly on how a batch is split."""


def arithmetic(learner: Learner, precision: str) -> str:
    """A key of the tables above: the precision, or what is coarser than it says."""
    if learner.dtype == torch.bfloat16:
        return "bf16 parameters"
    # Asked of torch, not of the config: the user's code may have set it.
    may_use_tf32 = torch.get_float32_matmul_precision() != "highest"
    if precision == "fp32" and learner.device.type == "cuda" and may_use_tf32:
        return "tf32"
    return precision


@contextmanager
def full_float32() -> Iterator[None]:
    """No TensorFloat-32 inside: it rounds as much as bf16, and hides what couples samples."""
    matmul_precision = torch.get_float32_matmul_precision()
    # A separate switch, on by default: convolutions on a GPU use TF32 unless it is turned off.
    convolutions_use_tf32 = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul_precision)
        torch.backends.cudnn.allow_tf32 = convolutions_use_tf32
