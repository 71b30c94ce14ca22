"""The learner of a run: model, optimizer, and how the ranks share the work on them."""

from typing import Any

import psutil
import torch
from accelerate import Accelerator
from torch import nn

from train.chunked_loss import chunk_loss
from train.config import Config
from train.data import Datasets, Fitted
from train.data.device_prefetch import Feed
from train.distributed.accelerator import Unsupported, notes_on_arithmetic
from train.distributed.norms import norm_for
from train.distributed.parallel import Parallel, Tried, parallelize, place
from train.distributed.ranks import Ranks
from train.distributed.replicated import Replicated
from train.distributed.sharded import NotShardable, Sharded, Sharding, asked_sharding, shard
from train.errors import some
from train.exactness.first_backward import first_backward, samples_of_rank, watch_foreign
from train.exactness.same_model import check_same_weights
from train.installation import LAUNCH
from train.models.activation_checkpointing import checkpoint_blocks, listed_blocks
from train.models.cast_arguments import cast_arguments
from train.models.init_from import initial_model, initial_scaling
from train.models.make import parameter_dtype
from train.models.modes import set_training
from train.models.precision import notes_on_precision
from train.models.scaling import STATE, Scaling, of_images, scaling_of
from train.optim.optimizer import OptimizerState, can_skip_on_device, make_optimizer, scaled_numbers
from train.optim.skipped_steps import SkippedSteps
from train.parts import HasState
from train.randomness import seed_of_rank
from train.step import Learner
from train.tasks import Task, coefficients_of


def make_learner(
    config: Config,
    task: Task,
    accelerator: Accelerator,
    effective_batch: int,
    ranks: Ranks,
    fitted: Fitted | None = None,
) -> Learner:
    """The model and a bare optimizer, whose numbers follow `effective_batch`.

    share_work must be called before the first step. `fitted`: what data.normalize has measured.
    """
    # The optimizer is not prepared by accelerate: that costs 60 to 390 us per step (accelerate
    # 1.15), and here the loop owns skipping and the loss scale.
    sharding = _asked_sharding(config, ranks)
    scaling = ranks.together(lambda: initial_scaling(config, _scaling(config, fitted)))
    module, notes = _make_module(config, task, accelerator, ranks, sharding, scaling)
    parallel: Parallel = Replicated(module, ranks)
    if sharding:

        def second() -> nn.Module:
            return _make_module(config, task, accelerator, ranks, sharding, scaling)[0]

        reduces_each = config.batch.sync == "micro"
        parallel = Sharded(module, ranks, norm_for(module), reduces_each, second)
    # Frozen parameters get no state in the optimizer, and no decay.
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    numbers = scaled_numbers(config.optimizer, effective_batch)
    optimizer = make_optimizer(config.optimizer, numbers, trained)
    device = accelerator.device
    if device.type == "cpu":
        # When launched, accelerate's device is cpu:0, and torch would copy each batch from cpu.
        device = torch.device("cpu")
    dtype = parameter_dtype(config)
    return Learner(
        accelerator=accelerator,
        device=device,
        world_size=accelerator.num_processes,
        parallel=parallel,
        model=parallel.model,
        module=module,
        parameters=list(trained.values()),
        dtype=dtype,
        feed=Feed(device, dtype),
        task=task,
        coefficients=coefficients_of(task),
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=config.precision == "fp16"),
        # A CPU's host reads the flag at no cost; given to the optimizer, it costs 20 us.
        skips_on_device=device.type != "cpu" and can_skip_on_device(optimizer),
        max_grad_norm=config.optimizer.max_grad_norm,
        stop_at_nonfinite=config.on_nonfinite == "stop",
        skips=SkippedSteps(),
        notes=notes,
    )


def _asked_sharding(config: Config, ranks: Ranks) -> Sharding | None:
    """Raises Unsupported for a way of reducing that needs it."""
    # One rank has nothing to divide, whatever the launcher file says.
    sharding = asked_sharding() if ranks.world_size > 1 else None
    if config.batch.sync == "micro" and not sharding:
        raise Unsupported(
            "batch.sync=micro saves memory where weights are divided among several ranks, and here "
            "each rank holds all of them. Leave it out, or run: "
            f"LAUNCHER=configs/accelerate/fsdp2.yaml NPROC=2 {LAUNCH} ..."
        )
    return sharding


def _scaling(config: Config, fitted: Fitted | None) -> Scaling | None:
    """The layer in front of the model that data.normalize or data.image asks for."""
    dtype = parameter_dtype(config)
    image = config.data.image
    if fitted is not None:
        return Scaling(fitted.mean, fitted.deviation, dtype)
    if image.mean:
        return of_images(image.mean, image.std, dtype)
    return None


