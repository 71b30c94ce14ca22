"""Which kernels an optimizer takes is asked of torch; what it then leaves out is as if it had not
been.
"""

from typing import Any

import pytest
import torch
from torch import nn

from train.config.recipe import Optimizer as OptimizerConfig
from train.optim.batch_scaling import Scaled
from train.optim.optimizer import can_skip_on_device, make_optimizer


def optimizer_of(
    target: str, parameters: dict[str, nn.Parameter], **args: Any
) -> torch.optim.Optimizer:
    config = OptimizerConfig(target=target, lr=0.1, args=args)
    return make_optimizer(config, Scaled(0.1, args), parameters)


class WithoutKernels(torch.optim.Adagrad):
    """As torch 2.8's is on CUDA: it takes `fused`, and its first step finds no kernel."""

    def step(self, closure: Any = None) -> Any:
        if self.defaults["fused"]:
            raise NotImplementedError(
                "Could not run 'aten::_fused_adagrad_' with arguments from the 'CUDA' backend"
            )
        return super().step(closure)


@pytest.mark.parametrize(
    ("target", "dtype", "fused"),
    [
        ("adamw", torch.float32, True),
        ("adamw", torch.bfloat16, True),
        ("adagrad", torch.float64, True),
        ("adamw", torch.complex64, None),
        ("tests.optim.test_optimizer.WithoutKernels", torch.float32, None),
        ("rmsprop", torch.float32, None),
    ],
)
def test_fused_where_torch_has_the_kernels(
    target: str, dtype: torch.dtype, fused: bool | None
) -> None:
    parameter = nn.Parameter(torch.ones(3, dtype=dtype))

    optimizer = optimizer_of(target, {"weight": parameter})

    assert optimizer.defaults.get("fused") is fused
    assert torch.equal(parameter, torch.ones(3, dtype=dtype)), "the trial moved the model"
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert not torch.equal(parameter, torch.ones(3, dtype=dtype))


SGD = [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}]


@pytest.mark.parametrize("args", SGD)
@pytest.mark.parametrize("skipped", [(), (0,), (0, 1), (2,)])
def test_fused_sgd_leaves_out_any_step_on_the_device(
    args: dict[str, Any], skipped: tuple[int, ...]
) -> None:
    """Against plain SGD, which is not called at all in those steps: bit for bit."""
    ours, plain = nn.Parameter(torch.linspace(-1, 1, 9)), nn.Parameter(torch.linspace(-1, 1, 9))
    optimizer: Any = optimizer_of("sgd", {"weight": ours}, **args)
    reference = torch.optim.SGD([plain], lr=0.1, fused=True, **args)

    for step in range(4):
        gradient = (
            torch.full((9,), torch.nan) if step in skipped else torch.linspace(0, step + 1, 9)
        )
        ours.grad, plain.grad = gradient.clone(), gradient.clone()
        optimizer.found_inf = torch.tensor(float(step in skipped))
        optimizer.step()
        if step not in skipped:
            reference.step()
        assert torch.equal(ours, plain)

    assert can_skip_on_device(optimizer)


def test_a_parameter_whose_first_gradient_comes_late_has_momentum() -> None:
    early, late = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = optimizer_of("sgd", {"early": early, "late": late}, momentum=0.9)

    early.grad = torch.ones(2)
    optimizer.step()
    early.grad = late.grad = torch.ones(2)
    optimizer.step()

    assert torch.equal(late, torch.full((2,), 0.9))


@pytest.mark.parametrize(
    ("target", "args"),
    [("sgd", {"momentum": 0.9, "dampening": 0.1}), ("sgd", {"fused": False}), ("rmsprop", {})],
)
def test_what_cannot_be_left_out_on_the_device(target: str, args: dict[str, Any]) -> None:
    assert not can_skip_on_device(
        optimizer_of(target, {"weight": nn.Parameter(torch.ones(2))}, **args)
    )
