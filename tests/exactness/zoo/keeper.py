"""What our trial says of each animal, in float32, beside its true error."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from tests.exactness.zoo.animals import Animal, data, made
from tests.exactness.zoo.exact import EXACT
from tests.exactness.zoo.inexact import INEXACT
from train.distributed.ranks import Ranks
from train.distributed.replicated import Replicated
from train.exactness.additivity import Exactness, check_additivity
from train.tasks import coefficients_of

ZOO = [*INEXACT, *EXACT]

TRIAL = 8


def tried(animal: Animal, dtype: torch.dtype = torch.float32) -> Exactness:
    """As before the first step of a run, on its first samples."""
    module, task = made(animal)
    return judged(module.to(dtype) if dtype != torch.float32 else module, task, dtype)


def judged(module: nn.Module, task: Any, dtype: torch.dtype = torch.float32) -> Exactness:
    module.train()
    batch = {name: column[:TRIAL] for name, column in data().items()}
    learner = SimpleNamespace(
        module=module,
        parallel=Replicated(module, Ranks()),
        task=task,
        device=torch.device("cpu"),
        dtype=dtype,
        parameters=[p for p in module.parameters() if p.requires_grad],
        coefficients=coefficients_of(task),
    )
    return check_additivity(learner, batch, "fp64" if dtype == torch.float64 else "fp32")
