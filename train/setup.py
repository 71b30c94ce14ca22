"""The learner of a run: accelerate, model and optimizer as the config describes them."""

import os
from collections import defaultdict
from datetime import timedelta

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    GradScalerKwargs,
    InitProcessGroupKwargs,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from train import names
from train.batch import key_of
from train.blocks import checkpoint_blocks
from train.config import Config, resolve
from train.feed import Feed
from train.generators import seed_generators
from train.initial import initial_model
from train.optimizer import can_skip_on_device, make_optimizer
from train.ranks import Ranks, check_world_size, meet_after_restart
from train.reduction import is_explicit
from train.saved import parameter_dtype
from train.schedule import Scaled
from train.skips import Skips
from train.step import Learner
from train.tasks import Task


class Unsupported(ValueError):
    """What the config asks for cannot be had with this device or this model."""


def connect(config: Config) -> tuple[Accelerator, Ranks]:
    """Meet the other ranks.

    Raises RuntimeError where others met than were asked for, or in another precision, and Unsupported.
    """
    told, ours = os.environ.get("ACCELERATE_MIXED_PRECISION", "no"), _mixed_precision(config)
    if told not in ("no", ours):
        raise RuntimeError(
            f"the launcher was told mixed precision {told}, the config says precision={config.precision}. "
            f"Leave it to the config: --mixed_precision no (or mixed_precision: 'no' in the launcher file)"
        )
    meet_after_restart(_patience(config))
    accelerator = _accelerator(config)
    check_world_size(accelerator.num_processes)
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise RuntimeError(
            f"the launcher file asks for {accelerator.distributed_type.value}; so far ranks work by plain data "
            f"parallelism only. Type: LAUNCHER=configs/accelerate/ddp.yaml"
        )
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        raise RuntimeError(
            "the launcher was told a dynamo backend: --dynamo_backend no, and model.compile=true instead"
        )
    if config.precision == "fp16" and accelerator.device.type == "cpu":  # accelerate would train in float32, in silence
        raise Unsupported("precision=fp16 needs a GPU, and this is a CPU. Type: precision=bf16, or precision=fp32")
    return accelerator, Ranks(accelerator.process_index, accelerator.num_processes, _patience(config))


def _patience(config: Config) -> float:
    """Seconds that a message waits for the others: a little longer than the watchdog, which knows more to say."""
    return config.runtime.timeout_seconds + max(60, config.runtime.timeout_seconds)


def _mixed_precision(config: Config) -> str:
    """In accelerate's words."""
    return config.precision if config.precision in ("bf16", "fp16") else "no"


def _accelerator(config: Config) -> Accelerator:
    runtime = config.runtime
    torch.set_float32_matmul_precision("high" if runtime.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = runtime.tf32
    if runtime.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return Accelerator(
        mixed_precision=_mixed_precision(config),
        # A plugin of 1: ACCELERATE_GRADIENT_ACCUMULATION_STEPS in the environment would divide every backward.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),  # saves one copy of the gradients
            GradScalerKwargs(enabled=False),  # the loop's own scales the loss; `backward` would do it a second time
            InitProcessGroupKwargs(timeout=timedelta(seconds=_patience(config))),
        ],
    )


def make_task(config: Config) -> Task:
    task: Task = resolve(config.task.target, "train.tasks")(**config.task.args)
    return task


def make_learner(config: Config, task: Task, accelerator: Accelerator, numbers: Scaled, ranks: Ranks) -> Learner:
    """The model wrapped by accelerate, beside a bare optimizer: a prepared one costs 60 to 390 us per step (1.15)."""
    module = ranks.together(lambda: initial_model(config))  # the same weights on every rank
    if isinstance(module, DistributedDataParallel):
        raise Unsupported(f"{config.model.target} returns a model inside DDP: return the plain one; it is wrapped here")
    frozen = [part for part in module.modules() if not part.training] if module.training else []
    module.train()
    for part in frozen:  # its owner has put it in eval mode, as one freezes a BatchNorm
        part.training = False
    checkpoint_blocks(module, config.memory.activation_checkpointing)
    compile_model(module, config.model.compile)
    dtype = parameter_dtype(config)
    # "For evaluation" is accelerate's word for a model without DDP: train/reduction.py reduces its gradients.
    model = accelerator.prepare_model(module, evaluation_mode=is_explicit(dtype))
    if isinstance(model, DistributedDataParallel):
        # Buffers are brought together before an evaluation or a save, not in every forward: that would be a second
        # collective per step. (Not an argument: torch 2.13 would warn, and accelerate does not know the new name.)
        model.broadcast_buffers = False
        _check_static_graph(model)
    seed_generators(key_of(config.seed, 1 + accelerator.process_index) >> 1)  # from here on each rank draws its own
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    parameters = list(trained.values())
    optimizer = make_optimizer(config.optimizer, numbers, trained)
    return Learner(
        accelerator=accelerator,
        device=accelerator.device,
        world_size=accelerator.num_processes,
        model=model,
        module=module,
        parameters=parameters,
        dtype=dtype,
        feed=Feed(accelerator.device, dtype),
        task=task,
        coefficients=defaultdict(lambda: 1.0, getattr(task, "coefficients", {})),
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(accelerator.device.type, enabled=config.precision == "fp16"),
        skips_on_device=can_skip_on_device(optimizer),
        max_grad_norm=config.optimizer.max_grad_norm,
        stop_at_nonfinite=config.on_nonfinite == "stop",
        skips=Skips(),
    )


def compile_model(module: nn.Module, wanted: bool | str) -> None:
    """Compile in place: the module, its names and its type stay the user's own, and DDP is put around it afterwards.

    torch.compile knows when it is called inside DDP's forward and cuts its graph where DDP's buckets end. Raises
    Unsupported.
    """
    if not wanted:
        return
    backend = "inductor" if wanted is True else wanted
    if backend not in torch.compiler.list_backends(exclude_tags=()):
        known = torch.compiler.list_backends()
        raise Unsupported(
            f"model.compile={backend}: torch has the backends {', '.join(known)}. Type: model.compile=true"
        )
    module.compile(backend=backend)


def _check_static_graph(model: DistributedDataParallel) -> None:
    """With no_sync it ends in an internal assertion of torch (2.13; accelerate issue 3679). No key of ours sets it."""
    if model.static_graph:
        raise Unsupported(
            "DDP's static_graph=True does not work with several micro-steps per step. Take it out of the "
            "DistributedDataParallelKwargs in train/setup.py"
        )


def loss_scale(scaler: torch.amp.GradScaler) -> dict[str, float]:
    """What float16's loss is multiplied by in the next step; the host waits for the device here."""
    return {names.LOSS_SCALE: scaler.get_scale()} if scaler.is_enabled() else {}


def device_facts(device: torch.device) -> dict[str, str | float]:
    """What this rank trains on, and how much memory that has."""
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        return {"device": card.name, "device_memory_gib": card.total_memory / 2**30}
    return {"device": device.type, "device_memory_gib": psutil.virtual_memory().total / 2**30}
