"""What is looked at in the middle of a training is as it was afterwards."""

import pytest
import torch
from torch import Tensor, nn

from train.models.preserve_state import preserve_state


class Counting(nn.Module):
    """One buffer is written to, another one put in place of the old."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("written", torch.zeros(2))
        self.register_buffer("replaced", torch.zeros(2))

    def forward(self, inputs: Tensor) -> Tensor:
        self.written += 1
        self.replaced = self.replaced + 1
        return inputs


def _fail_in_the_middle(model: nn.Module) -> None:
    with preserve_state(model, torch.device("cpu")):
        model.eval()
        model(torch.rand(3, 2))
        raise RuntimeError("in the middle")


def test_buffers_are_the_same_tensors_with_the_same_values() -> None:
    model = nn.Sequential(Counting(), nn.Dropout())
    model[1].eval()
    before = dict(model.named_buffers())
    draws = torch.get_rng_state()

    with pytest.raises(RuntimeError, match="in the middle"):
        _fail_in_the_middle(model)

    for name, buffer in model.named_buffers():
        assert buffer is before[name]
        assert buffer.tolist() == [0, 0]
    assert [part.training for part in model] == [True, False]
    assert torch.equal(torch.get_rng_state(), draws)
