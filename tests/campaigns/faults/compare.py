"""What a run has become, for comparison with one that nothing happened to."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.checkpoint.commit import complete
from train.checkpoint.files import MODEL, TENSORS, read_state
from train.checkpoint.manifest import verify

UNLIKE = ("time/", "throughput/", "memory/", "progress/hours")
"""What no two runs have alike."""


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rows(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without times; those that tell of nothing else are left out."""
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [
        {key: value for key, value in row.items() if not key.startswith(UNLIKE)} for row in read
    ]
    return [row for row in kept if len(row) > 2]


def train_steps(run: Path) -> list[int]:
    return [row["train/global_step"] for row in rows(run) if "train/loss" in row]


def state(run: Path) -> dict[str, Any]:
    """sha256 of weights, optimizer and each rank's own part; rate and counts; every row, its floats
    to the last bit.
    """
    last = complete(run / "checkpoints")[-1]
    verify(last)
    other = read_state(last)
    told = {
        key: value
        for key, value in other["report"].items()
        if key not in ("seconds", "run_id", "last_save_seconds", "whole_run")
    }
    files = [MODEL, TENSORS, *sorted(file.name for file in last.glob("rank-*"))]
    return {
        "checkpoint": last.name,
        "files": {name: digest(last / name) for name in files},
        "final": digest(run / "final" / "model.safetensors"),
        "skips": other["skips"],
        "report": told,
        "rows": rows(run),
    }


def differing(one: Any, other: Any, place: str = "") -> list[str]:
    """Where two states differ; empty: bit-identical."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = list(dict.fromkeys([*one, *other]))
        return [
            where
            for key in keys
            for where in differing(one.get(key), other.get(key), f"{place}/{key}")
        ]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [where for i, (a, b) in pairs for where in differing(a, b, f"{place}/{i}")]
    return [] if one == other else [f"{place}: {str(one)[:80]} != {str(other)[:80]}"]


def notes(here: Path, name: str) -> list[dict[str, Any]]:
    file = here / name
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def windows(here: Path, world_size: int) -> Iterator[tuple[int, dict[str, Any]]]:
    for number in range(world_size):
        for told in notes(here, f"windows-{number}.jsonl"):
            yield number, told


def samples(here: Path, world_size: int) -> dict[int, list[int]]:
    """{step: its samples over all ranks}. A step that was computed again must have taken the same
    ones.
    """
    of_rank: dict[tuple[int, int], list[int]] = {}
    for number, told in windows(here, world_size):
        assert told["world"] == world_size, f"{told['world']} ranks met, not {world_size}"
        before = of_rank.setdefault((told["k"], number), told["ids"])
        assert before == told["ids"], (
            f"step {told['k']}, rank {number}: {before}, then {told['ids']}"
        )
    steps = sorted({k for k, _ in of_rank})
    return {
        k: sorted(i for number in range(world_size) for i in of_rank.get((k, number), []))
        for k in steps
    }
