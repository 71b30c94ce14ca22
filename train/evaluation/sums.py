"""What an evaluation adds up, by the names of the metrics: over batches, then over the ranks."""

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
        # Stacked: two calls of item() would make the host wait twice.
        return torch.stack([self.sum, self.weight]).tolist()

    def value(self) -> float | None:
        """None where its weight is 0: unknown."""
        weight = self.weight.item()
        return self.sum.item() / weight if weight else None


Sums = dict[str, Any]
"""Mean or Moments of some of the samples, by name. A metric that is not there counts nothing."""


def join(sums: Sums, more: Mapping[str, Any]) -> None:
    """Add `more` to `sums`, in place. Names may differ, and come in any order."""
    for name, value in more.items():
        if name not in sums:
            sums[name] = value
            continue
        before = sums[name]
        if type(before) is not type(value):
            raise BadMetric(
                f"eval_sums: {name!r} is a (sum, weight) here and Moments there. Use one kind "
                "throughout"
            )
        sums[name] = before.joined(value)


def read_sums(metrics: Any, device: torch.device) -> Sums:
    """What eval_sums gave for a batch. Raises BadMetric, which names the metric."""
    if not isinstance(metrics, Mapping):
        raise BadMetric(f"eval_sums must return {{name: (sum, weight)}}, got {_kind(metrics)}")
    sums: Sums = {}
    for name, value in metrics.items():
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
        # No number at all: refused below, in the same sentence as a tensor of several.
        number = torch.empty(0)
    if number.numel() != 1 or is_complex:
        raise BadMetric(
            f"eval_sums: the {what} of {name!r} must be one real number for the whole batch, got "
            f"{_kind(value)}. Add it up over the samples: .sum()"
        )
    if number.device.type == "cpu" and device.type != "cpu":
        # Not copied: the host would wait, for a copy from memory that is not pinned, until the
        # device has computed all before it.
        return torch.full((), number.item(), dtype=torch.float64, device=device)
    return number.detach().reshape(()).to(device, torch.float64)


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}".replace("torch.", "")
    return f"{type(value).__name__} {value!r}"[:80]


def over_ranks(numbers_of_ranks: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """{metric: value} over all ranks, from the `numbers` of each, in the order of the ranks.

    Every rank computes the same, bit for bit. A metric that a rank lacks counts nothing there; one
    whose weight is 0 on all of them is absent.
    """
    sums: Sums = {}
    for numbers_of_rank in numbers_of_ranks:
        join(sums, {name: _read(numbers) for name, numbers in numbers_of_rank.items()})
    values = {}
    for name, total in sums.items():
        value = total.value()
        if value is not None:
            values[name] = value
    return values


def _read(numbers: Any) -> Mean | Moments:
    if isinstance(numbers[0], list):
        return Moments.read(numbers)
    return Mean(*torch.tensor(numbers, dtype=torch.float64))
