"""Which runs must have the same curve: hashes over what changes the mathematics, and no more."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from train.config.annotations import Effect
from train.config.code_hash import code_hash
from train.config.keys import under, with_effect
from train.config.schema import Config
from train.config.sources import own_sources
from train.config.targets import resolve, resolve_source, resolve_tokenizer

# The effect of a key stands beside its field, in recipe.py and schema.py.
EXECUTION = with_effect(Effect.EXECUTION, Effect.NEUTRAL)
NEUTRAL = with_effect(Effect.NEUTRAL)

COMPUTING = (
    "standard.py",
    "accumulate.py",
    "loop.py",
    "step.py",
    "setup.py",
    "chunked_loss.py",
    "permutation.py",
    "randomness.py",
    "batch/*.py",
    "config/name_patterns.py",
    "data/*.py",
    "distributed/accelerator.py",
    "distributed/bucket_order.py",
    "distributed/ddp.py",
    "distributed/flat_buckets.py",
    "distributed/norms.py",
    "distributed/parallel.py",
    "distributed/replicated.py",
    "distributed/sharded.py",
    "gradients/late_weights.py",
    "gradients/measured_shares.py",
    "gradients/seeding.py",
    "models/*.py",
    "optim/*.py",
    "plan/stages.py",
    "plan/steps.py",
    "plan/unequal.py",
    "tasks/*.py",
)
"""Files whose change may change a curve. A test asks that every other file is listed there."""

TOKENIZER = (
    "tokenizer*.json",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
)
"""Files of a tokenizer in a folder, which may hold a model besides."""


def mathematics(
    config: Config, effective_batch: int, stages: Sequence[tuple[int, int]] = ()
) -> dict[str, Any]:
    """{dotted key: value} of all that decides the curve; the effective batch is the plan's.

    `stages`: (samples seen, effective batch from there on) of a schedule.
    """
    flat = flatten(dataclasses.asdict(config))
    values = {key: value for key, value in flat.items() if not is_execution(key)}
    # Beside another rule than `noise` it only leads to a warning in the plan.
    if config.optimizer.lr_scaling != "noise":
        values["optimizer.noise_scale"] = None
    # As text in samples, whichever key stated them: the form of a schedule changes no curve.
    if stages:
        steps = [f"{start}: {effective}" for start, effective in stages]
        values["batch.schedule"] = ", ".join(steps)
    else:
        values["batch.effective"] = effective_batch
    return values


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def curve_hash(mathematics: Mapping[str, Any], code: str) -> str:
    """Equal hashes must give equal curves wherever the run is exact."""
    return _digest({**mathematics, "code": code})


def recipe_hash(mathematics: Mapping[str, Any], code: str) -> str:
    """The same for every seed: it groups repetitions."""
    return _digest({**mathematics, "code": code, "seed": None})


def joined_hash(segments: Sequence[tuple[int, str | None]]) -> str:
    """Of a run that was resumed with other mathematics.

    `segments`: (the step after which it begins, its hash) of each part.
    """
    # A run that was resumed with the same mathematics keeps the hash of that.
    if len(segments) == 1:
        return str(segments[0][1])
    return _digest(segments)


def source_hash(config: Config) -> str:
    """Over the files of this package that compute, and the user's own behind the config's targets.

    What counts in a file: see code_hash.
    """
    data = config.data
    targets = [
        (config.model.target, resolve(config.model.target, "train.models")),
        (config.task.target, resolve(config.task.target, "train.tasks")),
        (config.optimizer.target, resolve(config.optimizer.target, "torch.optim")),
        (data.source, resolve_source(data.source)),
    ]
    # Not eval_transform: what is evaluated on changes no curve.
    if data.transform:
        targets.append((data.transform, resolve(data.transform, "train.data")))
    if data.block_size is not None:
        targets.append((data.tokenizer, resolve_tokenizer(data.tokenizer)))
    # A set: one file may be reached under two names, my.net and net.
    files = set(computing_files())
    # What is imported from these counts by its name alone, since it may move between their files.
    packages = {__name__.split(".")[0]}
    for name, target in targets:
        for module, path in own_sources(name, target).items():
            files.add(path)
            packages.add(module.split(".")[0])
    return code_hash((path.read_bytes() for path in files), packages)


def computing_files() -> list[Path]:
    """The files of this package that compute."""
    package = Path(__file__).resolve().parents[1]
    files: list[Path] = []
    for pattern in COMPUTING:
        files += package.glob(pattern)
    return files


def tokenizer_files(tokenizer: str) -> list[Path]:
    """The files of a tokenizer: in its folder, or the sources of the user's own class.

    Raises TargetError.
    """
    folder = Path(tokenizer)
    if not folder.is_dir():
        return list(own_sources(tokenizer, resolve_tokenizer(tokenizer)).values())
    files: list[Path] = []
    for pattern in TOKENIZER:
        files += (path for path in folder.glob(pattern) if path.is_file())
    return files


def digest(files: Iterable[Path]) -> str:
    """Of the contents of files, in the order of their names."""
    hashed = hashlib.sha256()
    # Sorted: a file system lists in any order. A set: two patterns may find one file.
    for path in sorted(set(files)):
        # A hash of each: where one file ends and the next begins counts as well.
        with path.open("rb") as file:
            hashed.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256 {hashed.hexdigest()[:16]}"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{key: (old, new)} where they differ, values as JSON has them: a tuple equals a list."""
    before = json.loads(json.dumps(old, default=str))
    after = json.loads(json.dumps(new, default=str))
    return {
        key: (before.get(key), after.get(key))
        for key in [*before, *(after.keys() - before)]
        if before.get(key) != after.get(key)
    }


def is_execution(key: str) -> bool:
    """Whether a dotted key decides how a run is executed or reported, and not what it computes."""
    return under(key, EXECUTION)


def is_neutral(key: str) -> bool:
    """Whether runs that differ in this dotted key alone are repetitions of one set-up."""
    return under(key, NEUTRAL)


def _digest(value: Any) -> str:
    # Sorted: the order in which keys were written decides nothing.
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
