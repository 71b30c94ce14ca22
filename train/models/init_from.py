"""What a model starts from: random numbers of the seed, or a file; and which parameters freeze."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from train.checkpoint.files import read_tensors
from train.checkpoint.tensors import storable
from train.config import Config, digest, tokenizer_files
from train.config.name_patterns import PatternError, matching
from train.errors import UserError
from train.models.make import make_model
from train.models.scaling import Scaling, scaling_file
from train.models.weights import FINAL, Pretrained, load_extra_state

PRETRAINED = ("config.json", "*.safetensors", "*.bin", "*.index.json")
"""The files of a transformers model in a folder."""

MAX_SHOWN = 8
"""Problems that are listed."""


class WeightsError(UserError):
    """Weights that cannot be started from."""


def initial_model(config: Config) -> nn.Module:
    """The model before its first step.

    Raises WeightsError (model.init_from) and PatternError (model.freeze).
    """
    module = make_model(config)
    if config.model.init_from is not None:
        load_initial(module, config.model.init_from)
    if config.model.freeze:
        freeze(module, config.model.freeze)
    return module


def initial_scaling(config: Config, fitted: Scaling | None) -> Scaling | None:
    """The scaling of the model's inputs.

    Weights that were trained on normalized inputs have theirs beside them: it replaces the numbers
    that were `fitted` to this data. Raises WeightsError where the config scales nothing and those
    weights need it.
    """
    # data.image.mean is typed by the user, not fitted.
    if config.model.init_from is None or config.data.image.mean:
        return fitted
    file = scaling_file(_weights_file(config.model.init_from))
    if not file.is_file():
        return fitted
    if fitted is None:
        raise WeightsError(
            f"model.init_from: {file} is there: those weights were trained on scaled inputs, and "
            "this config scales none. Set: data.normalize=true (images: data.image.mean and "
            "data.image.std as they were)"
        )
    fitted.load_state_dict(load_file(str(file)))
    return fitted


def digests(config: Config) -> dict[str, str]:
    """{key: sha256} for each key that names local weights or a local tokenizer.

    A path alone does not decide the curve: its files do. All of them are read, at about 1 GB per
    second. A name of the hub stays the name that it is. Raises WeightsError.
    """
    by_key = {}
    if config.model.init_from is not None:
        by_key["model.init_from"] = digest([_weights_file(config.model.init_from)])
    pretrained = config.model.args.get("from_pretrained")
    if isinstance(pretrained, str) and Path(pretrained).is_dir():
        files: list[Path] = []
        for name in PRETRAINED:
            files.extend(path for path in Path(pretrained).glob(name) if path.is_file())
        by_key["model.args.from_pretrained"] = digest(files)
    if Path(config.data.tokenizer).is_dir():
        by_key["data.tokenizer"] = digest(tokenizer_files(config.data.tokenizer))
    return by_key


def load_initial(module: nn.Module, path: str) -> None:
    """Load all weights of a run folder or a .safetensors file, in the module's own precision.

    Raises WeightsError.
    """
    # Shapes are read in any case: a file that was cut off ends in a sentence here, and not in a
    # trace of transformers.
    file = _weights_file(path)
    shapes = _shapes(file)
    if isinstance(module, Pretrained):
        module.load_pretrained(file)
        return
    problems = _other_shapes(module, shapes)
    # Tensors of another shape would make read_tensors raise, at the first of them.
    if not problems:
        missing, unexpected = read_tensors(file, module, strict=False)
        # Not strict, so that all names are listed together and not the first alone.
        problems += [f"{name} is missing there" for name in sorted(missing)]
        problems += [f"{name} is there, but not in the model" for name in sorted(unexpected)]
    if problems:
        lines = problems[:MAX_SHOWN]
        if len(problems) > MAX_SHOWN:
            lines.append(f"and {len(problems) - MAX_SHOWN} more")
        shown = "".join(f"\n  {line}" for line in lines)
        raise WeightsError(
            f"model.init_from: {file} does not fit the model:{shown}\n"
            f"Set: model.args as they were when these weights were trained"
        )
    load_extra_state(module, file)


def freeze(module: nn.Module, patterns: list[str]) -> None:
    """Parameters whose names match are not trained. Raises PatternError."""
    parameters = dict(module.named_parameters())
    # By requires_grad, not by leaving parameters out of the optimizer: DDP and the trial of
    # exactness then know as well that no gradient is to come.
    for name in matching("model.freeze", patterns, list(parameters)):
        parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise PatternError("model.freeze leaves no parameter to train")


def _other_shapes(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    problems = []
    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, Tensor) or name not in shapes:
            continue
        # The shape on the disk: complex numbers are stored as pairs.
        shape = tuple(storable(tensor).shape)
        if shapes[name] != shape:
            problems.append(f"{name} has shape {shapes[name]} there, {shape} in the model")
    return problems


def _weights_file(path: str) -> Path:
    start = Path(path)
    # A run folder, the folder with its weights, or a file.
    for file in (start / FINAL, start / FINAL.name, start):
        if file.is_file():
            return file
    problem = "is not there"
    if start.is_dir():
        problem = "has no final/model.safetensors (has its run finished?)"
    raise WeightsError(
        f"model.init_from: {path} {problem}. It takes a run folder, such as runs/digits, or a "
        ".safetensors file"
    )


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """{name: shape}, without reading the tensors."""
    try:
        with safe_open(str(file), framework="pt") as weights:
            shapes = {}
            for name in list(weights.keys()):
                shapes[name] = tuple(weights.get_slice(name).get_shape())
            return shapes
    except SafetensorError as error:
        raise WeightsError(
            f"model.init_from: {file} is no whole .safetensors file ({error})"
        ) from error
