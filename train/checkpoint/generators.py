"""The random number generators of a rank."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.checkpoint.files import as_hex, from_hex


def name_of_rank(rank: int) -> str:
    return f"rank-{rank:05}.json"


def write_generators(folder: Path, rank: int) -> None:
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    state = {
        "torch": as_hex(torch.get_rng_state()),
        "cuda": as_hex(torch.cuda.get_rng_state()) if torch.cuda.is_available() else None,
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, gauss],
    }
    (folder / name_of_rank(rank)).write_text(json.dumps(state), encoding="utf-8")


def read_generators(folder: Path, rank: int) -> None:
    """Set all of them to where they were."""
    state: dict[str, Any] = json.loads((folder / name_of_rank(rank)).read_text(encoding="utf-8"))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(from_hex(state["torch"]))
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(from_hex(state["cuda"]))
