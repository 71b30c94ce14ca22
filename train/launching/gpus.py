"""Which GPUs of this machine torch can use, and why not all. For launcher, doctor and ranks.

Where torch cannot use a card, training would silently run on the CPU.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from importlib.util import find_spec

from train.errors import counted
from train.launching.torch_builds import (
    DEV,
    INDEX,
    OLDEST_DRIVER,
    Capability,
    Machine,
    driver_suits,
    find_build,
    look_at_machine,
)

PROBE_SECONDS = 300
"""For torch to initialise the cards of this machine."""


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: Capability

    @property
    def is_mig(self) -> bool:
        return " MIG " in self.name


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What torch sees."""

    version: str = ""
    cuda: str = ""
    """The version that this torch was built for; empty in a build for CPUs."""
    hip: str = ""
    kernels: tuple[str, ...] = ()
    """sm_75 runs on compute capability 7.5 and later 7.x; compute_120 on 12.0 and all later."""
    gpus: tuple[Gpu, ...] = ()
    """Those that a process can open, as the CUDA runtime counts them: NVML counts more."""
    error: str = ""


@dataclass(frozen=True)
class Trouble:
    got: str
    why: str
    remedy: str
    """A command."""


def look_by_torch() -> Seen:
    """In this process. Opens no context on a card."""
    import torch  # here: the launcher asks another process, and starts without it

    seen = Seen(
        version=str(torch.__version__), cuda=torch.version.cuda or "", hip=torch.version.hip or ""
    )
    # A build for CPUs raises at the questions below.
    if not seen.cuda and not seen.hip:
        return seen
    seen = replace(seen, kernels=tuple(torch.cuda.get_arch_list()))
    try:
        torch.cuda.current_device()  # before this, torch counts by NVML
        cards = [
            torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())
        ]
    except (RuntimeError, AssertionError) as error:
        # The first sentence says why; torch goes on with advice.
        return replace(seen, error=str(error).partition("\n")[0].partition(". ")[0])
    return replace(seen, gpus=tuple(Gpu(card.name, (card.major, card.minor)) for card in cards))


def ask_torch(visible: str = "") -> Seen:
    """As look_by_torch, in another process; only where the machine seems to have a GPU.

    The launcher itself starts without torch, whose import takes seconds. `visible`: for
    CUDA_VISIBLE_DEVICES.
    """
    # Importing torch takes seconds: a machine without any sign of a GPU is spared it. kfd is AMD's.
    if not (shutil.which("nvidia-smi") or any(DEV.glob("nvidia[0-9]*")) or (DEV / "kfd").exists()):
        return Seen()
    # gpu_ids of a flag or a launcher file are what the ranks will see, so torch is asked with them.
    environment = dict(os.environ)
    if visible:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    words = [sys.executable, "-m", "train.launching.gpus"]
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            env=environment,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Seen(error=f"torch did not answer for {PROBE_SECONDS} s")
    last_line = done.stdout.strip().rpartition("\n")[2]  # libraries may print before it
    if not last_line:
        reason = done.stderr.strip().rpartition("\n")[2]
        return Seen(error=f"torch cannot be imported: {reason}")
    fields = json.loads(last_line)
    fields["kernels"] = tuple(fields["kernels"])
    fields["gpus"] = tuple(Gpu(gpu["name"], tuple(gpu["capability"])) for gpu in fields["gpus"])
    return Seen(**fields)


def hides_all(visible: str | None) -> bool:
    """Whether CUDA_VISIBLE_DEVICES asks for the CPU: "", -1, and what schedulers write for a job
    without a GPU.
    """
    return visible is not None and not re.match(r"\s*(\d|GPU-|MIG-)", visible)


