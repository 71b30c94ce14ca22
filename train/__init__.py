"""Isobatch: say the batch you want to train with."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

LAYERS = (
    ("evaluate", "prepare", "verify", "compare", "sweep", "new"),
    ("standard", "accumulate"),
    ("main",),
    ("loop",),
    ("leaving",),
    ("run",),
    ("setting",),
    ("setup",),
    ("metrics",),
    ("memory",),
    ("exactness",),
    ("report",),
    ("gradients",),
    ("evaluation",),
    ("step",),
    ("plan",),
    ("models", "data", "tasks", "optim"),
    ("checkpoint",),
    ("distributed",),
    ("randomness",),
    ("comparison",),
    ("batch", "config"),
    ("parts", "metric_names"),
    ("errors",),
)
"""Modules and packages of this package: each imports only from layers below its own. A test walks the list."""


def load(run_folder: str | Path, name: str = "model") -> "nn.Module":
    """The trained model of a run folder, on the CPU, in evaluation mode; `ema`: with the average of its weights."""
    from train.models.weights import load_final  # here: `import train` alone stays free of torch

    return load_final(run_folder, name)
