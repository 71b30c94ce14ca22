"""A trained model on disk, and back."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from train.checkpoint.files import (
    ExtraState,
    read_tensors,
    read_value,
    write_model,
    write_tensors,
    write_value,
)
from train.checkpoint.shards import join
from train.config import Config, Foreign, load, resolve
from train.disk import remove
from train.distributed.ranks import Ranks
from train.distributed.sharded import is_divided
from train.errors import RunFailed, UserError, ends_in_a_sentence
from train.models import ModelError
from train.models.precision import cast_parameters
from train.models.scaling import FILE as SCALING_FILE
from train.models.scaling import read_scaling, scaling_of, write_scaling
from train.randomness import drawn_from
from train.redaction import clean_known


class NotFinished(UserError):
    """A run folder without trained weights."""


class OtherWeights(UserError):
    """Weights of another model than the config's."""


class NotSaved(RunFailed):
    """Trained weights that could not be written; the checkpoints are as they were."""


AGAIN = "Type the same command again once that is mended; it goes on from the newest checkpoint"
FINAL = Path("final") / "model.safetensors"


@runtime_checkable
class Pretrained(Protocol):
    """A module that has a format of its own, such as that of train/models/hf.py."""

    def save_pretrained(self, folder: Path, state: Mapping[str, Tensor] | None) -> None:
        """Write model.safetensors, and whatever belongs beside it. `state`: the module's
        state_dict; None: its own.
        """
        ...

    def load_pretrained(self, file: Path) -> None:
        """Read the weights of such a file; it may have another name."""
        ...


def parameter_dtype(config: Config) -> torch.dtype:
    """Of the parameters, and of what enters the model; under autocast (bf16, fp16) both stay
    float32.
    """
    if config.model.dtype == "bf16":
        return torch.bfloat16
    return torch.float64 if config.precision == "fp64" else torch.float32


def make_model(config: Config) -> nn.Module:
    """The model as the config describes it, drawn in float32 whatever the precision, from the run's
    seed.
    """
    constructor = resolve(config.model.target, "train.models")
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
            "nothing to train. Leave some of them trainable; model.freeze holds others as they are"
        )


@contextmanager
def divided_weights(
    modules: Mapping[str, nn.Module], folder: Path, ranks: Ranks
) -> Iterator[Path | None]:
    """Inside, the parts of weights that are divided among the ranks lie in `folder`, from where
    save_weights takes them; no rank holds all. None where every rank does.

    `modules`: by the names of their files. All ranks call it together. Raises NotSaved.
    """
    if not any(map(is_divided, modules.values())):
        yield None
        return
    ranks.from_main(lambda: _begin(folder))

    def write() -> None:
        try:
            for name, module in modules.items():
                write_model(folder, f"{name}.safetensors", module, ranks.rank)
        except (OSError, SafetensorError) as error:
            raise NotSaved(
                f"could not write this rank's weights into {folder}: {error}. {AGAIN}"
            ) from error

    ranks.together(write)
    try:
        yield folder
    finally:
        ranks.from_main(lambda: remove(folder))


def _begin(folder: Path) -> None:
    remove(folder)
    folder.mkdir()


def save_weights(
    module: nn.Module,
    folder: Path,
    name: str = "model",
    save_beside: Callable[[Path], object] | None = None,
    divided: Path | None = None,
) -> Path:
    """Plain weights under the model's own parameter names, as folder/NAME.safetensors; tied ones
    once.

    Beside them what a module of transformers writes too, and what `save_beside(folder)` writes,
    such as a tokenizer. `divided`: where the parts of all ranks lie. Raises NotSaved.
    """
    try:
        return _save_weights(module, folder, name, save_beside, divided)
    except (OSError, SafetensorError) as error:
        raise NotSaved(f"could not write {folder / name}.safetensors: {error}. {AGAIN}") from error