def find_trouble(
    seen: Seen, visible: str | None, look: Callable[[], Machine] = look_at_machine
) -> Trouble | None:
    """Why torch cannot use the cards of this machine, or some of those requested; else None.

    `visible`: what CUDA_VISIBLE_DEVICES is, or will be. The driver is not looked at where torch can
    open the cards: a cluster may have installed NVIDIA's compatibility libraries.
    """
    if seen.hip and seen.gpus:
        return None  # refused elsewhere, by name
    if seen.gpus:
        return _without_kernels(seen, visible, look)
    # Whoever has hidden all cards asks for the CPU, and misses none.
    machine = Machine() if hides_all(visible) else look()
    if not machine.cards:
        return None
    number = counted(len(machine.cards), "GPU")
    has = f"{number} ({machine.cards[0]}, driver {machine.driver or 'unknown'})"
    # The first that holds is named: torch is not there, is of another build, is newer than the
    # driver; then what the user has set.
    if not seen.version:
        return Trouble(has, seen.error, f"{sys.executable} -c 'import torch'")
    cuda = int(seen.cuda.partition(".")[0] or 0)
    if not cuda:
        kind = "AMD GPUs" if seen.hip else "CPUs"
        why = f"this torch ({seen.version}) was built for {kind}"
        return Trouble(has, why, remedy(seen, machine))
    if not driver_suits(cuda, machine.driver):
        why = (
            f"torch {seen.version} was built for CUDA {seen.cuda}, which needs driver "
            f"{OLDEST_DRIVER[cuda]} or later"
        )
        return Trouble(has, why, remedy(seen, machine))
    if visible:
        why = f"CUDA_VISIBLE_DEVICES={visible} names none of them"
        return Trouble(has, why, "unset CUDA_VISIBLE_DEVICES")
    reason = machine.error or seen.error or "no reason given"
    return Trouble(has, f"torch cannot use them: {reason}", "nvidia-smi")


def _without_kernels(
    seen: Seen, visible: str | None, look: Callable[[], Machine]
) -> Trouble | None:
    """A card for whose compute capability this torch was not compiled fails at its first kernel."""
    without = [gpu for gpu in seen.gpus if not _has_kernels(gpu.capability, seen.kernels)]
    if not without:
        return None
    gpu = without[0]
    got = f"{gpu.name} has compute capability {gpu.capability[0]}.{gpu.capability[1]}"
    why = f"torch {seen.version} has no kernels for it: {', '.join(seen.kernels)}"
    # With CUDA_VISIBLE_DEVICES set, the cards are numbered within it, and these numbers would name
    # others.
    others = [str(index) for index, each in enumerate(seen.gpus) if each not in without]
    if others and not visible:
        return Trouble(got, why, f"export CUDA_VISIBLE_DEVICES={','.join(others)}")
    return Trouble(got, why, remedy(seen, look()))


def _has_kernels(capability: Capability, kernels: Sequence[str]) -> bool:
    for kernel in kernels:
        name = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", kernel)
        if not name:
            continue
        built = (int(name[2]), int(name[3]))
        # Compiled code (sm) runs on later cards of the same major version; code that the driver
        # compiles (compute), on all later ones.
        runs_on_later = name[1] == "compute" or built[0] == capability[0]
        if name[4] == "a":  # sm_90a: for that card alone
            runs_on_later = False
        if built == capability or (runs_on_later and built < capability):
            return True
    return not kernels


def remedy(seen: Seen, machine: Machine) -> str:
    """How to get a torch that can use the cards; where there is none, a driver or other cards."""
    build = find_build(machine)
    if build is not None:
        versions = {"torch": seen.version}
        if find_spec("torchvision"):  # it is built for one version of CUDA too
            versions["torchvision"] = metadata.version("torchvision")
        pins = []
        for package, version in versions.items():
            pins.append(f"{package}=={version.partition('+')[0]}+{build.name}")
        index = f"{INDEX}/{build.name}"
        return f"{sys.executable} -m pip install {' '.join(pins)} --extra-index-url {index}"
    # No build suits this driver: does one suit the cards, under a newer driver?
    build = find_build(replace(machine, driver=""))
    if build is not None:
        return (
            f"update the driver to {OLDEST_DRIVER[build.cuda]} or later "
            "(https://www.nvidia.com/drivers)"
        )
    return "export CUDA_VISIBLE_DEVICES=0   (no torch is compiled for all of these cards)"


def refusal(trouble: Trouble) -> str:
    return (
        f"torch cannot use the GPUs of this machine\n  got:  {trouble.got}\n  why:  {trouble.why}\n"
        f"  run:  {trouble.remedy}\n        (or ACCELERATE_USE_CPU=true before the command: train "
        "on the CPU)"
    )


if __name__ == "__main__":
    print(json.dumps(asdict(look_by_torch())))
