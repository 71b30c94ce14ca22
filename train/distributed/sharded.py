"""FSDP2: each rank keeps a part of each parameter, of its gradient and of the optimizer's state.

torch's fully_shard gathers the weights of a block when its forward or backward pass begins, and
adds up its gradients when that has ended. A parameter is cut along its first dimension, in the
order of the ranks.
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


class NotShardable(UserError):
    """A model that FSDP2 cannot divide among the ranks."""


@dataclass(frozen=True)
class Sharding:
    """What the launcher asked for."""

    blocks: tuple[str, ...] = ()
    """Classes of the modules whose weights are gathered together; none: those that a model's lists
    hold.
    """
    reshards: bool = True
    """Whether a block's weights are freed after its forward pass, and gathered once more for its
    backward pass.
    """


def asked_sharding() -> Sharding | None:
    """By the variables with which accelerate's launcher tells its ranks; None: no sharding."""
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return None
    names = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "").split(",")
    return Sharding(
        blocks=tuple(name.strip() for name in names if name.strip()),
        reshards=parse_flag_from_env("FSDP_RESHARD_AFTER_FORWARD", default=True),
    )


# Tensors of which this rank holds a part


def is_part(tensor: object) -> bool:
    return isinstance(tensor, DTensor)


def is_divided(module: nn.Module) -> bool:
    return any(is_part(parameter) for parameter in module.parameters())


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of it, in the same memory; a tensor that is whole, as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def span(tensor: Tensor) -> tuple[int, int]:
    """(start, stop): the rows that this rank holds. Cut as torch.chunk does: the last ranks may
    have fewer, or none.
    """
    rows = len(tensor)
    if not isinstance(tensor, DTensor):
        return 0, rows
    mesh = tensor.device_mesh
    size = -(-rows // mesh.size())
    start = min(mesh.get_local_rank() * size, rows)
    return start, min(start + size, rows)


def as_part(rows: Tensor, like: Tensor) -> Tensor:
    """This rank's `rows` of a tensor that is divided as `like` is."""
    assert isinstance(like, DTensor)
    own = rows.to(like.device)
    return DTensor.from_local(
        own,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def like_one_row(tensor: Tensor) -> Tensor:
    """A zero for each rank, divided as `tensor` is."""
    zero = torch.zeros(1, device=tensor.device, dtype=tensor.dtype)
    if not isinstance(tensor, DTensor):
        return zero
    return DTensor.from_local(zero, tensor.device_mesh, tensor.placements, run_check=False)


# The model


class _Reducing(nn.Module):
    """What a task calls. accelerate asks a wrapper for its `no_sync`."""

    def __init__(self, module: nn.Module, reduces_each: bool) -> None:
        super().__init__()
        self.module = module
        self._reduces_each = reduces_each

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Inside, a backward pass adds to gradients that are not divided, unless
        batch.sync=micro.
        """
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
    writes_state = True  # each rank its own part
    state: HasState | None = None

    def __init__(
        self,
        module: nn.Module,
        ranks: Ranks,
        norm: Callable[[list[Tensor]], Tensor],
        reduces_each: bool,
        second: Callable[[], nn.Module],
    ) -> None:
        """`norm`: that of the tensors of one rank. `second`: makes another such module; torch
        copies none.
        """
        self.second: Callable[[], nn.Module] | None = second
        self.model = _Reducing(module, reduces_each)
        self._ranks = ranks
        self._norm = norm
        self._unused: list[nn.Parameter] = []
        self.note = _note(module, ranks, reduces_each)

    def expect_unused(self, parameters: Sequence[nn.Parameter]) -> None:
        """`parameters`: those that got no gradient in a trial of all ranks. From here on ranks may
        use different ones: they would add up what does not belong together, unless zeros take the
        place of what is not there.
        """
        self._unused = list(parameters)
        module: Any = self.model.module
        if hasattr(module, "set_reduce_scatter_unused_params"):  # from torch 2.13 on
            module.set_reduce_scatter_unused_params(True)

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        """The same function. What got no gradient on any rank has None, which an optimizer leaves
        alone: AdamW lets zeros decay. Looked at, by one more message, where the trial found such
        parameters.
        """
        if not self._unused:
            return compute_gradient

        def looked_through(learner: Any, window: Any) -> Tensor:
            losses = compute_gradient(learner, window)
            found = [p for p in self._unused if p.grad is not None]
            if found:
                norms = self.norms(local(p.grad) for p in found if p.grad is not None)
                for parameter, norm in zip(found, norms.tolist(), strict=True):
                    if norm == 0:
                        parameter.grad = None
            return losses

        return looked_through

    extra = around

    def check(self) -> None:
        pass

    def reduce_late(self, steps: int) -> None:
        pass

    def total_norm(self, gradients: list[Tensor]) -> Tensor:
        own = self._norm([local(gradient) for gradient in gradients])
        square = own.double().square()
        self._ranks.add_up([square])
        return square.sqrt().to(own.dtype)

    def norms(self, tensors: Iterable[Tensor]) -> Tensor:
        """(n,), float64, on the CPU: of tensors of which each rank has a part, as
        `local` gives it.
        """
        squares = torch.stack(
            [torch.linalg.vector_norm(tensor).double().square() for tensor in tensors]
        )
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
    """Divide the weights of `module`, on the CPU, among the ranks, in place: block by block onto
    `device`.

    `blocks`: those whose weights are gathered together; what is in none of them is gathered with
    the model itself. Raises NotShardable.
    """
    _check_parameters(module)
    mesh = init_device_mesh(device.type, (ranks.world_size,))
    # Gradients narrower than float32 are added up in float32, over micro-batches and over ranks.
    policy = (
        MixedPrecisionPolicy(reduce_dtype=torch.float32)
        if _is_narrow(module)
        else MixedPrecisionPolicy()
    )
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=sharding.reshards)
    fully_shard(module, mesh=mesh, mp_policy=policy)
    module.register_forward_hook(_free_after_looking)


def _free_after_looking(module: nn.Module, *_: object) -> None:
    """After a forward pass that no backward pass follows, the gathered weights would stay, and grow
    old unseen.
    """
    if not torch.is_grad_enabled():
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


def _check_parameters(module: nn.Module) -> None:
    scalars = [name for name, p in module.named_parameters() if p.dim() == 0]
    if scalars:
        raise NotShardable(
            f"FSDP2 divides parameters along their first dimension, and {some(scalars)} has none. "
            f"Make it a tensor of shape (1,), or type: LAUNCHER=configs/accelerate/ddp.yaml"
        )


def _is_narrow(module: nn.Module) -> bool:
    return any(torch.promote_types(p.dtype, torch.float32) != p.dtype for p in module.parameters())


def _note(module: nn.Module, ranks: Ranks, reduces_each: bool) -> str:
    own, whole, gradients = 0, 0, 0
    for parameter in module.parameters():
        count = parameter.numel() * parameter.element_size()
        own += local(parameter).nbytes
        whole += count
        gradients += count if parameter.requires_grad else 0
    share = (
        f"FSDP2: each of {ranks.world_size} ranks keeps {format_gib(own / 2**30)} of "
        f"{format_gib(whole / 2**30)} of weights"
    )
    if reduces_each:
        return (
            f"{share}; batch.sync=micro: gradients are added up over the ranks at every micro-step"
        )
    return (
        f"{share}, and whole gradients between micro-steps, {format_gib(gradients / 2**30)}. "
        "batch.sync=micro keeps its part of them, and adds up over the ranks at every micro-step"
    )
