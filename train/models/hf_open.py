"""Makes a model of transformers: from saved weights, or initialised from the fields of a config.

It checks what transformers accepts without a word: misspelt fields, and heads that a model lacks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from train.config.problems import closest
from train.models import ModelError
from train.models._extras import library

TASKS = {
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "causal-lm": "AutoModelForCausalLM",
}
"""Names of the hub, and the class of transformers that makes a model for each."""

FINDING = (
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
    "code_revision",
    "cache_dir",
    "local_files_only",
)
"""Arguments of from_pretrained: where the weights are."""

BUILDING = ("attn_implementation", "experts_implementation", "trust_remote_code")
"""Arguments of from_pretrained and from_config: how the model is built."""

LOADING = (
    *FINDING,
    *BUILDING,
    "quantization_config",
    "variant",
    "use_safetensors",
    "weights_only",
    "key_mapping",
)
"""All arguments of from_pretrained that are no fields of a config."""

REFUSED = {
    "dtype": "model.dtype=bf16, or leave it out: float32",
    "torch_dtype": "model.dtype=bf16, or leave it out: float32",
    "device_map": "NPROC=2, or leave it out: each rank has a device of its own",
    "max_memory": "model.dtype=bf16, or leave it out: each rank has a device of its own",
    "tp_plan": "NPROC=2, or leave it out: each rank holds the whole model",
}
"""Arguments of transformers that the run decides, and what to set in their place."""


@dataclass(frozen=True)
class _Arguments:
    """What model.args give, apart from the task and the path."""

    loading: dict[str, Any]  # arguments of transformers
    fields: dict[str, Any]  # of the model's config


def open_model(task: str, path: str | None, args: dict[str, Any]) -> Any:
    """In float32; without a `path`, initialised from the run's seed. Raises ModelError."""
    transformers = _transformers()
    sorted_args = _sort(args)
    try:
        if path is None:
            return _from_config(transformers, task, sorted_args)
        return _from_pretrained(transformers, task, path, sorted_args)
    # A ModelError is a ValueError: the next clause would put a second sentence around its own.
    except ModelError:
        raise
    # ImportError: of a library that a quantization needs
    except (OSError, ValueError, ImportError) as error:
        if path is None:
            raise ModelError(f"model.args.from_config cannot be opened: {error}") from error
        raise ModelError(
            f"model.args.from_pretrained={path} cannot be opened: {error}\nIt takes a folder that "
            "save_pretrained has written, or a name of the hub"
        ) from error


def _from_config(transformers: Any, task: str, args: _Arguments) -> Any:
    # Both checks come before the model is made, which takes time and memory.
    config = _make_config(transformers.CONFIG_MAPPING, args.fields)
    _check_task(task, transformers, config)
    for name in args.loading:
        if name not in BUILDING:
            raise ModelError(
                f"model.args.{name} loads weights, and from_config has none. Set: "
                "model.args.from_pretrained"
            )
    # In float32: train/models/make.py casts afterwards, so that each precision starts from the same
    # numbers.
    auto_class = getattr(transformers, TASKS[task])
    return auto_class.from_config(config, dtype=torch.float32, **args.loading)


def _from_pretrained(transformers: Any, task: str, path: str, args: _Arguments) -> Any:
    # Unless it is set, transformers asks on the terminal whether to run the code of a folder.
    loading = {"trust_remote_code": False, **args.loading}
    finding = {name: loading[name] for name in FINDING if name in loading}
    # The config alone first: fields and head are checked before the weights are downloaded or read.
    config = transformers.AutoConfig.from_pretrained(path, **finding)
    _check_fields(config, args.fields)
    if not loading["trust_remote_code"]:  # a class from the folder is in no mapping
        _check_task(task, transformers, config)
    auto_class = getattr(transformers, TASKS[task])
    model, loading_info = auto_class.from_pretrained(
        path,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # all of them are named below, in place of the first
        output_loading_info=True,
        **loading,
        **args.fields,
    )
    mismatched = loading_info["mismatched_keys"]
    if mismatched:
        names = ", ".join(sorted(str(key[0]) for key in mismatched))
        raise ModelError(
            f"{path} has other shapes than model.args ask for: {names}. Leave num_labels as it is "
            "there"
        )
    return model


def add_decoder_start(config: Any) -> None:
    """Sets a missing decoder_start_token_id.

    T5's config lacks it, and its classifier needs it (transformers 5.23).
    """
    if config.is_encoder_decoder and not hasattr(config, "decoder_start_token_id"):
        config.decoder_start_token_id = config.pad_token_id


def _sort(args: dict[str, Any]) -> _Arguments:
    for name, instead in REFUSED.items():
        if name in args:
            raise ModelError(
                f"model.args.{name}={args[name]}: the run decides that. Set: {instead}"
            )
    return _Arguments(
        loading={name: value for name, value in args.items() if name in LOADING},
        fields={name: value for name, value in args.items() if name not in LOADING},
    )


def _check_task(task: str, transformers: Any, config: Any) -> None:
    """Raises ModelError where the model has no such head: an encoder-decoder is no causal-lm."""
    # By transformers' own tables of which head exists for which config.
    possible = []
    for name, auto_class in TASKS.items():
        if type(config) in getattr(transformers, auto_class)._model_mapping:
            possible.append(name)
    if task in possible:
        return
    able = "nor any other model that this project feeds. Choose another model_type"
    if possible:
        able = f"it makes {', '.join(possible)}. Set: model.args.task={possible[0]}"
    raise ModelError(
        f"model.args.task={task}: transformers makes none of {config.model_type}; {able}"
    )


def _make_config(config_classes: Any, fields: dict[str, Any]) -> Any:
    model_type = str(fields.get("model_type"))
    if model_type not in config_classes:
        near = _did_you_mean(model_type, list(config_classes.keys()))
        raise ModelError(
            f"model.args.from_config.model_type={model_type} is no model of transformers{near}"
        )
    others = {name: value for name, value in fields.items() if name != "model_type"}
    config_class = config_classes[model_type]
    default = config_class()
    # Before the fields are checked: it is a field that a user may set, and T5's config lacks it.
    add_decoder_start(default)
    _check_fields(default, others)
    return config_class(**others)


def _check_fields(config: Any, fields: dict[str, Any]) -> None:
    """Raises ModelError for an unknown field: transformers accepts any."""
    for name in fields:
        if not hasattr(config, name):
            near = _did_you_mean(name, list(vars(config)))
            raise ModelError(f"model.args: {type(config).__name__} has no field {name!r}{near}")


def _did_you_mean(name: str, names: Sequence[str]) -> str:
    near = closest(name, names)
    return f"; did you mean {near!r}?" if near else ""


def _transformers() -> Any:
    transformers = library("transformers", "hf", "hf")
    # A run has a progress bar of its own, and each rank would show these.
    transformers.utils.logging.disable_progress_bar()
    return transformers
