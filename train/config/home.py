"""Expands `~` at the beginning of a path, as a shell does, but not behind `key=`."""

import dataclasses
from pathlib import Path
from typing import Any

from train.config.keys import dotted, under
from train.config.merge import Layer

# Keys that hold paths. In any other text a ~ is meant as it is written.
PATHS = (
    "output_dir",
    "checkpoint.resume",
    "model.init_from",
    "model.args.from_pretrained",
    "data.source",
    "data.tokenizer",
    "data.args.data_dir",
    "data.args.data_files",
)


def with_home(layer: Layer) -> Layer:
    """The same settings, paths without `~`."""
    values = {path: _expanded(dotted(path), value) for path, value in layer.values.items()}
    return dataclasses.replace(layer, values=values)


def _expanded(key: str, value: Any) -> Any:
    if isinstance(value, list) and key in PATHS:
        return [_expanded(key, each) for each in value]
    if isinstance(value, str) and value.startswith("~") and under(key, PATHS):
        return expand(value)
    return value


def expand(path: str) -> str:
    """Where there is no such user, the path as it is."""
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        return path
