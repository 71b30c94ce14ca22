"""The name of a run, safe as a folder's name on every system."""

import hashlib
import re
from collections.abc import Sequence

NOT_IN_NAME = ("name", "output_dir", "log", "checkpoint", "profile", "wandb", "runtime")
"""Keys and sections that do not change what is trained."""
LONGEST = 80
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that Windows keeps for devices."""


def short_form(stem: str, overrides: Sequence[str]) -> str:
    """`digits-micro16-seed1`: the stem, then last part and value of each key, sorted by key."""
    values = dict(override.split("=", 1) for override in overrides)
    # Sorted: the same overrides in another order are the same run.
    pairs = [(key, values[key]) for key in sorted(values) if key.split(".")[0] not in NOT_IN_NAME]
    name = safe("-".join([stem, *(_short(key, value) for key, value in pairs)]))
    if len(name) > LONGEST:
        # The overrides that the cut takes away still make another name.
        digest = hashlib.sha256(repr((stem, pairs)).encode()).hexdigest()[:8]
        name = f"{name[: LONGEST - len(digest) - 1].rstrip('-_.')}-{digest}"
    return f"{name}_" if _RESERVED.fullmatch(name) else name


def _short(key: str, value: str) -> str:
    last = key.rpartition(".")[2]
    # micro16, but layer2_16: digits side by side would read as one number.
    joint = "" if value[0].isdigit() and not last[-1].isdigit() else "_"
    return f"{last}{joint}{value}"


def safe(text: str) -> str:
    """Characters that every file system takes."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", text).strip("_.") or "run"
