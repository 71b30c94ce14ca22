"""A trained model on disk, and back."""

from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import nn

from train.config import Config, load, resolve


class NotFinished(FileNotFoundError):
    """A run folder without trained weights."""


FINAL = Path("final") / "model.safetensors"


def parameter_dtype(config: Config) -> torch.dtype:
    """Of the parameters, and of what the model is fed; under autocast (bf16, fp16) both stay float32."""
    if config.model.dtype == "bf16":
        return torch.bfloat16
    return torch.float64 if config.precision == "fp64" else torch.float32


def make_model(config: Config) -> nn.Module:
    """The model as the config describes it, drawn in float32 whatever the precision, from the run's seed."""
    torch.manual_seed(config.seed)
    module: nn.Module = resolve(config.model.target, "train.models")(**config.model.args)
    return module.to(parameter_dtype(config))


def save_weights(module: nn.Module, folder: Path, name: str = "model") -> Path:
    """Plain weights under the model's own parameter names, as folder/NAME.safetensors; tied ones once."""
    path = folder / f"{name}.safetensors"
    folder.mkdir(exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    save_model(module, str(unfinished))
    unfinished.rename(path)  # a kill leaves all of the weights or none, never half of them
    return path


def final_weights(run_folder: Path, name: str = "model") -> Path:
    """Where a run's trained weights are; raises NotFinished where they are not."""
    weights = run_folder / FINAL.with_stem(name)
    if not weights.is_file():
        raise NotFinished(f"{weights} is not there: {run_folder} is no run folder, or its run has not finished")
    return weights


def load_final(run_folder: str | Path, name: str = "model") -> nn.Module:
    """The trained model of a run folder, on the CPU, in evaluation mode."""
    folder = Path(run_folder)
    weights = final_weights(folder, name)
    module = make_model(load([str(folder / "config.yaml")]).config)
    load_model(module, str(weights))
    return module.eval()
