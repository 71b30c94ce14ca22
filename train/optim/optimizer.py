"""The optimizer of a run, its numbers scaled to the effective batch."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from train.batch import BatchPlan
from train.checkpoint.shards import Stored, sharded_like
from train.config import resolve
from train.config.name_patterns import matching
from train.config.recipe import Optimizer as OptimizerConfig
from train.distributed.sharded import is_part, like_one_row
from train.errors import UserError, ends_in_a_sentence
from train.optim.batch_scaling import Change, Scaled, scale

SCALED = ("betas", "eps", "weight_decay")
"""Arguments of an optimizer that a rule may change."""


COUPLED = (
    *(
        torch.optim.SGD,
        torch.optim.ASGD,
        torch.optim.Adam,
        torch.optim.Adamax,
        torch.optim.NAdam,
        torch.optim.RAdam,
    ),
    *(torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.RMSprop),
)
"""torch's optimizers that add weight_decay to the gradient, unless they are told otherwise."""


class OptimizerError(UserError):
    """An optimizer that cannot be made as the config says."""


def change_of(config: OptimizerConfig, effective_batch: int) -> Change | None:
    """What a rule for this batch and this optimizer goes by. None: no reference is stated."""
    if config.lr_reference_batch is None:
        return None
    target = resolve(config.target, "torch.optim")
    kind = target if isinstance(target, type) else object
    is_decoupled = issubclass(kind, torch.optim.AdamW) or not issubclass(kind, COUPLED)
    return Change(
        batch=effective_batch,
        reference=config.lr_reference_batch,
        noise_scale=config.noise_scale,
        is_adaptive=not issubclass(kind, torch.optim.SGD | torch.optim.ASGD),
        is_decoupled=is_decoupled or bool(config.args.get("decoupled_weight_decay")),
    )


def scaled_numbers(config: OptimizerConfig, effective_batch: int) -> Scaled:
    """Peak learning rate and arguments at this effective batch."""
    defaults = _defaults(config)
    change = change_of(config, effective_batch)
    scaled = scale(config.lr_scaling, config.lr, defaults | config.args, change)
    changed = {n: v for n, v in scaled.args.items() if n in config.args or v != defaults[n]}
    rows, groups = [*scaled.rows], []
    for number, group in enumerate(config.groups):
        of_group = scale(config.lr_scaling, config.lr, group.args, change)
        groups.append(of_group.args)
        rows += [replace(row, name=f"groups[{number}].{row.name}") for row in of_group.rows[1:]]
    return replace(scaled, args=changed, rows=tuple(rows), groups=tuple(groups))


def numbers_of_stages(config: OptimizerConfig, batch: BatchPlan) -> list[Scaled]:
    """Of each stage; of a batch without a schedule, which is one."""
    effective = [batch.effective]
    if config.lr_on_schedule == "rescale":
        effective = [size for _, size in batch.stages] or effective
    numbers = [scaled_numbers(config, size) for size in effective]
    return numbers * max(1, len(batch.stages)) if len(numbers) == 1 else numbers


def _defaults(config: OptimizerConfig) -> dict[str, Any]:
    """Of the arguments that a rule may change."""
    parameters = inspect.signature(resolve(config.target, "torch.optim")).parameters
    return {name: parameters[name].default for name in SCALED if name in parameters}


