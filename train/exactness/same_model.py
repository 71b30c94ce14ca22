"""Do all ranks train the same function?

Weights are rank 0's on all of them; what else a model holds is not.
"""

import torch
from torch import Tensor, nn

from train.batch.window import Batch
from train.distributed.ranks import Ranks
from train.errors import UserError
from train.exactness.reference_gradient import (
    halve_until_it_fits,
    loss_and_gradient,
    widest_forward,
)
from train.models.preserve_state import preserve_state
from train.randomness import DATA_SEED, drawn_from
from train.step import Learner

MAX_RELATIVE_DIFFERENCE = 1e-2
"""Of the loss, or of a gradient's norm: more than GPUs of different kinds make of bf16."""


class DifferentModels(UserError):
    """The ranks were given the same samples, and did not compute the same."""


def check_same_weights(module: nn.Module, ranks: Ranks) -> None:
    """Raises DifferentModels, on all ranks, where one has made other weights than rank 0.

    For ranks that keep a part of the weights each: together these would be no model at all.
    """
    # Sums in place of the weights: a message is small, and no rank needs another's weights.
    weights = [p.detach() for p in module.parameters()]
    sums_of_ranks = ranks.gather([float(p.abs().sum(dtype=torch.float64)) for p in weights])
    for rank, sums in enumerate(sums_of_ranks):
        if sums != sums_of_ranks[0]:
            raise DifferentModels(
                f"rank {rank} begins with other weights than rank 0. Does the model draw them from "
                "a generator without a seed, or from the rank's number? Draw them from torch's or "
                "NumPy's global generator"
            )


def check_same_model(learner: Learner, batch: Batch, ranks: Ranks) -> None:
    """Raises DifferentModels, on all ranks, where one computes something else than rank 0.

    Compared are the loss and the norm of each parameter's gradient, of `batch` (on the CPU), with
    everything that only training does switched off.
    """
    if ranks.world_size == 1:
        return
    norms = ranks.together(lambda: halve_until_it_fits(lambda fewer: _norms(learner, fewer), batch))
    norms_of_ranks = ranks.gather(norms)
    expected = torch.tensor(norms_of_ranks[0], dtype=torch.float64)
    scales = _scales(expected)
    for rank, other in enumerate(norms_of_ranks):
        relative = (torch.tensor(other, dtype=torch.float64) - expected).abs() / scales
        # 0 / 0, of a gradient that is 0 on both ranks, is no difference.
        largest = float(relative.nan_to_num(0.0).max())
        if largest > MAX_RELATIVE_DIFFERENCE:
            raise DifferentModels(
                f"rank {rank} computes another loss or gradient than rank 0 from the same samples "
                f"and weights: {largest:.0e} away. Does the model or the task hold something of "
                "its own on each rank, drawn from a generator without a seed, such as "
                "numpy.random.default_rng(), or made from the rank's number? Draw it from torch's "
                "or NumPy's global generator: these are set from the run's seed"
            )


def _scales(norms: Tensor) -> Tensor:
    """What a difference is relative to: the loss itself, or the largest gradient of a parameter.

    Not each gradient itself: a tiny one is mostly rounding.
    """
    scales = norms.clone()
    if len(norms) > 1:
        scales[1:] = norms[1:].max()
    return scales


def _norms(learner: Learner, batch: Batch) -> list[float]:
    """Of the loss, and of the gradient of each parameter."""
    module = learner.module
    with (
        preserve_state(module, learner.device),
        widest_forward(learner, batch),
        torch.enable_grad(),
        drawn_from(DATA_SEED),
    ):
        # Eval mode and the same seed on all ranks: masks and statistics are not what is compared.
        module.eval()
        loss, *gradient = loss_and_gradient(learner, batch)
    return [abs(float(loss)), *learner.parallel.norms(gradient).tolist()]
