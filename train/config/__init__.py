"""Configs: typed defaults, YAML files and overrides, merged and checked before anything starts."""

from train.config.identity import (
    curve_hash,
    differences,
    digest,
    flatten,
    is_execution,
    is_neutral,
    joined_hash,
    mathematics,
    recipe_hash,
    source_hash,
    tokenizer_files,
)
from train.config.keys import under
from train.config.load import Loaded, load, run_name
from train.config.problems import ConfigError, Problem
from train.config.schema import Config
from train.config.targets import resolve, resolve_source, resolve_tokenizer
from train.config.trust import Foreign, NotTrusted, needs_trust

__all__ = [
    "Config",
    "ConfigError",
    "Foreign",
    "Loaded",
    "NotTrusted",
    "Problem",
    "curve_hash",
    "differences",
    "digest",
    "flatten",
    "is_execution",
    "is_neutral",
    "joined_hash",
    "load",
    "mathematics",
    "needs_trust",
    "recipe_hash",
    "resolve",
    "resolve_source",
    "resolve_tokenizer",
    "run_name",
    "source_hash",
    "tokenizer_files",
    "under",
]
