"""What our trial says of each animal, in float32, beside its true error."""

from dataclasses import dataclass
from types import SimpleNamespace

import torch

from tests.exactness.zoo.animals import Animal, data, made
from tests.exactness.zoo.exact import EXACT
from tests.exactness.zoo.inexact import INEXACT
from train.exactness.additivity import Exactness, judge
from train.tasks import coefficients_of

ZOO = [*INEXACT, *EXACT]

TRIAL = 8


@dataclass(frozen=True)
class Verdict:
    animal: Animal
    found: Exactness


def tried(animal: Animal, dtype: torch.dtype = torch.float32) -> Exactness:
    """As before the first step of a run, on its first samples."""
    module, task = made(animal)
    module.train().to(dtype) if dtype != torch.float32 else module.train()
    batch = {name: column[:TRIAL] for name, column in data().items()}
    learner = SimpleNamespace(
        module=module,
        task=task,
        device=torch.device("cpu"),
        dtype=dtype,
        parameters=[p for p in module.parameters() if p.requires_grad],
        coefficients=coefficients_of(task),
    )
    return judge(learner, batch, "fp64" if dtype == torch.float64 else "fp32")
