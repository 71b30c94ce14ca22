"""Connect to the other ranks through accelerate, and check that they are those requested."""

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


UNTESTED = {"mps": "an Apple GPU (MPS)", "xpu": "an Intel GPU (XPU)", "rocm": "an AMD GPU (ROCm)"}
"""Devices that torch supports and this project was never run on."""


class Unsupported(UserError):
    """What the config asks for is not supported with this device or this model."""


def trains_on_cpu() -> bool:
    """Whether the launcher asked for the CPU even where there are GPUs. As accelerate reads it."""
    return bool(parse_flag_from_env("ACCELERATE_USE_CPU"))


def check_device() -> None:
    """Raise Unsupported for an untested device, and for a GPU that torch cannot use.

    Before accelerate is called, which would silently use the CPU where torch can open no GPU. Opens
    no CUDA context.
    """
    if trains_on_cpu():
        return
    device = torch.accelerator.current_accelerator(check_available=True)
    # No device may also mean a card that this torch cannot open: with a driver too old for its
    # build, training went to the CPU and ended with exit code 0.
    if device is None or device.type == "cuda":
        trouble = find_trouble(look_by_torch(), os.environ.get("CUDA_VISIBLE_DEVICES"))
        if trouble:
            raise Unsupported(refusal(trouble))
    if device is None:
        return
    # A torch for AMD calls its devices cuda as well; only the version of HIP tells them apart.
    kind = "rocm" if torch.version.hip else device.type
    if kind != "cuda":
        raise Unsupported(
            f"this torch ({torch.__version__}) computes on {UNTESTED.get(kind, kind)}. Only NVIDIA "
            "GPUs (CUDA) and the CPU are supported: no figure of this project was measured on "
            f"another device. To train on the CPU, run: ACCELERATE_USE_CPU=true {LAUNCH} ..."
        )


def connect(config: Config) -> tuple[Accelerator, Ranks]:
    """Connect to the other ranks; check_launcher is to be called before.

    Raises LaunchError where their number is not the requested one, and Unsupported.
    """
    check_device()
    # Before the first connection: gloo's own error comes up to 103 s later, and does not name the
    # variable to set.
    trouble = gloo_trouble(os.environ)
    if trouble:
        raise LaunchError(trouble)
    # Before Accelerator is made, which uses the process group that is there.
    meet_after_restart(_message_timeout_seconds(config))
    with _without_sharding_by_accelerate():
        accelerator = _accelerator(config)
    check_world_size(accelerator.num_processes)
    if accelerator.distributed_type not in DATA_PARALLEL:
        raise LaunchError(
            f"the launcher file asks for {accelerator.distributed_type.value}; so far ranks work "
            "by plain data parallelism only. Set: LAUNCHER=configs/accelerate/ddp.yaml"
        )
    # On a CPU accelerate would silently train in float32.
    if config.precision == "fp16" and accelerator.device.type == "cpu":
        raise Unsupported(
            "precision=fp16 needs a GPU, and this is a CPU. Set: precision=bf16, or precision=fp32"
        )
    return accelerator, Ranks(
        accelerator.process_index, accelerator.num_processes, _message_timeout_seconds(config)
    )


def check_launcher(config: Config) -> None:
    """Raise LaunchError where accelerate's variables contradict the config.

    Its launcher passes its own options to the ranks by them. `config`: as the user wrote it, not a
    variant in another precision.
    """
    settings = list(of_environment(os.environ))
    problems = refused(settings)
    problems += other_precision(settings, lambda: config.precision)
    problems += first_fsdp(settings)
    if problems:
        raise LaunchError("\n".join(f"the launcher was told {problem}" for problem in problems))


def notes_on_arithmetic(module: nn.Module, device: torch.device, config: Config) -> list[str]:
    """For the screen: where float32 is slower here than by torch's defaults."""
    if device.type != "cuda" or config.precision != "fp32" or config.runtime.tf32:
        return []
    has_convolution = any(isinstance(part, CONVOLUTIONS) for part in module.modules())
    if not has_convolution or not torch.cuda.is_tf32_supported():
        return []
    return [
        "convolutions are computed in float32; torch's default rounds their inputs to TF32, which "
        "is faster and not exact. Set: runtime.tf32=true"
    ]


@contextmanager
def _without_sharding_by_accelerate() -> Iterator[None]:
    """Inside, accelerate does not read that FSDP is requested.

    accelerate 1.15 would compute in bf16 weights in place of autocast, and on a CPU silently use
    DDP. train/distributed/sharded.py shards the model instead, in the same way on both.
    """
    requested = os.environ.pop("ACCELERATE_USE_FSDP", None)
    try:
        yield
    finally:
        if requested is not None:
            os.environ["ACCELERATE_USE_FSDP"] = requested


def _message_timeout_seconds(config: Config) -> float:
    """The time-out of a collective, until the watchdog runs and replaces it."""
    return config.runtime.timeout_seconds + max(60, config.runtime.timeout_seconds)


def _mixed_precision(config: Config) -> str:
    """The config's precision by accelerate's names."""
    return config.precision if config.precision in ("bf16", "fp16") else "no"


def _accelerator(config: Config) -> Accelerator:
    runtime = config.runtime
    # The bound that a run promises for float32 (docs/exactness.md) is that of full products. TF32
    # has a bound of its own, a thousand times as wide.
    torch.set_float32_matmul_precision("high" if runtime.tf32 else "highest")
    # torch's default is True, for convolutions alone: they would not keep the bound of float32.
    # notes_on_arithmetic says so.
    torch.backends.cudnn.allow_tf32 = runtime.tf32
    if runtime.deterministic:
        # Without a fixed workspace torch refuses cuBLAS in deterministic mode. What the user has
        # set is kept.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return Accelerator(
        mixed_precision=_mixed_precision(config),
        # Stated, as ACCELERATE_GRADIENT_ACCUMULATION_STEPS in the environment would else divide the
        # loss in every backward.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[
            # Saves one copy of the gradients: .grad are views of DDP's buckets.
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            # The loop's own scaler scales the loss; `backward` would do it a second time.
            GradScalerKwargs(enabled=False),
            InitProcessGroupKwargs(timeout=timedelta(seconds=_message_timeout_seconds(config))),
        ],
    )


def free_memory(device: torch.device) -> None:
    """Free unreferenced tensors, and what the allocator has cached, after an out-of-memory."""
    # An error and its frames refer to each other: without this they live until Python collects.
    gc.collect()
    # Cached blocks of the old sizes may be of no use for smaller tensors.
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()
