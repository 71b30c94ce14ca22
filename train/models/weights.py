"""Saves trained weights, and loads them into a model again."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

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
from train.config import Config, Foreign, load
from train.disk import remove
from train.distributed.ranks import Ranks
from train.distributed.sharded import is_divided
from train.errors import RunFailed, UserError, ends_in_a_sentence
from train.models.make import make_model
from train.models.scaling import FILE as SCALING_FILE
from train.models.scaling import read_scaling, scaling_of, write_scaling
from train.redaction import clean_known


class NotFinished(UserError):
    """A run folder without trained weights."""


class OtherWeights(UserError):
    """Weights of another model than the config's."""


class NotSaved(RunFailed):
    """Trained weights that could not be written; the checkpoints are as they were."""


RUN_AGAIN = "Run the same command again once that is fixed: it resumes from the newest checkpoint"
FINAL = Path("final") / "model.safetensors"


@runtime_checkable
class Pretrained(Protocol):
    """A module with its own file format, such as train/models/hf.py."""

    def save_pretrained(self, folder: Path, state: Mapping[str, Tensor] | None) -> None:
        """Write model.safetensors, and whatever belongs beside it.

        `state`: the module's state_dict, where it was joined from shards; None: its own.
        """
        ...

    def load_pretrained(self, file: Path) -> None:
        """Read the weights of such a file; it may have another name."""
        ...


@contextmanager
def divided_weights(
    modules: Mapping[str, nn.Module], folder: Path, ranks: Ranks
) -> Iterator[Path | None]:
    """Inside, the shards of all ranks are in `folder`, for save_weights to join.

    Yields the folder, or None where weights are not sharded. `modules`: by the names of their
    files. All ranks call it together. Raises NotSaved.
    """
    if not any(map(is_divided, modules.values())):
        yield None
        return

    # A run that was killed may have left shards there, which would be joined with these.
    def make_folder() -> None:
        remove(folder)
        folder.mkdir()

    def write() -> None:
        try:
            for name, module in modules.items():
                write_model(folder, f"{name}.safetensors", module, ranks.rank)
        except (OSError, SafetensorError) as error:
            raise NotSaved(
                f"could not write this rank's weights into {folder}: {error}. {RUN_AGAIN}"
            ) from error

    # All ranks raise where one cannot write: else the others would wait for it in the next message.
    ranks.from_main(make_folder)
    ranks.together(write)
    try:
        yield folder
    finally:
        ranks.from_main(lambda: remove(folder))


def save_weights(
    module: nn.Module,
    folder: Path,
    name: str = "model",
    save_beside: Callable[[Path], object] | None = None,
    divided: Path | None = None,
) -> Path:
    """Plain weights under the model's own parameter names, as folder/NAME.safetensors.

    Tied weights are stored once. Beside them is what a transformers model writes besides, and what
    `save_beside(folder)` writes, such as a tokenizer. `divided`: the folder with the shards of all
    ranks. Raises NotSaved.
    """
    try:
        return _save_weights(module, folder, name, save_beside, divided)
    except (OSError, SafetensorError) as error:
        raise NotSaved(
            f"could not write {folder / name}.safetensors: {error}. {RUN_AGAIN}"
        ) from error


def _save_weights(
    module: nn.Module,
    folder: Path,
    name: str,
    save_beside: Callable[[Path], object] | None,
    divided: Path | None,
) -> Path:
    path = folder / f"{name}.safetensors"
    folder.mkdir(exist_ok=True)
    # In a hidden folder first: a kill must leave no half-written file under its final name.
    unfinished = folder / f".{name}.unfinished"
    remove(unfinished)
    unfinished.mkdir()
    weights = unfinished / FINAL.name
    _write(module, weights, f"{name}.safetensors", divided)
    write_scaling(module, unfinished)
    if save_beside is not None:
        save_beside(unfinished)
    for config_file in unfinished.glob("*config.json"):
        # Redacted: transformers records the arguments that it was called with.
        text = clean_known(config_file.read_text(encoding="utf-8"))
        config_file.write_text(text, encoding="utf-8")
    # The file of an earlier model there would scale the inputs of this one.
    if scaling_of(module) is None:
        (folder / SCALING_FILE).unlink(missing_ok=True)
    for file in unfinished.iterdir():
        if file != weights:
            file.rename(folder / file.name)
    # The weights last, and by a rename: a kill leaves all of them or none.
    weights.rename(path)
    unfinished.rmdir()
    return path


def _write(module: nn.Module, weights: Path, name: str, divided: Path | None) -> None:
    """The file `weights`, and what the module itself writes beside it.

    `name`: of the file in `divided`, the folder with the shards.
    """
    if divided is not None:
        join(divided, name, weights)
    if isinstance(module, Pretrained):
        # The joined file has our own names and lies where the module writes its format: it is read
        # before it is replaced.
        state = None if divided is None else load_file(str(weights))
        module.save_pretrained(weights.parent, state)
        return
    if divided is None:
        write_tensors(weights, module)
    # get_extra_state may give anything that JSON and tensors can hold, which one safetensors file
    # cannot.
    if extra := ExtraState(module).state_dict():
        write_value(*_extra_files(weights), extra)


def load_weights(module: nn.Module, file: Path) -> None:
    """Load what save_weights wrote into a model of the same config.

    Raises OtherWeights where names or shapes differ.
    """
    what = f"{file} does not fit the model. Set: model.args as they were there"
    # RuntimeError alone: a file that cannot be read raises others.
    with ends_in_a_sentence(OtherWeights, what, of=RuntimeError):
        if isinstance(module, Pretrained):
            module.load_pretrained(file)
        else:
            read_tensors(file, module)
            load_extra_state(module, file)


def load_extra_state(module: nn.Module, file: Path) -> None:
    """Pass what lies beside these weights, if anything, to the module's set_extra_state."""
    files = _extra_files(file)
    if all(each.is_file() for each in files):
        ExtraState(module).load_state_dict(read_value(*files))


def _extra_files(file: Path) -> tuple[Path, Path]:
    """(JSON, tensors) of what the module's get_extra_state gave, beside the weights."""
    return file.with_suffix(".extra_state.json"), file.with_suffix(".extra_state.safetensors")


def final_weights(run_folder: Path, name: str = "model") -> Path:
    """The file with a run's trained weights. Raises NotFinished."""
    weights = run_folder / FINAL.with_stem(name)
    if not weights.is_file():
        raise NotFinished(
            f"{weights} is not there: {run_folder} is no run folder, or its run has not finished"
        )
    return weights


def load_final(run_folder: str | Path, name: str = "model", trust: bool = False) -> nn.Module:
    """The trained model of a run folder, on the CPU, in evaluation mode.

    `trust`: call whatever its config names. Else raises NotTrusted for what is not known to be
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
        args["from_pretrained"] = str(weights.parent)  # the original may be gone
    if config.model.target == "vision":
        args["pretrained"] = False  # a download would be overwritten at once
    model_config = dataclasses.replace(config.model, args=args)
    module = make_model(dataclasses.replace(config, model=model_config))
    load_weights(module, weights)
    is_scaled = config.data.normalize or bool(config.data.image.mean)
    if not read_scaling(module, weights) and is_scaled:
        raise NotFinished(
            f"{weights.with_name(SCALING_FILE)} is not there: the model was trained on inputs that "
            f"are scaled, and these are the numbers. Copy all of {weights.parent}"
        )
    return module
