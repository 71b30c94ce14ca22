"""The trial before the first step against a zoo: what is inexact is found, what is exact is not
flagged.
"""

import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.exactness.zoo.animals import Animal, Labels, layers, made, true_error
from tests.exactness.zoo.exact import EXACT
from tests.exactness.zoo.inexact import INEXACT
from tests.exactness.zoo.keeper import judged, tried

DECLARED = ("draws that say that they are invariant", "an average only a log reads")


def name(animal: Animal) -> str:
    return animal.name


@pytest.mark.parametrize("animal", INEXACT, ids=name)
def test_what_is_inexact_is_found(animal: Animal) -> None:
    assert true_error(animal, draws=10 if "0.02" in animal.name else 1) > 1e-5

    assert tried(animal).exact == "false"


# of reentrant checkpointing in eval mode
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("animal", EXACT, ids=name)
def test_what_is_exact_is_not_flagged(animal: Animal) -> None:
    assert true_error(animal) < 2e-7

    exactness = tried(animal)

    assert exactness.exact == ("declared" if animal.name in DECLARED else "verified"), (
        exactness.reasons
    )


class Keeps(nn.Module):
    """Leaves something behind in every place that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filled", torch.zeros(2))
        self.register_buffer("replaced", torch.zeros(2))
        self.calls, self.past, self.cache = 0, [1.0], {"tensor": torch.zeros(2)}
        self.own = np.random.default_rng(0)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        self.filled += 1
        self.replaced = self.replaced + x.detach().mean()
        self.calls += 1
        self.past.append(2.0)
        self.cache["tensor"] += 1
        self.cache[f"new {self.calls}"] = 1
        self.late = self.calls
        return self.drop(x) * (
            1 + 0.01 * self.own.random() + 0.01 * np.random.rand() + 0.01 * random.random()
        )


def test_the_trial_leaves_no_trace() -> None:
    """Neither in buffers, attributes, generators and gradients, nor in the task."""
    animal = Animal(name="keeps", exact=False, model=lambda: layers(Keeps()), task=Labels)
    module, task = made(animal)
    task.seen = []
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    inner = module[1]
    buffers, weights = (
        dict(inner.named_buffers()),
        [p.detach().clone() for p in module.parameters()],
    )
    before = copy.deepcopy(
        {name: value for name, value in vars(inner).items() if name not in ("_buffers", "own")}
    )
    at = (
        inner.own.bit_generator.state,
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state()[1].copy(),
    )

    assert judged(module, task).exact == "false"

    assert all(dict(inner.named_buffers())[name] is buffer for name, buffer in buffers.items())
    assert not any(buffer.any() for buffer in buffers.values())
    after = {name: value for name, value in vars(inner).items() if name not in ("_buffers", "own")}
    assert after.keys() == before.keys()
    assert (after["calls"], after["past"], list(after["cache"])) == (0, [1.0], ["tensor"])
    assert not after["cache"]["tensor"].any()
    assert all(map(torch.equal, weights, module.parameters()))
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in module.parameters())
    assert inner.own.bit_generator.state == at[0]
    assert torch.equal(torch.get_rng_state(), at[1])
    assert random.getstate() == at[2]
    assert np.array_equal(np.random.get_state()[1], at[3])
    assert all(part.training for part in module.modules())
