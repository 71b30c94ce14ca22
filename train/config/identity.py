"""Which runs must have the same curve: hashes over what changes the mathematics, and over nothing
else.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from train.config.code_hash import code_hash
from train.config.schema import Config
from train.config.sources import own_sources
from train.config.targets import resolve, resolve_source, resolve_tokenizer

EXECUTION = (
    *(
        "name",
        "output_dir",
        "log",
        "wandb",
        "checkpoint",
        "duration.hours",
        "profile",
        "evaluate",
        "data.eval_split",
    ),
    "ema",  # an average that is only watched
    # what follows is in the identity, below
    *("batch.effective_tokens", "batch.schedule", "batch.schedule_tokens"),
    "noise_scale",
    *("data.preload", "data.workers", "data.eval_transform"),
    *(
        "batch.micro",
        "batch.shares",
        "batch.accumulation_steps",
        "batch.exact",
        "batch.sync",
        "batch.on_oom",
    ),
    "batch.audit_every_steps",
    *("runtime.timeout_seconds", "runtime.deterministic"),
    *(
        "batch.micro_tokens",
        "model.compile",
        "memory",
        "runtime.reduction",
        "runtime.watch_launcher",
    ),
)
"""Keys, and sections, that change how a run is executed or watched, but not what it computes."""


COMPUTING = (
    *("standard.py", "accumulate.py", "loop.py", "step.py", "setup.py"),
    *("batch/*.py", "data/*.py", "tasks/*.py", "models/*.py", "optim/*.py"),
    *(
        "distributed/accelerator.py",
        "distributed/parallel.py",
        "distributed/replicated.py",
        "distributed/ddp.py",
    ),
    *("distributed/flat_buckets.py", "randomness.py"),
    *(
        "gradients/seeding.py",
        "gradients/measured_shares.py",
        "gradients/late_weights.py",
        "permutation.py",
    ),
    *(
        "chunked_loss.py",
        "distributed/bucket_order.py",
        "distributed/sharded.py",
        "distributed/norms.py",
    ),
    *("plan/steps.py", "plan/stages.py", "plan/unequal.py", "config/name_patterns.py"),
)
"""Files whose change may change a curve. A test asks of each other file that it is said not to."""

TOKENIZER = (
    "tokenizer*.json",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
)
"""What a tokenizer is in a folder, which may hold a model besides."""


def mathematics(
    config: Config, effective_batch: int, stages: Sequence[tuple[int, int]] = ()
) -> dict[str, Any]:
    """{dotted key: value} of all that decides the curve; the effective batch as it follows from the
    plan.

    `stages`: (samples seen, effective batch from there on) of a schedule.
    """
    flat = flatten(dataclasses.asdict(config))
    kept = {key: value for key, value in flat.items() if not is_execution(key)}
    if config.optimizer.lr_scaling != "noise":  # beside another rule it is a hint
        kept["optimizer.noise_scale"] = None
    if not stages:
        return kept | {"batch.effective": effective_batch}
    return kept | {
        "batch.schedule": ", ".join(f"{start}: {effective}" for start, effective in stages)
    }


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
    """Of a run that went on with other mathematics: (the step after which, the hash) of each
    segment.
    """
    if len(segments) == 1:
        return str(segments[0][1])
    return _digest(segments)


def source_hash(config: Config) -> str:
    """Over the files of this package that compute, and the user's own behind the config's targets.

    What counts in a file: see code_hash.
    """
    targets = [
        (config.model.target, resolve(config.model.target, "train.models")),
        (config.task.target, resolve(config.task.target, "train.tasks")),
        (config.optimizer.target, resolve(config.optimizer.target, "torch.optim")),
        (config.data.source, resolve_source(config.data.source)),
        *((name, resolve(name, "train.data")) for name in [config.data.transform] if name),
    ]
    if config.data.block_size is not None:
        targets.append((config.data.tokenizer, resolve_tokenizer(config.data.tokenizer)))
    # A set: one file may be found under two names, my.net and net.
    files = set(computing_files())
    packages = {__name__.split(".")[0]}
    for name, target in targets:
        for module, path in own_sources(name, target).items():
            files.add(path)
            packages.add(module.split(".")[0])
    return code_hash((path.read_bytes() for path in files), packages)


def computing_files() -> list[Path]:
    """The files of this package that compute."""
    package = Path(__file__).resolve().parents[1]
    return [path for pattern in COMPUTING for path in package.glob(pattern)]


def tokenizer_files(tokenizer: str) -> list[Path]:
    """Those that a tokenizer is made of: in its folder, or the sources of the user's own class.
    Raises TargetError.
    """
    folder = Path(tokenizer)
    if folder.is_dir():
        return [path for name in TOKENIZER for path in folder.glob(name) if path.is_file()]
    return list(own_sources(tokenizer, resolve_tokenizer(tokenizer)).values())


def digest(files: Iterable[Path]) -> str:
    """Of what is in them, in the order of their names."""
    whole = hashlib.sha256()
    for path in sorted(set(files)):
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256 {whole.hexdigest()[:16]}"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{key: (old, new)} where they differ, values as JSON knows them."""
    old, new = json.loads(json.dumps(old, default=str)), json.loads(json.dumps(new, default=str))
    return {
        key: (old.get(key), new.get(key))
        for key in [*old, *(new.keys() - old)]
        if old.get(key) != new.get(key)
    }


def is_execution(key: str) -> bool:
    """Whether a key, dotted, says how a run is executed or watched, and not what it computes."""
    return under(key, EXECUTION)


def under(key: str, names: Iterable[str]) -> bool:
    """Whether a dotted key is one of `names`, or belongs to a section among them."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
