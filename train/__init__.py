"""Isobatch: say the batch you want to train with."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

LAYERS = (
    ("cli", "templates"),
    (
        "evaluate",
        "merge",
        "prepare",
        "verify",
        "compare",
        "sweep",
        "new",
        "launch",
        "doctor",
        "trace",
    ),
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
    ("randomness", "chunked_loss"),
    ("comparison",),
    ("batch", "config"),
    ("parts", "metric_names", "launching", "permutation"),
    ("disk",),
    ("errors",),
    ("terminal", "output", "installation"),
    ("redaction",),
)
"""Modules and packages of this package: each imports only from layers below its own. A test walks
the list.
"""


def load(run_folder: str | Path, name: str = "model", trust: bool = False) -> "nn.Module":
    """The trained model of a run folder, on the CPU, in evaluation mode; `ema`: with the average of
    its weights.

    Its config names code. What is neither of this package, nor of my/, nor a module of an installed
    library is only called with `trust`: for folders of your own.
    """
    from train.models.weights import load_final  # here: `import train` alone stays free of torch

    return load_final(run_folder, name, trust)
