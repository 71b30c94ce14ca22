"""What enters a model, scaled: (x - mean) / deviation (data.normalize, and mean and std of
data.image).

In training, evaluation, streams, copies and train.load alike. The data stays as it is, 8-bit images
as they are stored, and a task sees it as it is. The numbers lie beside the weights, as
inputs.safetensors, and in each checkpoint.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from train.models import ModelError

FILE = "inputs.safetensors"
STATE = "scaling"
"""The name of the numbers in a checkpoint."""


class Scaling:
    """A hook before the forward of a model: scales its first argument (samples, ...),
    floating-point afterwards.

    Computed in the wider type of argument and numbers, and given to the model in `dtype`.
    """

    def __init__(
        self, mean: Tensor, deviation: Tensor, dtype: torch.dtype | None, is_fitted: bool = True
    ) -> None:
        """`mean`, `deviation`: of one shape, to which the last dimensions of the argument must be
        equal, or 1.

        `dtype`: None for that of the model's parameters, as they are then. `is_fitted`: to data;
        else the config says them, and a checkpoint does not.
        """
        self._is_fitted = is_fitted
        self.mean = mean
        self.deviation = deviation
        self.kept: str | None = None  # what a checkpoint had to say
        self._dtype = dtype

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        first, *others = args or (None,)
        if not isinstance(first, Tensor) or not self._fits(first):
            raise ModelError(self._misfit(first))
        if first.dtype is torch.bool:  # torch subtracts none
            first = first.to(self.mean.dtype)
        if self.mean.device != first.device:  # once: a model moves seldom
            self.mean, self.deviation = self.mean.to(first.device), self.deviation.to(first.device)
        dtype = self._dtype or next(
            (p.dtype for p in module.parameters() if p.is_floating_point()), first.dtype
        )
        return ((first - self.mean).div_(self.deviation).to(dtype), *others)

    def __deepcopy__(self, memo: Any) -> "Scaling":
        """Copies of a model, such as the average of its weights, share the numbers."""
        return self

    def install(self, module: nn.Module) -> None:
        """Before all other hooks: what narrows the arguments of a model shall get the
        scaled ones.
        """
        module.register_forward_pre_hook(self, prepend=True)

    def _fits(self, argument: Tensor) -> bool:
        own, count = tuple(self.mean.shape), self.mean.dim()
        theirs = tuple(argument.shape[1:])[-count:] if count else ()
        return len(theirs) == count and all(a in (b, 1) for a, b in zip(own, theirs, strict=True))

    def _misfit(self, argument: object) -> str:
        got = (
            f"of shape {tuple(argument.shape)}"
            if isinstance(argument, Tensor)
            else "no tensor, by its place"
        )
        return (
            "data.normalize and data.image scale what a task gives the model first, here numbers "
            f"of shape {tuple(self.mean.shape)} for each sample; the first argument is {got}. Take "
            "them out of the config, or call model(inputs, ...) in the task"
        )

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean.cpu(), "deviation": self.deviation.cpu()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The numbers that the weights were trained with count, whatever the data would
        give now.
        """
        if not self._is_fitted:
            return
        own = self.state_dict()
        if any(not torch.equal(own[name], state[name]) for name in own):
            self.kept = (
                "normalize the numbers that the weights were trained with are kept; this data "
                "has others"
            )
        self.mean = state["mean"].to(self.mean.device)
        self.deviation = state["deviation"].to(self.deviation.device)


def of_images(mean: Sequence[float], deviation: Sequence[float], dtype: torch.dtype) -> Scaling:
    """Of images (samples, channels, height, width), a number for each channel."""
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    means, deviations = (
        torch.tensor(numbers, dtype=wide)[:, None, None] for numbers in (mean, deviation)
    )
    return Scaling(means, deviations, dtype, is_fitted=False)


def scaling_of(module: nn.Module) -> Scaling | None:
    """What stands in front of a model."""
    return next(
        (hook for hook in module._forward_pre_hooks.values() if isinstance(hook, Scaling)), None
    )


def beside(weights: Path) -> Path:
    """Where the numbers lie."""
    return weights.with_name(FILE)


def write_scaling(module: nn.Module, folder: Path) -> None:
    """Beside weights."""
    scaling = scaling_of(module)
    if scaling is not None:
        save_file(
            {name: tensor.contiguous() for name, tensor in scaling.state_dict().items()},
            folder / FILE,
        )


def read_scaling(module: nn.Module, weights: Path) -> bool:
    """What lies beside weights is put in front of the model. False: there is nothing."""
    file = beside(weights)
    if not file.is_file():
        return False
    numbers = load_file(str(file))
    Scaling(numbers["mean"], numbers["deviation"], None).install(module)
    return True
