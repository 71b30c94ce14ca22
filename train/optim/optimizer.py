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
    torch.optim.SGD,
    torch.optim.ASGD,
    torch.optim.Adam,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.RMSprop,
)
"""torch's optimizers that add weight_decay to the gradient without decoupled_weight_decay."""


NO_GROUP = -1
"""In place of the number of a group of the config; sorted before all of them."""


class OptimizerError(UserError):
    """An optimizer that cannot be made as the config says."""


def change_of(config: OptimizerConfig, effective_batch: int) -> Change | None:
    """What a rule goes by for this batch and optimizer. None: no reference batch is stated."""
    if config.lr_reference_batch is None:
        return None
    target = resolve(config.target, "torch.optim")
    # Of a function that makes an optimizer nothing is known beforehand: it counts as one like
    # AdamW, adaptive and decoupled.
    kind = target if isinstance(target, type) else object
    # AdamW is a subclass of Adam.
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
    # A default that no rule has changed is left to the optimizer.
    args = {
        name: value
        for name, value in scaled.args.items()
        if name in config.args or value != defaults[name]
    }
    rows = [*scaled.rows]
    groups = []
    for number, group in enumerate(config.groups):
        # Only what the group itself states: torch fills in the rest from the arguments above, which
        # are scaled already.
        of_group = scale(config.lr_scaling, config.lr, group.args, change)
        groups.append(of_group.args)
        # Without the first row, that of the rate: a group multiplies the rate of the step.
        rows += [replace(row, name=f"groups[{number}].{row.name}") for row in of_group.rows[1:]]
    return replace(scaled, args=args, rows=tuple(rows), groups=tuple(groups))


def numbers_of_stages(config: OptimizerConfig, batch: BatchPlan) -> list[Scaled]:
    """Of each stage; of a batch without a schedule, which is one."""
    if not batch.stages:
        return [scaled_numbers(config, batch.effective)]
    if config.lr_on_schedule == "rescale":
        return [scaled_numbers(config, effective) for _, effective in batch.stages]
    return [scaled_numbers(config, batch.effective)] * len(batch.stages)


def _defaults(config: OptimizerConfig) -> dict[str, Any]:
    """Of the arguments that a rule may change."""
    # A rule also moves what the config leaves at its default, such as AdamW's betas. The signature
    # has the defaults before there is an optimizer.
    parameters = inspect.signature(resolve(config.target, "torch.optim")).parameters
    return {name: parameters[name].default for name in SCALED if name in parameters}


def make_optimizer(
    config: OptimizerConfig, numbers: Scaled, parameters: Mapping[str, torch.nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimizer of the named parameters; `lr_multiplier` of a group scales the step's rate.

    Raises PatternError where a pattern of no_decay or groups matches none of them.
    """
    target: Callable[..., torch.optim.Optimizer] = resolve(config.target, "torch.optim")
    args: dict[str, Any] = dict(numbers.args)
    groups = _groups(config, numbers, parameters)
    has_fused = "fused" in inspect.signature(target).parameters
    what = f"optimizer.target={config.target} does not take optimizer.args"
    with ends_in_a_sentence(OptimizerError, what):
        # What the user states stays. torch refuses fused=True beside foreach=True or
        # differentiable=True.
        is_open = has_fused and not args.keys() & {"fused", "foreach", "differentiable"}
        # Never set to False: torch would then not use foreach either.
        if is_open and _has_fused_kernels(target, args, parameters):
            args["fused"] = True
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
        # Not the parameter itself: its step would make state of the full size, to be thrown away.
        number = like_one_row(parameter).requires_grad_()
        number.grad = torch.zeros_like(number)
        tried.append(number)
    try:
        target(tried, lr=0.0, **args, fused=True).step()
    except RuntimeError:
        return False
    return True


def _begin_momentum(optimizer: torch.optim.SGD) -> None:
    """Give fused SGD its momentum before the first step: zeros, so that it becomes the gradient.

    Left to SGD, a first step that is skipped on the device would leave uninitialised memory (torch
    2.13). With dampening the first step differs: there SGD makes its own momentum, and the host
    reads whether to skip (can_skip_on_device).
    """
    for group in optimizer.param_groups:
        if group["fused"] and group["momentum"] and not group["dampening"]:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _groups(
    config: OptimizerConfig, numbers: Scaled, parameters: Mapping[str, torch.nn.Parameter]
) -> list[dict[str, Any]]:
    """The optimizer's groups, in a fixed order: those of no group of the config first."""
    names = list(parameters)
    undecayed = set(matching("optimizer.no_decay", config.no_decay, names))
    # The first group that matches has a parameter.
    group_of: dict[str, int] = {}
    for number, group in enumerate(config.groups):
        for name in matching(f"optimizer.groups[{number}].match", [group.match], names):
            group_of.setdefault(name, number)
    members: dict[tuple[int, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in parameters.items():
        key = (group_of.get(name, NO_GROUP), name in undecayed)
        members.setdefault(key, []).append(parameter)
    groups: list[dict[str, Any]] = []
    # Sorted, since torch numbers an optimizer's state by the order of its groups: a checkpoint is
    # read back by these numbers.
    for number, without_decay in sorted(members):
        multiplier = 1.0
        args: dict[str, Any] = {}
        if number != NO_GROUP:
            multiplier = config.groups[number].lr_multiplier
            args |= numbers.groups[number]
        if without_decay:
            args["weight_decay"] = 0.0
        groups.append(
            {
                "params": members[number, without_decay],
                "lr": numbers.lr * multiplier,
                # The step sets "lr" anew from the rate of the step times this (train/step.py).
                "lr_multiplier": multiplier,
                **args,
            }
        )
    return groups


def numbers_of_groups(
    config: OptimizerConfig, numbers: Scaled, parameters: Mapping[str, torch.nn.Parameter]
) -> list[dict[str, Any]]:
    """What a rule may change, of each group of make_optimizer's, in the same order."""
    of_groups = []
    for group in _groups(config, numbers, parameters):
        values = {**_defaults(config), **numbers.args, **group}
        of_groups.append({name: values[name] for name in SCALED if name in values})
    return of_groups


def can_skip_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether step() changes nothing where `optimizer.found_inf` is 1, without asking the host.

    The fused kernels do, through the two attributes by which torch.amp.GradScaler speaks to them.
    SGD's does where its momentum is there from the start: see _begin_momentum.
    """
    # torch sets this private attribute where an optimizer runs a fused kernel that reads found_inf.
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        return False
    is_sgd = isinstance(optimizer, torch.optim.SGD)
    return not is_sgd or not any(
        group["momentum"] and group["dampening"] for group in optimizer.param_groups
    )


@dataclass(frozen=True)
class OptimizerState:
    """What an optimizer remembers, for a checkpoint; the numbers of its groups are the config's."""

    optimizer: torch.optim.Optimizer

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.optimizer.state_dict()["state"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # The groups stay as the config makes them: a resume may have changed their numbers.
        groups = self.optimizer.state_dict()["param_groups"]
        # torch numbers the state in the order of the groups' parameters.
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for number, of_parameter in state["state"].items():
            for key, value in of_parameter.items():
                if isinstance(value, Stored):
                    of_parameter[key] = sharded_like(value, parameters[number])
        self.optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