def make_optimizer(
    config: OptimizerConfig, numbers: Scaled, parameters: Mapping[str, torch.nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimizer of the named parameters; `lr_multiplier` in each of its groups scales the rate
    of a step.

    Raises PatternError where a pattern of no_decay or groups matches none of them.
    """
    target: Callable[..., torch.optim.Optimizer] = resolve(config.target, "torch.optim")
    args: dict[str, Any] = dict(numbers.args)
    groups = _groups(config, numbers, parameters)
    has_fused = "fused" in inspect.signature(target).parameters
    with ends_in_a_sentence(
        OptimizerError, f"optimizer.target={config.target} does not take optimizer.args"
    ):
        is_open = has_fused and not args.keys() & {"fused", "foreach", "differentiable"}
        if is_open and _has_fused_kernels(target, args, parameters):
            args["fused"] = True  # not False in the other case: torch would leave out foreach, too
        optimizer = target(groups, lr=numbers.lr, **args)
    if isinstance(optimizer, torch.optim.SGD):
        _begin_momentum(optimizer)
    return optimizer


def _has_fused_kernels(
    target: Callable[..., torch.optim.Optimizer],
    args: Mapping[str, Any],
    parameters: Mapping[str, torch.nn.Parameter],
) -> bool:
    """Whether one kernel can update all parameters, with no extra copy of them.

    torch is asked by a step on one number of each kind: it has none for complex numbers, and 2.8
    has no Adagrad on CUDA, which shows at the first step only. SGD's does not know tensors that are
    divided among the ranks (2.13).
    """
    kinds = {
        (parameter.device, parameter.dtype, is_part(parameter)): parameter
        for parameter in parameters.values()
    }
    tried = []
    for parameter in kinds.values():
        number = like_one_row(parameter).requires_grad_()
        number.grad = torch.zeros_like(number)
        tried.append(number)
    try:
        target(tried, lr=0.0, **args, fused=True).step()
    except RuntimeError:
        return False
    return True


def _begin_momentum(optimizer: torch.optim.SGD) -> None:
    """Give fused SGD its momentum before the first step: zeros, from which that step makes the
    gradient.

    Left to SGD, a first step that is skipped on the device would leave memory that nobody
    initialised (torch 2.13). With dampening the first step is another one: there SGD keeps its own,
    and the host asks (can_skip_on_device).
    """
    for group in optimizer.param_groups:
        if group["fused"] and group["momentum"] and not group["dampening"]:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _groups(
    config: OptimizerConfig, numbers: Scaled, parameters: Mapping[str, torch.nn.Parameter]
) -> list[dict[str, Any]]:
    """Those of no group of the config first. The first group that matches has a parameter."""
    names = list(parameters)
    undecayed = set(matching("optimizer.no_decay", config.no_decay, names))
    group_of: dict[str, int] = {}
    for number, group in enumerate(config.groups):
        for name in matching(f"optimizer.groups[{number}].match", [group.match], names):
            group_of.setdefault(name, number)
    members: dict[tuple[int, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in parameters.items():
        members.setdefault((group_of.get(name, -1), name in undecayed), []).append(parameter)
    groups: list[dict[str, Any]] = []
    for (number, without_decay), chosen in sorted(members.items(), key=lambda item: item[0]):
        own = dict(numbers.groups[number]) if number >= 0 else {}
        factor = config.groups[number].lr_multiplier if number >= 0 else 1.0
        decay = {"weight_decay": 0.0} if without_decay else {}
        groups.append(
            {"params": chosen, "lr": numbers.lr * factor, "lr_multiplier": factor, **own, **decay}
        )
    return groups


def numbers_of_groups(
    config: OptimizerConfig, numbers: Scaled, parameters: Mapping[str, torch.nn.Parameter]
) -> list[dict[str, Any]]:
    """What a rule may change, of each group of the optimizer that make_optimizer gives, in the same
    order.
    """
    found = []
    for group in _groups(config, numbers, parameters):
        every = {**_defaults(config), **numbers.args, **group}
        found.append({name: every[name] for name in SCALED if name in every})
    return found


def can_skip_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether step() leaves everything as it was where `optimizer.found_inf` is 1, with no word
    from the host.

    The fused kernels do, through the two attributes by which torch.amp.GradScaler speaks to them.
    SGD's does where its momentum is there from the start: see _begin_momentum.
    """
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        return False
    is_sgd = isinstance(optimizer, torch.optim.SGD)
    return not is_sgd or not any(
        group["momentum"] and group["dampening"] for group in optimizer.param_groups
    )


@dataclass(frozen=True)
class OptimizerState:
    """What an optimizer remembers, for a checkpoint; rates and other numbers of its groups come
    from the config.
    """

    optimizer: torch.optim.Optimizer

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.optimizer.state_dict()["state"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        groups = self.optimizer.state_dict()["param_groups"]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for number, of_parameter in state["state"].items():
            for key, value in of_parameter.items():
                if isinstance(value, Stored):
                    of_parameter[key] = sharded_like(value, parameters[number])
        self.optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
