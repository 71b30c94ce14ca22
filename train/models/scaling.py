"""Scales what enters a model: (x - mean) / deviation.

By data.normalize, and by mean and std of data.image. In training, evaluation, streams, copies and
train.load alike. The data stays as it is, 8-bit images as they are stored, and a task sees it
unscaled. The numbers are saved beside the weights, as inputs.safetensors, and in each checkpoint.
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
    """A forward pre-hook that scales the first argument (samples, ...).

    Computed in the wider type of argument and numbers, and passed to the model in `dtype`.
    """

    def __init__(
        self, mean: Tensor, deviation: Tensor, dtype: torch.dtype | None, is_fitted: bool = True
    ) -> None:
        """`mean`, `deviation`: of one shape, to which the last dimensions of the argument must be
        equal, or 1.

        `dtype`: None for that of the model's parameters at the time of the call. `is_fitted`: to
        data; else the numbers are the config's, and a checkpoint does not replace them.
        """
        self._is_fitted = is_fitted
        self.mean = mean
        self.deviation = deviation
        self.note: str | None = None  # for the screen, after a checkpoint was loaded
        self._dtype = dtype

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        first, *others = args or (None,)
        if not isinstance(first, Tensor) or not self._fits(first):
            raise ModelError(self._problem(first))
        if first.dtype is torch.bool:  # torch cannot subtract from it
            first = first.to(self.mean.dtype)
        if self.mean.device != first.device:  # once: a model seldom moves
            self.mean = self.mean.to(first.device)
            self.deviation = self.deviation.to(first.device)
        # Asked at each call where no type is fixed: a loaded model may have been cast since, as by
        # train.load(...).double().
        dtype = self._dtype or next(
            (p.dtype for p in module.parameters() if p.is_floating_point()), first.dtype
        )
        # Scaled before it is narrowed: in bf16 2007 +- 1 would be 2008 throughout. In place, since
        # the difference is a tensor that nobody else has.
        return ((first - self.mean).div_(self.deviation).to(dtype), *others)

    def __deepcopy__(self, memo: Any) -> "Scaling":
        """Copies of a model, such as the average of its weights, share the numbers."""
        return self

    def install(self, module: nn.Module) -> None:
        """Before all other hooks: models/cast_arguments.py must get the scaled argument."""
        module.register_forward_pre_hook(self, prepend=True)

    def _fits(self, argument: Tensor) -> bool:
        dimensions = self.mean.dim()
        # Of a 0-dim mean none: [-0:] would be all of them.
        sizes = argument.shape[1:][-dimensions:] if dimensions else ()
        if len(sizes) != dimensions:
            return False
        return all(own in (size, 1) for own, size in zip(self.mean.shape, sizes, strict=True))

    def _problem(self, argument: object) -> str:
        got = "no positional tensor"
        if isinstance(argument, Tensor):
            got = f"of shape {tuple(argument.shape)}"
        return (
            "data.normalize and data.image scale what a task gives the model first, here numbers "
            f"of shape {tuple(self.mean.shape)} for each sample; the first argument is {got}. Take "
            "them out of the config, or call model(inputs, ...) in the task"
        )

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean.cpu(), "deviation": self.deviation.cpu()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The numbers that the weights were trained with count, not those of the data now."""
        if not self._is_fitted:
            return
        numbers = self.state_dict()
        if any(not torch.equal(numbers[name], state[name]) for name in numbers):
            self.note = (
                "normalize the numbers that the weights were trained with are kept; this data "
                "has others"
            )
        self.mean = state["mean"].to(self.mean.device)
        self.deviation = state["deviation"].to(self.deviation.device)


def of_images(mean: Sequence[float], deviation: Sequence[float], dtype: torch.dtype) -> Scaling:
    """For images (samples, channels, height, width): one number per channel."""
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    # (channels, 1, 1)
    means = torch.tensor(mean, dtype=wide)[:, None, None]
    deviations = torch.tensor(deviation, dtype=wide)[:, None, None]
    return Scaling(means, deviations, dtype, is_fitted=False)


def scaling_of(module: nn.Module) -> Scaling | None:
    """The scaling installed in a model."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, Scaling):
            return hook
    return None


def scaling_file(weights: Path) -> Path:
    """The file beside the weights that holds the numbers."""
    return weights.with_name(FILE)


def write_scaling(module: nn.Module, folder: Path) -> None:
    """Beside the weights in `folder`; nothing where inputs are not scaled."""
    scaling = scaling_of(module)
    if scaling is None:
        return
    # safetensors refuses tensors that are not contiguous.
    numbers = {name: tensor.contiguous() for name, tensor in scaling.state_dict().items()}
    save_file(numbers, folder / FILE)


def read_scaling(module: nn.Module, weights: Path) -> bool:
    """Install the scaling saved beside the weights; False where there is none."""
    file = scaling_file(weights)
    if not file.is_file():
        return False
    numbers = load_file(str(file))
    Scaling(numbers["mean"], numbers["deviation"], None).install(module)
    return True
