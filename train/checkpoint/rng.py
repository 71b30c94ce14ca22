"""The random number generators of a rank: torch's on CPU and GPU, NumPy's and Python's."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_generators(seed: int) -> None:
    """All of them; `seed`: from 0 to 2**63 - 1."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def write_generators(path: Path) -> None:
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    state = {
        "torch": _as_hex(torch.get_rng_state()),
        "cuda": _as_hex(torch.cuda.get_rng_state()) if torch.cuda.is_available() else None,
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, gauss],
    }
    path.write_text(json.dumps(state), encoding="utf-8")


def read_generators(path: Path) -> None:
    """Set all of them to where they were."""
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_from_hex(state["torch"]))
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(_from_hex(state["cuda"]))


def _as_hex(state: Tensor) -> str:
    return state.numpy().tobytes().hex()


def _from_hex(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
