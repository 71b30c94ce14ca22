"""What torch makes of the GPUs of this machine, and what is in its way. Launcher, doctor and each
rank ask here.

Where a card is there and torch cannot use it, training would go to the CPU without a word.
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
"""For torch to wake the cards of this machine."""


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: Capability

    @property
    def is_mig(self) -> bool:
        return " MIG " in self.name


@dataclass(frozen=True, kw_only=True)
class Seen:
    """By torch."""

    version: str = ""
    cuda: str = ""
    """That this torch was built for; empty where it was built for CPUs."""
    hip: str = ""
    kernels: tuple[str, ...] = ()
    """sm_75: runs on compute capability 7.5 and on later 7.x; compute_120: is compiled for 12.0 and
    all later ones.
    """
    gpus: tuple[Gpu, ...] = ()
    """Those that a process can open, as the CUDA runtime counts them: NVML counts others too."""
    error: str = ""


@dataclass(frozen=True)
class Trouble:
    got: str
    why: str
    remedy: str
    """To type."""


def look_by_torch() -> Seen:
    """In this process. Opens no context on a card."""
    import torch  # here: the launcher asks another process, and starts without it

    seen = Seen(
        version=str(torch.__version__), cuda=torch.version.cuda or "", hip=torch.version.hip or ""
    )
    if not seen.cuda and not seen.hip:
        return seen
    seen = replace(seen, kernels=tuple(torch.cuda.get_arch_list()))
    try:
        torch.cuda.current_device()  # before this, torch counts by NVML
        cards = [
            torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())
        ]
    except (RuntimeError, AssertionError) as error:
        return replace(seen, error=str(error).partition("\n")[0].partition(". ")[0])
    return replace(seen, gpus=tuple(Gpu(card.name, (card.major, card.minor)) for card in cards))


def ask_torch(visible: str = "") -> Seen:
    """In another process, which costs an import of torch: asked only where the machine seems to
    have a GPU.

    `visible`: for CUDA_VISIBLE_DEVICES.
    """
    if not (shutil.which("nvidia-smi") or any(DEV.glob("nvidia[0-9]*")) or (DEV / "kfd").exists()):
        return Seen()
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": visible} if visible else {})
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
        found = json.loads(done.stdout.strip().rpartition("\n")[2] or "null")
    except subprocess.TimeoutExpired:
        return Seen(error=f"torch did not answer for {PROBE_SECONDS} s")
    if found is None:
        return Seen(error=f"torch cannot be imported: {done.stderr.strip().rpartition(chr(10))[2]}")
    gpus = tuple(Gpu(gpu["name"], tuple(gpu["capability"])) for gpu in found.pop("gpus"))
    return Seen(**{**found, "kernels": tuple(found["kernels"]), "gpus": gpus})


def hides_all(visible: str | None) -> bool:
    """Whether CUDA_VISIBLE_DEVICES asks for the CPU: "", -1, and what schedulers write for a job
    without a GPU.
    """
    return visible is not None and not re.match(r"\s*(\d|GPU-|MIG-)", visible)


def find_trouble(
    seen: Seen, visible: str | None, look: Callable[[], Machine] = look_at_machine
) -> Trouble | None:
    """Why the cards of this machine, or some of those that were asked for, cannot be used; None:
    nothing is wrong.

    `visible`: what CUDA_VISIBLE_DEVICES is, or will be. What torch can open is not judged by the
    driver: a cluster may have added what lets an older one run it.
    """
    if seen.hip and seen.gpus:
        return None  # refused elsewhere, by name
    if seen.gpus:
        return _without_kernels(seen, visible, look)
    machine = Machine() if hides_all(visible) else look()
    if not machine.cards:
        return None
    has = (
        f"{counted(len(machine.cards), 'GPU')} ({machine.cards[0]}, driver "
        f"{machine.driver or 'unknown'})"
    )
    if not seen.version:
        return Trouble(has, seen.error, f"{sys.executable} -c 'import torch'")
    cuda = int(seen.cuda.partition(".")[0] or 0)
    if not cuda:
        kind = "AMD GPUs" if seen.hip else "CPUs"
        return Trouble(
            has, f"this torch ({seen.version}) was built for {kind}", remedy(seen, machine)
        )
    if not driver_suits(cuda, machine.driver):
        why = (
            f"torch {seen.version} was built for CUDA {seen.cuda}, which needs driver "
            f"{OLDEST_DRIVER[cuda]} or later"
        )
        return Trouble(has, why, remedy(seen, machine))
    if visible:
        return Trouble(
            has, f"CUDA_VISIBLE_DEVICES={visible} names none of them", "unset CUDA_VISIBLE_DEVICES"
        )
    return Trouble(
        has,
        f"torch cannot use them: {machine.error or seen.error or 'no reason given'}",
        "nvidia-smi",
    )


def _without_kernels(
    seen: Seen, visible: str | None, look: Callable[[], Machine]
) -> Trouble | None:
    """A card that is older, or newer, than all for which this torch was compiled fails at its first
    kernel.
    """
    without = [gpu for gpu in seen.gpus if not _has_kernels(gpu.capability, seen.kernels)]
    if not without:
        return None
    gpu = without[0]
    got = f"{gpu.name} has compute capability {gpu.capability[0]}.{gpu.capability[1]}"
    why = f"torch {seen.version} has no kernels for it: {', '.join(seen.kernels)}"
    others = [str(index) for index, each in enumerate(seen.gpus) if each not in without]
    if others and not visible:
        return Trouble(got, why, f"export CUDA_VISIBLE_DEVICES={','.join(others)}")
    return Trouble(got, why, remedy(seen, look()))


def _has_kernels(capability: Capability, kernels: Sequence[str]) -> bool:
    for kernel in kernels:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", kernel)
        if not found:
            continue
        built = (int(found[2]), int(found[3]))
        is_for_later = found[1] == "compute" or built[0] == capability[0]
        if found[4] == "a":  # sm_90a: for that card alone
            is_for_later = False
        if built == capability or (is_for_later and built < capability):
            return True
    return not kernels


def remedy(seen: Seen, machine: Machine) -> str:
    """What brings a torch that can use the cards; where there is none, what to do about driver or
    cards.
    """
    build = find_build(machine)
    if build is not None:
        wanted = [f"torch=={seen.version.partition('+')[0]}+{build.name}"]
        if find_spec("torchvision"):  # it is built for one CUDA too
            wanted.append(
                f"torchvision=={metadata.version('torchvision').partition('+')[0]}+{build.name}"
            )
        return (
            f"{sys.executable} -m pip install {' '.join(wanted)} --extra-index-url "
            f"{INDEX}/{build.name}"
        )
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
