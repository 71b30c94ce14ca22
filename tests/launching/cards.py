"""GPUs that are not there: what torch would see, and programs that answer as NVIDIA's do."""

from pathlib import Path

from train.launching.gpus import Gpu, Seen

A100 = "NVIDIA A100-SXM4-40GB"


def cards(number: int, name: str = A100, capability: tuple[int, int] = (8, 0)) -> Seen:
    """By a torch that can use them."""
    return Seen(
        version="2.13.0+cu130",
        cuda="13.0",
        kernels=("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"),
        gpus=(Gpu(name, capability),) * number,
    )


def nvidia_smi(
    folder: Path, listed: str, driver: str = "", capability: str = "", code: int = 0
) -> Path:
    """A folder for PATH with a program of that name. It answers `-L` and two queries."""
    folder.mkdir(exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text(
        f"#!/bin/sh\ncase \"$*\" in\n  -L) cat <<'EOF'\n{listed}\nEOF\n  exit {code} ;;\n"
        f"  *driver_version*) echo '{driver}' ;;\n  *compute_cap*) echo '{capability}' ;;\nesac\n"
    )
    program.chmod(0o755)
    return folder


def listed(number: int = 1, name: str = A100, instances: int = 0) -> str:
    """As `nvidia-smi -L` prints."""
    lines = []
    for card in range(number):
        lines.append(f"GPU {card}: {name} (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a7{card})")
        for place in range(instances):
            lines.append(
                f"  MIG 1g.5gb      Device  {place}: (UUID: "
                f"MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3{place})"
            )
    return "\n".join(lines)
