"""What an evaluation adds up, by the names of the metrics: over batches on the device, then over
the ranks.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from train.errors import UserError
from train.tasks.moments import Moments

SAMPLES = "samples"  # how many there are: ours, beside the metrics of the task


class BadMetric(UserError):
    """eval_sums gives something that is no metric."""


@dataclass(frozen=True)
class Mean:
    """sum / weight: 0-dim, float64."""

    sum: Tensor
    weight: Tensor

    def joined(self, other: "Mean") -> "Mean":
        return Mean(self.sum + other.sum, self.weight + other.weight)

    def numbers(self) -> list[float]:
        return torch.stack([self.sum, self.weight]).tolist()

    def value(self) -> float | None:
        """None: its weight is 0, so nobody knows it."""
        weight = self.weight.item()
        return self.sum.item() / weight if weight else None


Sums = dict[str, Any]
"""Mean or Moments of some of the samples, by name. A metric that is not there counts nothing."""


def join(sums: Sums, more: Mapping[str, Any]) -> None:
    """Add `more` to `sums`. Which names stand where, and in which order, does not matter."""
    for name, value in more.items():
        before = sums.get(name, value)
        if before.__class__ is not value.__class__:
            raise BadMetric(
                f"eval_sums: {name!r} is a (sum, weight) here and Moments there. Use one kind "
                "throughout"
            )
        sums[name] = before.joined(value) if name in sums else value


def read_sums(found: Any, device: torch.device) -> Sums:
    """What eval_sums gave for a batch. Raises BadMetric, which names the metric."""
    if not isinstance(found, Mapping):
        raise BadMetric(f"eval_sums must return {{name: (sum, weight)}}, got {_kind(found)}")
    sums: Sums = {}
    for name, value in found.items():
        if not isinstance(name, str) or name == SAMPLES:
            raise BadMetric(f"eval_sums: {name!r} cannot be the name of a metric. Use another text")
        sums[name] = value if isinstance(value, Moments) else _mean(name, value, device)
    return sums


def _mean(name: str, pair: Any, device: torch.device) -> Mean:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise BadMetric(f"eval_sums: {name!r} must be a pair (sum, weight), got {_kind(pair)}")
    return Mean(_number(name, "sum", pair[0], device), _number(name, "weight", pair[1], device))


def _number(name: str, what: str, value: Any, device: torch.device) -> Tensor:
    is_complex = isinstance(value, complex) or (isinstance(value, Tensor) and value.is_complex())
    try:
        number = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        number = torch.empty(0)
    if number.numel() != 1 or is_complex:
        raise BadMetric(
            f"eval_sums: the {what} of {name!r} must be one real number for the whole batch, got "
            f"{_kind(value)}. Add it up over the samples: .sum()"
        )
    if number.device.type == "cpu" and device.type != "cpu":
        # Not copied: for a copy from memory that is not pinned the host waits until all before it
        # is computed.
        return torch.full((), number.item(), dtype=torch.float64, device=device)
    return number.detach().reshape(()).to(device, torch.float64)


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}".replace("torch.", "")
    return f"{type(value).__name__} {value!r}"[:80]


def over_ranks(of_ranks: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """{metric: value} over all ranks, from the `numbers` of each: joined by name, in the order of
    the ranks.

    Every rank computes the same, bit for bit. A metric that a rank lacks counts nothing there; one
    that nobody knows is left out.
    """
    sums: Sums = {}
    for of_rank in of_ranks:
        join(sums, {name: _read(numbers) for name, numbers in of_rank.items()})
    values = {name: total.value() for name, total in sums.items()}
    return {name: value for name, value in values.items() if value is not None}


def _read(numbers: Any) -> Mean | Moments:
    if isinstance(numbers[0], list):
        return Moments.read(numbers)
    return Mean(*torch.tensor(numbers, dtype=torch.float64))
