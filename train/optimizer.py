"""The optimizer of a run, its numbers scaled to the effective batch."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from train.config import resolve
from train.config.schema import Optimizer as OptimizerConfig
from train.schedule import Scaled, scale


def scaled_numbers(config: OptimizerConfig, effective_batch: int) -> Scaled:
    """Peak learning rate and arguments at this effective batch."""
    target = resolve(config.target, "torch.optim")
    defaults = {
        n: p.default for n, p in inspect.signature(target).parameters.items() if n in ("betas", "eps", "weight_decay")
    }
    scaled = scale(config.lr_scaling, config.lr, defaults | config.args, effective_batch, config.lr_reference_batch)
    changed = {n: v for n, v in scaled.args.items() if n in config.args or v != defaults[n]}
    return Scaled(scaled.lr, changed, scaled.arithmetic)


def make_optimizer(
    config: OptimizerConfig, numbers: Scaled, parameters: Iterable[torch.nn.Parameter]
) -> torch.optim.Optimizer:
    target: Callable[..., torch.optim.Optimizer] = resolve(config.target, "torch.optim")
    args: dict[str, Any] = dict(numbers.args)
    if "fused" in inspect.signature(target).parameters and not args.keys() & {
        "fused",
        "foreach",
        "differentiable",
    }:
        args["fused"] = True  # one kernel for all parameters, and no extra copy of them
    return target(list(parameters), lr=numbers.lr, **args)


def can_skip_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether step() leaves everything as it was where `optimizer.found_inf` is 1, with no word from the host.

    The fused kernels do, through the two attributes by which torch.amp.GradScaler speaks to them. SGD's is left out: a
    first step that is skipped leaves its momentum buffer uninitialised (torch 2.13).
    """
    fused = getattr(optimizer, "_step_supports_amp_scaling", False)
    return bool(fused) and not isinstance(optimizer, torch.optim.SGD)


@dataclass(frozen=True)
class OptimizerState:
    """What an optimizer remembers, for a checkpoint; rates and other numbers of its groups come from the config."""

    optimizer: torch.optim.Optimizer

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.optimizer.state_dict()["state"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
