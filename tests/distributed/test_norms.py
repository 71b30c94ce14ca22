"""The clip is torch's own, bit for bit, and a norm that is no number is seen."""

import math

import pytest
import torch
from torch import Tensor, nn

from train.distributed.norms import clip_for
from train.optim.skipped_steps import is_not_finite

TYPES = {
    "float32": (torch.float32, torch.float32),
    "float64": (torch.float64, torch.float64),
    "bf16": (torch.bfloat16, torch.bfloat16),
    "float32 and bf16": (torch.float32, torch.bfloat16),
}


def module_of(types: tuple[torch.dtype, torch.dtype]) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(7, 5).to(types[0]), nn.Linear(5, 3).to(types[1]))
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    return module


def gradients_of(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("types", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.995, 1.0, 1.005, 1.02, 100.0, math.nan])
def test_torchs_own_bits(types: tuple[torch.dtype, torch.dtype], share: float) -> None:
    """The limit from far below to far above the norm, and a norm that is none."""
    own, other = module_of(types), module_of(types)
    norm = nn.utils.get_total_norm(
        [g.float() if g.dtype is torch.bfloat16 else g for g in gradients_of(own)]
    )
    limit = 1.0 if math.isnan(share) else share * norm.item()
    norm = norm * math.nan if math.isnan(share) else norm

    clip_for(own)(gradients_of(own), limit, norm)
    nn.utils.clip_grads_with_norm_(other.parameters(), limit, norm)

    for ours, theirs in zip(gradients_of(own), gradients_of(other), strict=True):
        assert torch.equal(ours.nan_to_num(9.0), theirs.nan_to_num(9.0))
    untouched = torch.equal(gradients_of(own)[0], gradients_of(module_of(types))[0])
    assert untouched == (share > 1.0) or share == 1.0


@pytest.mark.parametrize("norm", [8.9e-6, 9.5e-6, 2e-5])
def test_torchs_own_bits_where_its_epsilon_counts(norm: float) -> None:
    """Below the limit of 1e-5, too, torch makes these smaller: the norm and 1e-6 are above it, or
    not.
    """
    own, other = (nn.Linear(1, 1, bias=False) for _ in range(2))
    for module in (own, other):
        module.weight.grad = torch.full((1, 1), norm)

    clip_for(own)(gradients_of(own), 1e-5, torch.tensor(norm))
    nn.utils.clip_grads_with_norm_(other.parameters(), 1e-5, torch.tensor(norm))

    assert torch.equal(gradients_of(own)[0], gradients_of(other)[0])
    assert (gradients_of(own)[0].item() < 0.99 * norm) == (norm > 9e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 1e-30, 3.0, 1e30, math.inf, math.nan])
def test_what_is_no_number_is_seen(value: float, dtype: torch.dtype) -> None:
    norm = torch.tensor(value, dtype=dtype)

    flag = is_not_finite(norm)

    assert flag.dtype is torch.float32  # as a fused optimizer's found_inf
    assert flag.item() == (not math.isfinite(value))
    assert norm.equal(torch.tensor(value, dtype=dtype)) or math.isnan(value)  # it is left as it was
