"""Meet the other ranks through accelerate, and see that they are those that were asked for."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    GradScalerKwargs,
    InitProcessGroupKwargs,
    parse_flag_from_env,
)
from torch import nn

from train.config import Config
from train.distributed.ranks import LaunchError, Ranks, check_world_size, meet_after_restart
from train.errors import UserError
from train.installation import LAUNCH
from train.launching.addresses import gloo_trouble
from train.launching.gpus import find_trouble, look_by_torch, refusal
from train.launching.launcher_check import first_fsdp, of_environment, other_precision, refused

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
DATA_PARALLEL = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)


UNTRIED = {"mps": "an Apple GPU (MPS)", "xpu": "an Intel GPU (XPU)", "rocm": "an AMD GPU (ROCm)"}
"""Devices that torch knows and that nothing here was tried on, by name."""


class Unsupported(UserError):
    """What the config asks for cannot be had with this device or this model."""


def trains_on_cpu() -> bool:
    """Whether the launcher asked for the CPU, GPUs or not: then no GPU is looked at. As accelerate
    reads it.
    """
    return bool(parse_flag_from_env("ACCELERATE_USE_CPU"))


def check_device() -> None:
    """Raise Unsupported for a device that nothing here was tried on, and for a GPU that torch
    cannot use.

    Before accelerate takes it, or takes the CPU where torch can open no GPU. No context is opened
    by asking.
    """
    if trains_on_cpu():
        return
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None or found.type == "cuda":
        trouble = find_trouble(look_by_torch(), os.environ.get("CUDA_VISIBLE_DEVICES"))
        if trouble:
            raise Unsupported(refusal(trouble))
    if found is None:
        return
    kind = "rocm" if torch.version.hip else found.type
    if kind != "cuda":
        raise Unsupported(
            f"this torch ({torch.__version__}) computes on {UNTRIED.get(kind, kind)}. Only NVIDIA "
            "GPUs (CUDA) and the CPU are supported: no figure of this project was measured on "
            f"another device. To train on the CPU, type: ACCELERATE_USE_CPU=true {LAUNCH} ..."
        )


def connect(config: Config) -> tuple[Accelerator, Ranks]:
    """Meet the other ranks; check_launcher comes before it.

    Raises LaunchError where others met than were asked for, and Unsupported.
    """
    check_device()
    trouble = gloo_trouble(os.environ)
    if trouble:
        raise LaunchError(trouble)
    meet_after_restart(_patience(config))
    with _no_sharding_by_accelerate():
        accelerator = _accelerator(config)
    check_world_size(accelerator.num_processes)
    if accelerator.distributed_type not in DATA_PARALLEL:
        raise LaunchError(
            f"the launcher file asks for {accelerator.distributed_type.value}; so far ranks work "
            "by plain data parallelism only. Type: LAUNCHER=configs/accelerate/ddp.yaml"
        )
    # accelerate would train in float32 on a CPU, without a word.
    if config.precision == "fp16" and accelerator.device.type == "cpu":
        raise Unsupported(
            "precision=fp16 needs a GPU, and this is a CPU. Type: precision=bf16, or precision=fp32"
        )
    return accelerator, Ranks(
        accelerator.process_index, accelerator.num_processes, _patience(config)
    )


def check_launcher(config: Config) -> None:
    """accelerate hands its own options to the ranks through the environment: they must not
    contradict the config.

    Raises LaunchError. Of the config that the user wrote, not of a variant in another precision.
    """
    asked = list(of_environment(os.environ))
    problems = refused(asked) + other_precision(asked, lambda: config.precision) + first_fsdp(asked)
    if problems:
        raise LaunchError("\n".join(f"the launcher was told {problem}" for problem in problems))


def notes_on_arithmetic(module: nn.Module, device: torch.device, config: Config) -> list[str]:
    """For the screen: where float32 is slower here than by torch's defaults."""
    if device.type != "cuda" or config.precision != "fp32" or config.runtime.tf32:
        return []
    if (
        not any(isinstance(part, CONVOLUTIONS) for part in module.modules())
        or not torch.cuda.is_tf32_supported()
    ):
        return []
    return [
        "convolutions are computed in float32; torch's default rounds their inputs to TF32, which "
        "is faster and not exact. Set: runtime.tf32=true"
    ]


@contextmanager
def _no_sharding_by_accelerate() -> Iterator[None]:
    """accelerate 1.15 would compute in bf16 weights in place of autocast; on a CPU it takes DDP
    without a word.

    The ranks are divided by train/distributed/sharded.py instead, in the same way on both.
    """
    asked = os.environ.pop("ACCELERATE_USE_FSDP", None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ["ACCELERATE_USE_FSDP"] = asked


def _patience(config: Config) -> float:
    """Seconds that a message waits for the others, until the watchdog looks after that."""
    return config.runtime.timeout_seconds + max(60, config.runtime.timeout_seconds)


def _mixed_precision(config: Config) -> str:
    """In accelerate's words."""
    return config.precision if config.precision in ("bf16", "fp16") else "no"


def _accelerator(config: Config) -> Accelerator:
    runtime = config.runtime
    torch.set_float32_matmul_precision("high" if runtime.tf32 else "highest")
    # torch's default is True, for convolutions alone: they would not keep the bound of float32.
    # notes_on_arithmetic says so.
    torch.backends.cudnn.allow_tf32 = runtime.tf32
    if runtime.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return Accelerator(
        mixed_precision=_mixed_precision(config),
        # A plugin of 1: ACCELERATE_GRADIENT_ACCUMULATION_STEPS in the environment would divide
        # every backward.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[
            # Saves one copy of the gradients.
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            # The loop's own scaler scales the loss; `backward` would do it a second time.
            GradScalerKwargs(enabled=False),
            InitProcessGroupKwargs(timeout=timedelta(seconds=_patience(config))),
        ],
    )


def free_memory(device: torch.device) -> None:
    """Give back what nobody holds any more, once an out-of-memory has been dealt with.

    Errors and frames hold each other; and what the allocator keeps in pieces of the old sizes may
    be of no use to smaller ones.
    """
    gc.collect()
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()
