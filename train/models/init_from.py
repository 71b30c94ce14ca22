"""What a model starts as: drawn from the seed or loaded from a file, some of its
parameters frozen.
"""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from train.checkpoint.files import read_tensors
from train.checkpoint.tensors import storable
from train.config import Config, digest, tokenizer_files
from train.config.name_patterns import PatternError, matching
from train.errors import UserError
from train.models.scaling import Scaling, beside
from train.models.weights import FINAL, Pretrained, load_extra_state, make_model

PRETRAINED = ("config.json", "*.safetensors", "*.bin", "*.index.json")
"""What a model of transformers is in a folder."""


class WeightsError(UserError):
    """Weights that cannot be started from."""


def initial_model(config: Config) -> nn.Module:
    """The model before its first step. Raises WeightsError (model.init_from) and PatternError
    (model.freeze).
    """
    module = make_model(config)
    if config.model.init_from is not None:
        load_initial(module, config.model.init_from)
    if config.model.freeze:
        freeze(module, config.model.freeze)
    return module


def initial_scaling(config: Config, own: Scaling | None) -> Scaling | None:
    """What stands in front of the model: for weights trained on normalized inputs the numbers
    beside them, not `own`.

    Raises WeightsError where the config scales nothing and those weights need it.
    """
    if config.model.init_from is None or config.data.image.mean:  # those are typed, not fitted
        return own
    file = beside(_find(config.model.init_from))
    if not file.is_file():
        return own
    if own is None:
        raise WeightsError(
            f"model.init_from: {file} is there: those weights were trained on scaled inputs, and "
            "this config scales none. Type: data.normalize=true (images: data.image.mean and "
            "data.image.std as they were)"
        )
    own.load_state_dict(load_file(str(file)))
    return own


def digests(config: Config) -> dict[str, str]:
    """{key: sha256} for each key that names weights or a tokenizer on this machine: a path says
    nothing of the curve.

    All of them are read, at about 1 GB per second. A name of the hub stays the name that it is.
    Raises WeightsError.
    """
    found = {}
    if config.model.init_from is not None:
        found["model.init_from"] = digest([_find(config.model.init_from)])
    pretrained = config.model.args.get("from_pretrained")
    if isinstance(pretrained, str) and Path(pretrained).is_dir():
        files = (
            path for name in PRETRAINED for path in Path(pretrained).glob(name) if path.is_file()
        )
        found["model.args.from_pretrained"] = digest(files)
    if Path(config.data.tokenizer).is_dir():
        found["data.tokenizer"] = digest(tokenizer_files(config.data.tokenizer))
    return found


def load_initial(module: nn.Module, path: str) -> None:
    """Load all weights of a run folder or a .safetensors file, in the module's own precision."""
    file = _find(path)
    shapes = _shapes(file)
    if isinstance(module, Pretrained):
        module.load_pretrained(file)
        return
    own = {name: storable(x) for name, x in module.state_dict().items() if isinstance(x, Tensor)}
    wanted = {name: tuple(tensor.shape) for name, tensor in own.items()}
    problems = [
        f"{name} has shape {shapes[name]} there, {wanted[name]} in the model"
        for name in wanted
        if name in shapes and shapes[name] != wanted[name]
    ]
    if not problems:  # else it raises, with a sentence of its own
        # knows tied weights, which are stored once
        missing, unexpected = read_tensors(file, module, strict=False)
        problems += [f"{name} is missing there" for name in sorted(missing)]
        problems += [f"{name} is there, but not in the model" for name in sorted(unexpected)]
    if problems:
        shown = "".join(f"\n  {problem}" for problem in problems[:8])
        more = f"\n  and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise WeightsError(
            f"model.init_from: {file} does not fit the model:{shown}{more}\n"
            f"Type: model.args as they were when these weights were trained"
        )
    load_extra_state(module, file)


def freeze(module: nn.Module, patterns: list[str]) -> None:
    """Parameters whose names match are not trained."""
    parameters = dict(module.named_parameters())
    for name in matching("model.freeze", patterns, list(parameters)):
        parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise PatternError("model.freeze leaves no parameter to train")


def _find(path: str) -> Path:
    place = Path(path)
    found = next((p for p in (place / FINAL, place / FINAL.name, place) if p.is_file()), None)
    if found is None:
        what = (
            "has no final/model.safetensors (has its run finished?)"
            if place.is_dir()
            else "is not there"
        )
        raise WeightsError(
            f"model.init_from: {path} {what}. It takes a run folder, such as runs/digits, or a "
            ".safetensors file"
        )
    return found


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(str(file), framework="pt") as weights:
            return {
                name: tuple(weights.get_slice(name).get_shape()) for name in list(weights.keys())
            }
    except SafetensorError as error:
        raise WeightsError(
            f"model.init_from: {file} is no whole .safetensors file ({error})"
        ) from error
