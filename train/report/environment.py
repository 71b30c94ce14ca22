"""Where a run ran: what one must know to run it again. All is redacted, and fits into JSON."""

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
    "started_at",
    "python",
    "packages",
    "platform",
    "launcher",
    "cpu_count",
    "memory_gib",
    "devices",
    "cuda",
    "nccl",
)
"""What wandb.privacy lets out, beside PUBLIC_GIT."""
PUBLIC_GIT = ("commit", "dirty")
LARGEST_PATCH_MB = 10
GIT_SECONDS = 10
"""A git that takes longer (a slow file system) counts as missing."""


def environment(argv: Sequence[str], config_path: str | Path) -> dict[str, Any]:
    """What environment.json holds. What cannot be known is absent.

    `argv`: the command line as it was typed.
    """
    facts = {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(clean(list(argv))),
        "config_path": str(config_path),
        "git": _git_state(),
        "python": platform.python_version(),
        "packages": _packages(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpu_count": _cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        **_devices(),
        "launcher": {name: os.environ[name] for name in LAUNCHER if name in os.environ},
    }
    # Redacted at the end, over all of it: a host, a remote or a variable may hold a secret too.
    return {key: value for key, value in clean(facts).items() if value not in (None, {})}


def private(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an environment that names no machine, person, path or address."""
    public = {key: environment[key] for key in PUBLIC if key in environment}
    git = environment.get("git", {})
    public_git = {key: git[key] for key in PUBLIC_GIT if key in git}
    if public_git:
        public["git"] = public_git
    return public


def git_patch() -> str | None:
    """git.patch: what `git apply` needs on top of the commit, and the names of untracked files.

    None where nothing is changed, or there is no git. Redacted: a line that held a secret no longer
    applies.
    """
    # From the root: from a folder below, ls-files would name only what is untracked there.
    root = _repository()
    # Without the user's own programs and colours: git apply must be able to read it.
    options = ("--binary", "--no-color", "--no-ext-diff", "--no-textconv")
    changes = _git(root, "diff", "HEAD", *options) or ""
    untracked = _git(root, "ls-files", "--others", "--exclude-standard", "--full-name") or ""
    if not changes and not untracked:
        return None
    size_mb = len(changes) / 1e6
    if size_mb > LARGEST_PATCH_MB:
        changes = (
            f"# The changes have {size_mb:.0f} MB, more than {LARGEST_PATCH_MB} MB: not kept. "
            "Commit them.\n"
        )
    names = "".join(f"# not in git: {name}\n" for name in untracked.splitlines())
    return clean(names) + clean_patch(changes, partial(_bytes_of, root))


def _bytes_of(root: Path | None, path: str) -> bytes:
    try:
        return (root / path).read_bytes() if root else b""
    except OSError:
        return b""


def _git_state() -> dict[str, Any]:
    root = _repository()
    # --branch with porcelain=v2 gives commit, branch and changes in one call.
    status = _git(root, "status", "--porcelain=v2", "--branch", "--untracked-files=normal")
    if status is None:
        return {}
    lines = status.splitlines()
    headers = dict(line[2:].split(" ", 1) for line in lines if line.startswith("# branch."))
    remote = _git(root, "remote", "get-url", "origin") or ""
    state = {
        "commit": headers.get("branch.oid"),
        "branch": headers.get("branch.head"),
        "dirty": any(not line.startswith("#") for line in lines),
        "remote": remote.strip() or None,
    }
    # What git writes where there is no commit yet, or no branch.
    absent = (None, "(initial)", "(detached)")
    return {key: value for key, value in state.items() if value not in absent}


def _repository() -> Path | None:
    """The root of the repository of the working directory, else of this package's."""
    # The working directory first: a user of a wheel has the code of the experiment there.
    for folder in (Path.cwd(), Path(train.__file__).parent):
        if root := _git(folder, "rev-parse", "--show-toplevel"):
            return Path(root.rstrip("\n"))
    return None


def _git(folder: Path | None, *arguments: str) -> str | None:
    """What git prints; None where it is missing, fails, or takes too long."""
    if folder is None:
        return None
    # Without optional locks: a `git commit` of the user meanwhile must not find the index locked.
    # Nor a prompt for a password, which would wait for ever, nor translated messages.
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
    # Replaced, not raised: a diff may hold bytes of any encoding.
    return done.stdout.decode(errors="replace")


def _packages() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _cpu_count() -> int | None:
    """Those that this process may use, where the system tells."""
    # Less than the machine has under SLURM or taskset.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _devices() -> dict[str, Any]:
    """The devices that this process may train on, and the versions that drive them.

    Of a run on the CPU it asks for no GPU's properties: that opens a context of hundreds of MiB on
    each.
    """
    if trains_on_cpu() or not torch.cuda.is_available():
        return {"devices": [{"name": "cpu"}]}
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory_gib = round(properties.total_memory / 2**30, 1)
        devices.append({"name": properties.name, "memory_gib": memory_gib})
    nccl_version: Callable[[], tuple[int, ...]] = torch.cuda.nccl.version
    nccl: tuple[int, ...] = ()
    with suppress(AttributeError, RuntimeError, OSError):  # a torch that was built without it
        nccl = nccl_version()
    return {
        "devices": devices,
        "cuda": torch.version.cuda or torch.version.hip,
        "nccl": ".".join(map(str, nccl)) or None,
    }
