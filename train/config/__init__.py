"""Configs: typed defaults, YAML files and overrides, merged and checked before anything starts."""

from train.config.load import Loaded, load, run_name
from train.config.problems import ConfigError, Problem
from train.config.schema import Config
from train.config.targets import resolve, resolve_source

__all__ = ["Config", "ConfigError", "Loaded", "Problem", "load", "resolve", "resolve_source", "run_name"]
