"""A trained model on disk, and back."""

from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import nn

from train.config import Config, load, resolve


class NotFinished(FileNotFoundError):
    """A run folder without trained weights."""


FINAL = Path("final") / "model.safetensors"

DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}  # of parameters; bf16 is autocast


def make_model(config: Config) -> nn.Module:
    """The model as the config describes it, drawn in float32 whatever the precision, from the run's seed."""
    torch.manual_seed(config.seed)
    module: nn.Module = resolve(config.model.target, "train.models")(**config.model.args)
    return module.to(DTYPES[config.precision])


def save_final(module: nn.Module, run_folder: Path, name: str = "model") -> Path:
    """Plain weights under the model's own parameter names, as final/NAME.safetensors; tied ones once."""
    path = run_folder / FINAL.with_stem(name)
    path.parent.mkdir(exist_ok=True)
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
