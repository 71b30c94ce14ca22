"""Which build of torch suits a machine: by its driver and its cards.

Imports Python's own modules only: scripts/environment.sh runs this file before there is an
environment. It prints the name of a build (empty: the one that pip finds by itself), and why.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

INDEX = "https://download.pytorch.org/whl"
DEV = Path("/dev")
PROC = Path("/proc/driver/nvidia/version")
SECONDS = 60
"""For nvidia-smi: a driver that wakes eight cards takes some."""

Capability = tuple[int, int]


@dataclass(frozen=True)
class Build:
    name: str
    """As in the address of its wheels."""
    cuda: int
    least: Capability
    """The lowest compute capability that it has kernels for."""
    most: Capability


BUILDS = (
    Build("cu130", cuda=13, least=(7, 5), most=(12, 1)),
    Build("cu126", cuda=12, least=(5, 0), most=(9, 0)),
)
"""Of torch 2.12 to 2.14 (its RELEASE.md); the first is PyPI's."""

OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
"""By the major version of CUDA. NVIDIA: CUDA Compatibility, minor version compatibility."""

SCHEDULERS = ("sbatch", "qsub", "bsub")


@dataclass(frozen=True)
class Machine:
    """Cards and driver, whether or not torch can use them."""

    cards: tuple[str, ...] = ()
    """The names of those that this process may open."""
    capabilities: tuple[Capability, ...] = ()
    """Of the cards; empty where the driver is too old to say."""
    mig_instances: int = 0
    driver: str = ""
    error: str = ""
    """What nvidia-smi says where it cannot reach the driver."""


def look_at_machine() -> Machine:
    """Asks nvidia-smi; where there is none, looks for the files of the driver."""
    files = sorted(DEV.glob("nvidia[0-9]*"))
    driver = driver_in(PROC.read_text()) if PROC.exists() else ""
    if not shutil.which("nvidia-smi"):
        cards = [file.name for file in files if _may_be_opened(file)]
        return Machine(cards=tuple(cards), driver=driver)
    code, listed = _nvidia_smi("-L")
    if code and driver and files and "No devices" not in listed:
        # Such as after an update of the driver without a restart.
        return Machine(
            cards=tuple(file.name for file in files),
            driver=driver,
            error=listed.partition("\n")[0],
        )
    cards = re.findall(r"^GPU \d+: (.+?) \(UUID", listed, re.MULTILINE)
    # An old driver answers a question that it does not know with a sentence: only numbers count.
    versions = re.findall(r"^[\d.]+$", _query("driver_version"), re.MULTILINE)
    capabilities = re.findall(r"^(\d+)\.(\d+)$", _query("compute_cap"), re.MULTILINE)
    return Machine(
        cards=tuple(cards),
        capabilities=tuple((int(major), int(minor)) for major, minor in capabilities),
        mig_instances=len(re.findall(r"^\s+MIG .*UUID: MIG-", listed, re.MULTILINE)),
        driver=versions[0] if versions else driver,
    )


def driver_in(text: str) -> str:
    """The version in what /proc/driver/nvidia/version holds."""
    match = re.search(r"NVRM version:.*?\s(\d{3,}\.\d+(?:\.\d+)?)\s", text)
    return match[1] if match else ""


def _may_be_opened(file: Path) -> bool:
    """A scheduler forbids the cards that a job has not requested: seen only by opening them."""
    try:
        os.close(os.open(file, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _query(field: str) -> str:
    return _nvidia_smi(f"--query-gpu={field}", "--format=csv,noheader")[1]


def _nvidia_smi(*words: str) -> tuple[int, str]:
    """(exit code, what it prints)"""
    try:
        done = subprocess.run(
            ["nvidia-smi", *words], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return 1, str(error)
    return done.returncode, done.stdout + done.stderr


def suits(build: Build, machine: Machine) -> bool:
    return driver_suits(build.cuda, machine.driver) and all(
        build.least <= capability <= build.most for capability in machine.capabilities
    )


def driver_suits(cuda: int, driver: str) -> bool:
    """Also True where one of the two is unknown."""
    number = driver.partition(".")[0]
    return not number.isdecimal() or int(number) >= OLDEST_DRIVER.get(cuda, 0)


def find_build(machine: Machine) -> Build | None:
    return next((build for build in BUILDS if suits(build, machine)), None)


def choose(
    machine: Machine, environment: Mapping[str, str], on_path: Sequence[str] = ()
) -> tuple[str, str]:
    """(name of a build, why). Empty: the one that pip finds. `on_path`: the schedulers found here.

    The build for CPUs is for a machine without GPU and without scheduler: a scheduler would start
    the training on another machine.
    """
    stated = environment.get("TORCH_BUILD", "")
    if stated:
        return stated, "as TORCH_BUILD says"
    if sys.platform != "linux":
        return "", "there is one for this system"
    # A login node has no GPU, and knows no driver: the training starts on another machine.
    if not machine.cards and on_path:
        why = (
            f"no GPU here, but {on_path[0]}: for jobs on nodes with a driver before 580, "
            "TORCH_BUILD=cu126"
        )
        return "", why
    if not machine.cards:
        return "cpu", "no NVIDIA GPU here; TORCH_BUILD=cu130 for one"
    build = find_build(machine)
    hardware = f"driver {machine.driver or 'unknown'}, {machine.cards[0]}"
    if build is None:
        return "", f"{hardware}: no build supports both"
    # pip finds the first one by itself.
    name = "" if build == BUILDS[0] else build.name
    return name, hardware


if __name__ == "__main__":
    schedulers = [name for name in SCHEDULERS if shutil.which(name)]
    print(*choose(look_at_machine(), os.environ, schedulers), sep="\n")
