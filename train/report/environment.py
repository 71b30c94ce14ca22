"""Where a run ran: what one must know to run it again. Everything here is redacted and fits into
JSON.
"""

import configparser
import netrc
import os
import platform
import shlex
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import torch

import train
from train.distributed.accelerator import trains_on_cpu
from train.redaction import clean, clean_patch

PACKAGES = ("torch", "accelerate", "datasets", "wandb", "omegaconf", "numpy", "safetensors")
LAUNCHER = (
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "ISOBATCH_ATTEMPT",
    "TORCHELASTIC_RESTART_COUNT",
    "SLURM_JOB_ID",
    "SLURM_JOB_NUM_NODES",
    "SLURM_ARRAY_TASK_ID",
)
PUBLIC = (
    *("started_at", "python", "packages", "platform", "launcher"),
    *("cpu_count", "memory_gib", "devices", "cuda", "nccl"),
)
"""What wandb.privacy lets out; of git, commit and dirty flag beside."""
LARGEST_PATCH_MB = 10
GIT_SECONDS = 10
"""A git that takes longer (a slow file system) counts as missing."""


def environment(argv: Sequence[str], config_path: str | Path) -> dict[str, Any]:
    """environment.json. What cannot be known is absent.

    `argv`: the command line as it was typed.
    """
    found = {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(clean(list(argv))),
        "config_path": str(config_path),
        "git": _git_state(),
        "python": platform.python_version(),
        "packages": _packages(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpu_count": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        **_devices(),
        "launcher": {name: os.environ[name] for name in LAUNCHER if name in os.environ},
    }
    told: dict[str, Any] = clean(found)
    return {key: value for key, value in told.items() if value not in (None, {})}


def private(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an environment that names no machine, person, path or address."""
    kept = {key: environment[key] for key in PUBLIC if key in environment}
    git = {
        key: environment["git"][key]
        for key in ("commit", "dirty")
        if key in environment.get("git", {})
    }
    return kept | ({"git": git} if git else {})


def git_patch() -> str | None:
    """git.patch: what `git apply` needs on top of the commit, and the names of files that git does
    not know.

    None where nothing is changed, or there is no git. Redacted: a line that held a secret no longer
    applies.
    """
    root = _repository()
    changes = (
        _git(root, "diff", "HEAD", "--binary", "--no-color", "--no-ext-diff", "--no-textconv") or ""
    )
    unknown = _git(root, "ls-files", "--others", "--exclude-standard", "--full-name") or ""
    if not changes and not unknown:
        return None
    size_mb = len(changes) / 1e6
    if size_mb > LARGEST_PATCH_MB:
        changes = (
            f"# The changes have {size_mb:.0f} MB, more than {LARGEST_PATCH_MB} MB: not kept. "
            "Commit them.\n"
        )
    named = "".join(f"# not in git: {name}\n" for name in unknown.splitlines())
    return clean(named) + clean_patch(changes, partial(_bytes_of, root))


def _bytes_of(root: Path | None, path: str) -> bytes:
    try:
        return (root / path).read_bytes() if root else b""
    except OSError:
        return b""


def wandb_setting(name: str) -> str:
    """A setting of wandb's own: from the environment, else from its two files; read without
    importing wandb.
    """
    defaults = {"base_url": "https://api.wandb.ai", "mode": "auto"}
    folder = Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser()
    files = configparser.ConfigParser(interpolation=None)
    with suppress(configparser.Error, OSError):
        files.read([folder / "settings", Path("wandb/settings")])
    return (
        os.environ.get(f"WANDB_{name.upper()}")
        or files.get("default", name, fallback="")
        or defaults.get(name, "")
    )


def logged_in_to_wandb() -> bool:
    """Whether wandb will find credentials for its server: with none it would ask for them."""
    if wandb_setting("api_key") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    for place in [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]:
        with suppress(netrc.NetrcParseError, OSError):
            if netrc.netrc(Path(place).expanduser()).authenticators(
                urlsplit(wandb_setting("base_url")).netloc
            ):
                return True
    return False


def _git_state() -> dict[str, Any]:
    root = _repository()
    status = _git(root, "status", "--porcelain=v2", "--branch", "--untracked-files=normal")
    if status is None:
        return {}
    lines = status.splitlines()
    headers = dict(line[2:].split(" ", 1) for line in lines if line.startswith("# branch."))
    state = {
        "commit": headers.get("branch.oid"),
        "branch": headers.get("branch.head"),
        "dirty": any(not line.startswith("#") for line in lines),
        "remote": (_git(root, "remote", "get-url", "origin") or "").strip() or None,
    }
    return {
        key: value for key, value in state.items() if value not in (None, "(initial)", "(detached)")
    }


def _repository() -> Path | None:
    """The root of the repository of the current folder, else of the code's own."""
    for folder in (Path.cwd(), Path(train.__file__).parent):
        if root := _git(folder, "rev-parse", "--show-toplevel"):
            return Path(root.rstrip("\n"))
    return None


def _git(folder: Path | None, *arguments: str) -> str | None:
    """What git says; None where it is missing, fails, or takes too long."""
    if folder is None:
        return None
    # Without optional locks: a `git commit` of the user's own, meanwhile, must not find the index
    # locked.
    settings = os.environ | {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "-c", "core.quotePath=false", *arguments],
            capture_output=True,
            timeout=GIT_SECONDS,
            env=settings,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _devices() -> dict[str, Any]:
    """The devices that this process may train on, and the versions that drive them.

    Of a run on the CPU it asks for no GPU's properties: that opens a context of hundreds of MiB on
    each.
    """
    if trains_on_cpu() or not torch.cuda.is_available():
        return {"devices": [{"name": "cpu"}]}
    properties = [
        torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())
    ]
    devices = [
        {"name": each.name, "memory_gib": round(each.total_memory / 2**30, 1)}
        for each in properties
    ]
    nccl_version: Callable[[], tuple[int, ...]] = torch.cuda.nccl.version
    nccl: tuple[int, ...] = ()
    with suppress(AttributeError, RuntimeError, OSError):  # a torch that was built without it
        nccl = nccl_version()
    return {
        "devices": devices,
        "cuda": torch.version.cuda or torch.version.hip,
        "nccl": ".".join(map(str, nccl)) or None,
    }