def _save_weights(
    module: nn.Module,
    folder: Path,
    name: str,
    save_beside: Callable[[Path], object] | None,
    divided: Path | None,
) -> Path:
    path = folder / f"{name}.safetensors"
    folder.mkdir(exist_ok=True)
    unfinished = folder / f".{name}.unfinished"
    remove(unfinished)
    unfinished.mkdir()
    written = unfinished / FINAL.name
    if divided is not None:
        join(divided, f"{name}.safetensors", written)
    if isinstance(module, Pretrained):
        module.save_pretrained(unfinished, None if divided is None else load_file(str(written)))
    else:
        if divided is None:
            write_tensors(written, module)
        if extra := ExtraState(module).state_dict():
            write_value(*_extra_files(written), extra)
    write_scaling(module, unfinished)
    if save_beside is not None:
        save_beside(unfinished)
    for described in unfinished.glob("*config.json"):
        # transformers writes down what it was called with.
        described.write_text(clean_known(described.read_text(encoding="utf-8")), encoding="utf-8")
    if scaling_of(module) is None:  # what a model before this one has left there would scale it
        (folder / SCALING_FILE).unlink(missing_ok=True)
    for other in unfinished.iterdir():
        if other != written:
            other.rename(folder / other.name)
    # last, and at once: a kill leaves all of the weights or none, never half of them
    written.rename(path)
    unfinished.rmdir()
    return path


def load_weights(module: nn.Module, file: Path) -> None:
    """What save_weights wrote, into a model of the same config. Raises OtherWeights where names or
    shapes differ.
    """
    what = f"{file} does not fit the model. Set: model.args as they were there"
    # not of a file that cannot be read
    with ends_in_a_sentence(OtherWeights, what, of=RuntimeError):
        if isinstance(module, Pretrained):
            module.load_pretrained(file)
        else:
            read_tensors(file, module)
            load_extra_state(module, file)


def load_extra_state(module: nn.Module, file: Path) -> None:
    """What lies beside these weights, for the module's set_extra_state; nothing where there is
    none.
    """
    files = _extra_files(file)
    if all(each.is_file() for each in files):
        ExtraState(module).load_state_dict(read_value(*files))


def _extra_files(file: Path) -> tuple[Path, Path]:
    """Beside weights: what the module's get_extra_state gave, and the tensors in it."""
    return file.with_suffix(".extra_state.json"), file.with_suffix(".extra_state.safetensors")


def final_weights(run_folder: Path, name: str = "model") -> Path:
    """Where a run's trained weights are; raises NotFinished where they are not."""
    weights = run_folder / FINAL.with_stem(name)
    if not weights.is_file():
        raise NotFinished(
            f"{weights} is not there: {run_folder} is no run folder, or its run has not finished"
        )
    return weights


def load_final(run_folder: str | Path, name: str = "model", trust: bool = False) -> nn.Module:
    """The trained model of a run folder, on the CPU, in evaluation mode.

    `trust`: call whatever its config names; else NotTrusted is raised for what is not known to be
    harmless.
    """
    folder = Path(run_folder).expanduser()
    foreign = Foreign(folder, frozenset({"model.target"}), trust, "trust=True")
    return trained_model(
        load([str(folder / "config.yaml")], foreign).config, final_weights(folder, name)
    ).eval()


def trained_model(config: Config, weights: Path) -> nn.Module:
    """The model of `config` with the weights of a run."""
    args = dict(config.model.args)
    if "from_pretrained" in args and (weights.parent / "config.json").is_file():
        args["from_pretrained"] = str(weights.parent)  # what it started from may be gone
    if config.model.target == "vision":
        args["pretrained"] = False  # nothing is fetched that is replaced at once
    module = make_model(
        dataclasses.replace(config, model=dataclasses.replace(config.model, args=args))
    )
    load_weights(module, weights)
    is_scaled = config.data.normalize or bool(config.data.image.mean)
    if not read_scaling(module, weights) and is_scaled:
        raise NotFinished(
            f"{weights.with_name(SCALING_FILE)} is not there: the model was trained on inputs that "
            f"are scaled, and these are the numbers. Copy all of {weights.parent}"
        )
    return module
