"""The learner of a run: accelerate, model and optimizer as the config describes them."""

import os
import random
from collections import defaultdict
from datetime import timedelta

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
)
from torch.nn.parallel import DistributedDataParallel

from train.batch import key_of
from train.config import Config, resolve
from train.optimizer import can_skip_on_device, make_optimizer
from train.ranks import Ranks, check_world_size, meet_after_restart
from train.saved import DTYPES, make_model
from train.schedule import Scaled
from train.step import Learner, Skips
from train.tasks import Task


def connect(config: Config) -> tuple[Accelerator, Ranks]:
    """Meet the other ranks. Raises RuntimeError where others met than were asked for, or in another precision."""
    told, ours = os.environ.get("ACCELERATE_MIXED_PRECISION", "no"), _mixed_precision(config)
    if told not in ("no", ours):
        raise RuntimeError(
            f"the launcher was told mixed precision {told}, the config says precision={config.precision}. "
            f"Leave it to the config: --mixed_precision no (or mixed_precision: 'no' in the launcher file)"
        )
    meet_after_restart(config.runtime.timeout_seconds)
    accelerator = _accelerator(config)
    check_world_size(accelerator.num_processes)
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise RuntimeError(
            f"the launcher file asks for {accelerator.distributed_type.value}; so far ranks work by plain data "
            f"parallelism only. Type: LAUNCHER=configs/accelerate/ddp.yaml"
        )
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        raise RuntimeError("the launcher was told a dynamo backend, which is not supported yet: --dynamo_backend no")
    return accelerator, Ranks(accelerator.process_index, accelerator.num_processes, config.runtime.timeout_seconds)


def _mixed_precision(config: Config) -> str:
    """In accelerate's words."""
    return "bf16" if config.precision == "bf16" else "no"


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
            InitProcessGroupKwargs(timeout=timedelta(seconds=runtime.timeout_seconds)),
        ],
    )


def make_task(config: Config) -> Task:
    task: Task = resolve(config.task.target, "train.tasks")(**config.task.args)
    return task


def make_learner(config: Config, task: Task, accelerator: Accelerator, numbers: Scaled) -> Learner:
    """The model wrapped by accelerate, beside a bare optimizer: a prepared one costs 60 to 390 us per step (1.15)."""
    module = make_model(config)  # the same weights on every rank
    frozen = [part for part in module.modules() if not part.training] if module.training else []
    module.train()
    for part in frozen:  # its owner has put it in eval mode, as one freezes a BatchNorm
        part.training = False
    model = accelerator.prepare(module)
    if isinstance(model, DistributedDataParallel):
        # Buffers are brought together before an evaluation or a save, not in every forward: that would be a second
        # collective per step. (Not an argument: torch 2.13 would warn, and accelerate does not know the new name.)
        model.broadcast_buffers = False
    own = key_of(config.seed, 1 + accelerator.process_index) >> 1  # from here on each rank draws its own
    torch.manual_seed(own)
    random.seed(own)
    np.random.seed(own % 2**32)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = make_optimizer(config.optimizer, numbers, parameters)
    return Learner(
        accelerator=accelerator,
        device=accelerator.device,
        world_size=accelerator.num_processes,
        model=model,
        module=module,
        parameters=parameters,
        dtype=DTYPES[config.precision],
        task=task,
        coefficients=defaultdict(lambda: 1.0, getattr(task, "coefficients", {})),
        optimizer=optimizer,
        skips_on_device=can_skip_on_device(optimizer),
        max_grad_norm=config.optimizer.max_grad_norm,
        stop_at_nonfinite=config.on_nonfinite == "stop",
        skips=Skips(),
    )


def device_facts(device: torch.device) -> dict[str, str | float]:
    """What this rank trains on, and how much memory that has."""
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        return {"device": card.name, "device_memory_gib": card.total_memory / 2**30}
    return {"device": device.type, "device_memory_gib": psutil.virtual_memory().total / 2**30}
