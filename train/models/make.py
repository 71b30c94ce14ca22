"""Makes the model that a config describes."""

import torch
from torch import nn

from train.config import Config, resolve
from train.errors import ends_in_a_sentence
from train.models import ModelError
from train.models.precision import cast_parameters
from train.randomness import drawn_from


def parameter_dtype(config: Config) -> torch.dtype:
    """Of the parameters and of the model's inputs; under autocast (bf16, fp16) both are float32."""
    if config.model.dtype == "bf16":
        return torch.bfloat16
    if config.precision == "fp64":
        return torch.float64
    return torch.float32


def make_model(config: Config) -> nn.Module:
    """The model that the config describes, initialised from the run's seed.

    In float32 whatever the precision, and cast afterwards: each precision starts from the same
    numbers. Raises ModelError.
    """
    constructor = resolve(config.model.target, "train.models")
    # All generators are set, NumPy's and Python's too: with torch's alone, a constructor that draws
    # from NumPy gave two ranks two models (docs/edges.md).
    what = f"model.target={config.model.target} cannot be made from model.args"
    with ends_in_a_sentence(ModelError, what), drawn_from(config.seed):
        module: nn.Module = constructor(**config.model.args)
    _check_trainable(module, config.model.target)
    cast_parameters(module, parameter_dtype(config), lambda: constructor(**config.model.args))
    return module


def _check_trainable(module: nn.Module, target: str) -> None:
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"model.target={target} gives {type(module).__name__}; it must give a torch.nn.Module"
        )
    parameters = list(module.parameters())
    if not parameters:
        raise ModelError(
            f"model.target={target} has no parameters, so there is nothing to train: layers are "
            "found where they are attributes of the module, or stand in an nn.ModuleList or "
            "nn.ModuleDict, not in a plain list"
        )
    if not any(parameter.requires_grad for parameter in parameters):
        raise ModelError(
            f"model.target={target}: all its parameters have requires_grad=False, so there is "
            "nothing to train. Leave some of them trainable; model.freeze freezes the others"
        )
