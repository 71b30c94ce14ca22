"""What autograd holds on a CPU, against counts by hand and against the graph itself."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from tests.helpers import argv, record, rows
from train import metric_names as names
from train.memory.activations import SavedBytes, can_be_counted
from train.memory.peaks import GIB
from train.models.gpt import GPT


def run(arguments: list[str]) -> None:
    record(arguments)


def of_samples(samples: int) -> int:
    """Of tests.helpers.CONFIG in float32: the output of 8 ReLUs, 3 log-probabilities, and the
    weight of the sum.
    """
    return samples * (8 + 3) * 4 + 4


@pytest.mark.parametrize(
    ("world_size", "micro", "largest"), [(1, "all", 8), (1, "3", 3), (2, "all", 4), (2, "3", 2)]
)
def test_a_small_network_by_hand(
    run_ranks: Any, tmp_path: Path, world_size: int, micro: str, largest: int
) -> None:
    """Steps of 8 samples: 3 + 3 + 2 of them at once, or 4 on each rank and there 2 + 2."""
    more = [f"batch.micro={micro}", "duration.steps=5", "precision=fp32", "log.every_steps=2"]

    run_ranks(world_size, run, argv(tmp_path, *more))

    found = [row[names.ACTIVATIONS] * GIB for row in rows(tmp_path)]
    assert found[:2] == [of_samples(largest)] * 2  # a ragged step is the last


def saved_in_graph(loss: Tensor) -> dict[int, Tensor]:
    """By address of their storage: what the nodes of a graph say themselves that they have saved."""
    found: dict[int, Tensor] = {}
    seen, to_visit = set(), [loss.grad_fn]
    while to_visit:
        node = to_visit.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        to_visit += [following for following, _ in node.next_functions]
        for name in dir(node):
            if name.startswith("_saved_"):
                for tensor in tensors_in(getattr(node, name)):
                    found[tensor.untyped_storage().data_ptr()] = tensor
    return found


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for each in value:
            yield from tensors_in(each)


@pytest.mark.parametrize("samples", [1, 3])
def test_a_transformer_by_its_graph(samples: int) -> None:
    model = GPT(vocabulary=50, layers=2, heads=2, width=16)
    tokens = torch.randint(50, (samples, 9))
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    loss = cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    wanted = saved_in_graph(loss)
    expected = sum(
        tensor.untyped_storage().nbytes() for at, tensor in wanted.items() if at not in weights
    )
    with SavedBytes(model) as saved:
        cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())

    assert saved.saw_all
    assert saved.peak == expected


def test_what_backward_has_freed_no_longer_counts() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid())
    inputs = torch.ones(3, 4)

    with SavedBytes(model) as saved:
        saved.exclude([inputs])
        for _ in range(3):
            model(inputs).sum().backward()
        one_after_the_other = saved.peak
        both = model(inputs).sum() + model(inputs).sum()
        both.backward()

    assert one_after_the_other == 3 * 4 * 4
    assert saved.peak == 2 * 3 * 4 * 4


def test_the_gradient_is_the_same_to_the_bit() -> None:
    model = GPT(vocabulary=50, layers=1, heads=2, width=16)
    tokens = torch.randint(50, (2, 9))

    def gradient() -> list[Tensor]:
        loss = cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        return list(torch.autograd.grad(loss, list(model.parameters())))

    plain = gradient()
    with SavedBytes(model):
        counted = gradient()

    assert all(torch.equal(a, b) for a, b in zip(plain, counted, strict=True))


def test_what_is_modified_after_it_was_saved_is_an_error_as_without() -> None:
    """Under hooks autograd does not look itself, and would compute a wrong gradient."""
    weight = torch.ones(3, requires_grad=True)

    def gradient() -> None:
        saved = weight.exp()
        saved.add_(1)
        saved.sum().backward()

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient()
    with (
        SavedBytes(nn.Linear(1, 1)),
        pytest.raises(RuntimeError, match="modified by an inplace operation"),
    ):
        gradient()


class Checkpointed(nn.Sequential):
    def forward(self, inputs: Tensor) -> Any:
        return checkpoint(super().forward, inputs, use_reentrant=False)


class Sparse(nn.Module):
    """Saves a sparse matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.sparse.mm(inputs.to_sparse(), self.weight)


class ByFunctions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, inputs: Tensor) -> Any:
        return torch.func.grad(lambda x: (x * self.weight).square().sum())(inputs) * self.weight


def compiled() -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 2))
    module.compile(backend="eager")
    return module


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU()), True),
        (lambda: nn.Sequential(nn.Linear(2, 2), Checkpointed(nn.Linear(2, 2), nn.ReLU())), False),
        (Sparse, False),
        (ByFunctions, False),
        (compiled, False),
    ],
    ids=["plain", "checkpointed", "sparse", "torch.func", "compiled"],
)
def test_what_cannot_be_counted_is_found_before(
    make: Callable[[], nn.Module], expected: bool
) -> None:
    module = make()
    learner: Any = SimpleNamespace(
        module=module,
        device=torch.device("cpu"),
        dtype=torch.float32,
        parameters=list(module.parameters()),
        task=SimpleNamespace(loss_sum=lambda model, batch: model(batch["inputs"]).sum()),
    )

    assert can_be_counted(learner, {"inputs": torch.ones(2, 2)}) == expected