def _make_module(
    config: Config,
    task: Task,
    accelerator: Accelerator,
    ranks: Ranks,
    sharding: Sharding | None,
    scaling: Scaling | None,
) -> tuple[nn.Module, list[str]]:
    """(the model on its device, sharded if `sharding` says so; notes for the screen)"""
    # Order: what replaces a forward stands before compile, which traces what is there; all stand
    # before the model is wrapped, so that names stay its own.
    module = ranks.together(lambda: initial_model(config))  # the same weights on every rank
    notes = set_training(module)
    chunk_loss(module, task, config.memory.chunked_loss)
    checkpoint_blocks(module, config.memory.activation_checkpointing)
    dtype = parameter_dtype(config)
    notes += notes_on_precision(module, dtype)
    notes += notes_on_arithmetic(module, accelerator.device, config)
    cast_arguments(module, dtype)
    if scaling is not None:
        scaling.install(module)
    compile_model(module, config.model.compile)
    module = place(module, accelerator, moves=sharding is None)
    # Each rank then keeps its part alone, so that a difference could not be found any more.
    if sharding:
        check_same_weights(module, ranks)
        ranks.together(
            lambda: shard(module, _blocks(module, sharding), sharding, accelerator.device, ranks)
        )
    return module, notes


def share_work(learner: Learner, sets: Datasets, config: Config, ranks: Ranks) -> None:
    """Put DDP, or another kind of parallelism, around the module, after one backward pass on each
    rank.

    Called after preflight, which reports what is wrong with model or data. Raises ForeignGradient.
    """
    parallel = learner.parallel
    # A forward pass of a sharded model is one of all ranks: on the same samples they take the same
    # branches, and gather the same blocks.
    samples = samples_of_rank(sets, config.seed, ranks, same=parallel.is_sharded)
    # One seed for all ranks where they share a forward pass: they must take the same branches.
    seed = seed_of_rank(config.seed, 0 if parallel.is_sharded else ranks.rank)
    order = ranks.together(lambda: first_backward(learner, samples, seed))
    trained = [name for name, p in learner.module.named_parameters() if p.requires_grad]
    trained_without = set(trained) - set(order)
    watch_foreign(learner)
    if isinstance(parallel, Sharded):  # sharded when it was made
        parallel.expect_unused(
            [p for name, p in learner.module.named_parameters() if name in trained_without]
        )
        return
    # DDP must know beforehand which parameters get no gradient: in its reduction the ranks would
    # wait for each other forever.
    # Unused on any rank: the set must be alike on all of them.
    unused = set().union(*ranks.gather(trained_without))
    # Rank 0's order for all: the ranks would else reduce different buckets with each other.
    tried = Tried(
        order=ranks.from_main(lambda: order), unused=[name for name in trained if name in unused]
    )
    learner.parallel = parallelize(
        learner.module, learner.accelerator, ranks, learner.dtype, config.runtime.reduction, tried
    )
    learner.model = learner.parallel.model


def _blocks(module: nn.Module, sharding: Sharding) -> list[nn.Module]:
    """The modules whose weights are gathered together, those inside of others first.

    Raises NotShardable for a class that the model has not.
    """
    kinds = {type(part).__name__: part for part in module.modules()}
    for name in sharding.blocks:
        if name not in kinds:
            raise NotShardable(
                f"fsdp_transformer_layer_cls_to_wrap={name}: the model has no module of this "
                f"class. Its classes are {some(sorted(kinds), 12)}. Leave it out to take the "
                "layers in the model's nn.ModuleLists"
            )
    if not sharding.blocks:
        return listed_blocks(module)
    # modules() gives parents first: the order is reversed below.
    named = [
        part
        for part in module.modules()
        if type(part).__name__ in sharding.blocks and part is not module
    ]
    return named[::-1]


def compile_model(module: nn.Module, wanted: bool | str) -> None:
    """Compile in place: the module, its type and its names stay; DDP is put around it afterwards.

    torch.compile knows when it is called inside DDP's forward and cuts its graph where DDP's
    buckets end. Raises Unsupported.
    """
    if not wanted:
        return
    backend = "inductor" if wanted is True else wanted
    if backend not in torch.compiler.list_backends(exclude_tags=()):
        known = ", ".join(torch.compiler.list_backends())
        raise Unsupported(
            f"model.compile={backend}: torch has the backends {known}. Set: model.compile=true"
        )
    module.compile(backend=backend)


def kept_states(learner: Learner) -> dict[str, HasState]:
    """What a checkpoint holds of a learner beside its model."""
    states: dict[str, HasState] = {
        "optimizer": OptimizerState(learner.optimizer),
        "skips": learner.skips,
        "scaler": learner.scaler,
    }
    # Absent where there is nothing to keep: a checkpoint has no key for it.
    for name, state in (("parallel", learner.parallel.state), (STATE, scaling_of(learner.module))):
        if state is not None:
            states[name] = state
    return states


def notes_of(learner: Learner) -> list[str]:
    """For the screen: what was decided about the model, and what a checkpoint has brought."""
    notes = [*learner.notes]
    if learner.parallel.note:
        notes.append(learner.parallel.note)
    scaling = scaling_of(learner.module)
    if scaling is not None and scaling.note:
        notes.append(scaling.note)
    return notes


def summary(learner: Learner) -> dict[str, Any]:
    """What plan.json, W&B and the screen say of the model and of what this rank trains it on."""
    parameters = list(learner.module.parameters())
    facts = {
        "parameters": sum(p.numel() for p in parameters),
        "parameters_gib": sum(p.numel() * p.element_size() for p in parameters) / 2**30,
    }
    if learner.device.type == "cuda":
        card = torch.cuda.get_device_properties(learner.device)
        return facts | {"device": card.name, "device_memory_gib": card.total_memory / 2**30}
    total = psutil.virtual_memory().total
    return facts | {"device": learner.device.type, "device_memory_gib": total / 2**30}
