"""FSDP2: each rank holds a shard of each parameter, its gradient and its optimizer state.

torch's fully_shard gathers the weights of a block when its forward or backward pass begins, and
reduces its gradients when that has ended. A parameter is sharded along its first dimension, in rank
order.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from train.comparison.formatting import format_gib
from train.distributed.flat_buckets import ComputeGradient
from train.distributed.norms import clip_gradients
from train.distributed.ranks import Ranks
from train.errors import UserError, some
from train.parts import HasState

OLDEST_TORCH = (2, 13)
"""With torch 2.8 and 2.9 no model could be trained by FSDP2 (fused SGD, the trial before the first
step); the versions between were not tried.
"""


class NotShardable(UserError):
    """A model that FSDP2 cannot shard."""


@dataclass(frozen=True)
class Sharding:
    """What the launcher asked for."""

    blocks: tuple[str, ...] = ()
    """Classes of the modules whose weights are gathered together; empty: members of ModuleLists."""
    reshards: bool = True
    """Whether weights are freed after a block's forward pass, and gathered again for backward."""


def asked_sharding() -> Sharding | None:
    """What accelerate's launcher asks its ranks for, by variables; None: no sharding."""
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return None
    names = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "").split(",")
    return Sharding(
        blocks=tuple(name.strip() for name in names if name.strip()),
        reshards=parse_flag_from_env("FSDP_RESHARD_AFTER_FORWARD", default=True),
    )


# Sharded tensors


def is_part(tensor: object) -> bool:
    return isinstance(tensor, DTensor)


def is_divided(module: nn.Module) -> bool:
    return any(is_part(parameter) for parameter in module.parameters())


