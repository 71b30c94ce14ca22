"""A small JSON cache of measurements, one file per kind in ~/.cache/isobatch.

XDG_CACHE_HOME names another folder than ~/.cache.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from train.disk import Unreadable, read_json, write_atomically

MAX_ENTRIES = 200
"""The newest ones are kept."""


def cache_key(facts: Mapping[str, Any]) -> str:
    """A hash of everything that the cached value depends on."""
    # Sorted, so that the order in which facts were gathered makes no other key.
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def read_cached(kind: str, key: str) -> dict[str, Any] | None:
    """The value stored under `key`; None where there is none, or the file cannot be read."""
    with suppress(OSError, Unreadable):
        value = read_json(_file(kind)).get(key)
        return value if isinstance(value, dict) else None
    return None


def write_cached(kind: str, key: str, value: Mapping[str, Any]) -> None:
    """Store a value for the next start. A disk that cannot be written does not stop training."""
    file = _file(kind)
    entries: dict[str, Any] = {}
    with suppress(OSError, Unreadable):
        entries = read_json(file)
    # Removed first, so that it joins at the end: a dict keeps the order of insertion.
    entries.pop(key, None)
    entries[key] = dict(value)
    newest = dict(list(entries.items())[-MAX_ENTRIES:])
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(newest).encode())


def _file(kind: str) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "isobatch" / f"{kind}.json"
