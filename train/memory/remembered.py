"""What was found out once about a model on a device, in a file of the user's: ~/.cache/isobatch
(XDG_CACHE_HOME).
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from train.disk import Unreadable, read_json, write_atomically

MOST = 200
"""Answers that are kept, the newest ones."""


def key_of(facts: Mapping[str, Any]) -> str:
    """Of all that an answer depends on."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def recall(kind: str, key: str) -> dict[str, Any] | None:
    """What was remembered under this key; None where nothing was, or nothing can be read."""
    with suppress(OSError, Unreadable):
        found = read_json(_file(kind)).get(key)
        return found if isinstance(found, dict) else None
    return None


def remember(kind: str, key: str, answer: Mapping[str, Any]) -> None:
    """For the next start. A disk that cannot be written is no reason not to train."""
    file = _file(kind)
    known: dict[str, Any] = {}
    with suppress(OSError, Unreadable):
        known = read_json(file)
    known.pop(key, None)
    newest = dict([*known.items(), (key, dict(answer))][-MOST:])
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(newest).encode())


def _file(kind: str) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "isobatch" / f"{kind}.json"