def local(tensor: Tensor) -> Tensor:
    """This rank's shard, in the same memory; a tensor that is not sharded, as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def span(tensor: Tensor) -> tuple[int, int]:
    """(start, stop) of this rank's rows. Split as by torch.chunk: the last ranks may have none."""
    rows = len(tensor)
    if not isinstance(tensor, DTensor):
        return 0, rows
    mesh = tensor.device_mesh
    size = -(-rows // mesh.size())
    start = min(mesh.get_local_rank() * size, rows)
    return start, min(start + size, rows)


def as_part(rows: Tensor, like: Tensor) -> Tensor:
    """A tensor sharded as `like`, of which this rank holds `rows`."""
    assert isinstance(like, DTensor)
    # run_check would cost messages. Shape and stride are stated, since ranks may hold different
    # numbers of rows.
    return DTensor.from_local(
        rows.to(like.device),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def like_one_row(tensor: Tensor) -> Tensor:
    """One zero on each rank, sharded as `tensor`."""
    zero = torch.zeros(1, device=tensor.device, dtype=tensor.dtype)
    if not isinstance(tensor, DTensor):
        return zero
    return DTensor.from_local(zero, tensor.device_mesh, tensor.placements, run_check=False)


# The model


class _Reducing(nn.Module):
    """What a task calls. accelerate's no_sync calls that of the wrapper."""

    def __init__(self, module: nn.Module, reduces_each: bool) -> None:
        super().__init__()
        self.module = module
        self._reduces_each = reduces_each

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Inside, a backward pass adds to unsharded gradients, unless batch.sync=micro."""
        module: Any = self.module
        module.set_requires_gradient_sync(self._reduces_each)
        try:
            yield
        finally:
            module.set_requires_gradient_sync(True)


class Sharded:
    """The `learner.parallel` of FSDP2."""

    is_sharded = True
    frees_gradients = True
    writes_state = True  # each rank its shard
    state: HasState | None = None

    def __init__(
        self,
        module: nn.Module,
        ranks: Ranks,
        norm: Callable[[list[Tensor]], Tensor],
        reduces_each: bool,
        second: Callable[[], nn.Module],
    ) -> None:
        """`norm`: of the tensors of one rank. `second`: makes another such module, as deepcopy
        of a sharded one does not work.
        """
        self.second: Callable[[], nn.Module] | None = second
        self.model = _Reducing(module, reduces_each)
        self._ranks = ranks
        self._norm = norm
        self._unused: list[nn.Parameter] = []
        self.note = _note(module, ranks, reduces_each)

    def expect_unused(self, parameters: Sequence[nn.Parameter]) -> None:
        """Let ranks use different parameters. `parameters`: those without gradient in a trial.

        FSDP reduces the gradients of a block in one flat buffer: without zeros for the missing
        ones, ranks would sum gradients of different parameters.
        """
        self._unused = list(parameters)
        module: Any = self.model.module
        if hasattr(module, "set_reduce_scatter_unused_params"):  # from torch 2.13 on
            module.set_reduce_scatter_unused_params(True)

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        """The same function; a parameter without gradient on all ranks then has None.

        An optimizer skips None; with zeros AdamW would decay the weights. It costs one message a
        step, where the trial found such parameters.
        """
        if not self._unused:
            return compute_gradient

        def without_zeros(learner: Any, window: Any) -> Tensor:
            losses = compute_gradient(learner, window)
            # FSDP has put zeros in place of what is missing. A norm of 0 over all ranks means that
            # no rank used the parameter.
            candidates = [p for p in self._unused if p.grad is not None]
            if candidates:
                norms = self.norms(local(p.grad) for p in candidates if p.grad is not None)
                for parameter, norm in zip(candidates, norms.tolist(), strict=True):
                    if norm == 0:
                        parameter.grad = None
            return losses

        return without_zeros

    extra = around

    def check(self) -> None:
        pass

    def reduce_late(self, steps: int) -> None:
        pass

    def total_norm(self, gradients: list[Tensor]) -> Tensor:
        norm = self._norm([local(gradient) for gradient in gradients])
        # Each rank holds other rows, so the squares add up.
        square = norm.double().square()
        self._ranks.add_up([square])
        return square.sqrt().to(norm.dtype)

    def norms(self, tensors: Iterable[Tensor]) -> Tensor:
        """(n,), float64, on the CPU: of sharded tensors. `tensors`: their `local` shards."""
        norms = torch.stack([torch.linalg.vector_norm(tensor).double() for tensor in tensors])
        squares = norms.square()
        self._ranks.add_up([squares])
        return squares.sqrt().cpu()

    @staticmethod
    def clip(gradients: list[Tensor], max_norm: float, norm: Tensor) -> None:
        clip_gradients([local(gradient) for gradient in gradients], max_norm, norm)


def shard(
    module: nn.Module,
    blocks: Iterable[nn.Module],
    sharding: Sharding,
    device: torch.device,
    ranks: Ranks,
) -> None:
    """Shard the weights of `module`, which is on the CPU, in place: block by block onto `device`.

    `blocks`: those whose weights are gathered together; what is in none of them is gathered with
    the model itself. Raises NotShardable.
    """
    _check_torch(torch.__version__)
    _check_parameters(module)
    mesh = init_device_mesh(device.type, (ranks.world_size,))
    policy = MixedPrecisionPolicy()
    if _is_narrow(module):
        # Gradients narrower than float32 are summed in float32, over micro-batches and ranks.
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    # Inner modules first: the model itself then takes what no block has taken.
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=sharding.reshards)
    fully_shard(module, mesh=mesh, mp_policy=policy)
    module.register_forward_hook(_free_after_inference)


def _free_after_inference(module: nn.Module, *_: object) -> None:
    """Without a backward pass the gathered weights would stay in memory, and become outdated."""
    if not torch.is_grad_enabled():
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


def _check_torch(version: str) -> None:
    numbers = version.split(".")[:2]
    if tuple(map(int, numbers)) < OLDEST_TORCH:
        needed = ".".join(map(str, OLDEST_TORCH))
        raise NotShardable(
            f"FSDP2 needs torch {needed} or later, and this is torch {version}. Run: pip install "
            f"'torch>={needed}', or set: LAUNCHER=configs/accelerate/ddp.yaml"
        )


def _check_parameters(module: nn.Module) -> None:
    scalars = [name for name, p in module.named_parameters() if p.dim() == 0]
    if scalars:
        raise NotShardable(
            f"FSDP2 shards parameters along their first dimension, and {some(scalars)} has none. "
            "Make it a tensor of shape (1,), or set: LAUNCHER=configs/accelerate/ddp.yaml"
        )


def _is_narrow(module: nn.Module) -> bool:
    return any(torch.promote_types(p.dtype, torch.float32) != p.dtype for p in module.parameters())


def _note(module: nn.Module, ranks: Ranks, reduces_each: bool) -> str:
    local_bytes = 0
    total_bytes = 0
    gradient_bytes = 0
    for parameter in module.parameters():
        nbytes = parameter.numel() * parameter.element_size()
        local_bytes += local(parameter).nbytes
        total_bytes += nbytes
        if parameter.requires_grad:
            gradient_bytes += nbytes
    share = (
        f"FSDP2: each of {ranks.world_size} ranks keeps {format_gib(local_bytes / 2**30)} of "
        f"{format_gib(total_bytes / 2**30)} of weights"
    )
    if reduces_each:
        return f"{share}; batch.sync=micro: gradients are reduced at every micro-step"
    return (
        f"{share}, and unsharded gradients between micro-steps, "
        f"{format_gib(gradient_bytes / 2**30)}. "
        "batch.sync=micro keeps its shard of them, and reduces at every micro-step"
    )
