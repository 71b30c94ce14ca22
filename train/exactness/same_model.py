"""Do all ranks train the same function? Weights are rank 0's on all of them; what else a model
holds is not.
"""

import torch
from torch import nn

from train.batch.window import Batch
from train.distributed.ranks import Ranks
from train.errors import UserError
from train.exactness.reference_gradient import as_many_as_fit, loss_and_gradient, widest_forward
from train.models.preserve_state import undisturbed
from train.randomness import DATA_SEED, drawn_from
from train.step import Learner

DIFFERENCE = 1e-2
"""Relative, of the loss or of a parameter's gradient: more than cards of different kinds make of
bf16.
"""


class DifferentModels(UserError):
    """The ranks were given the same samples, and did not compute the same."""


def check_same_weights(module: nn.Module, ranks: Ranks) -> None:
    """Raises DifferentModels, on all ranks, where a rank has made other weights than rank 0: each
    keeps a part of its own, so together they would be nobody's.
    """
    weights = [p.detach() for p in module.parameters()]
    of_ranks = ranks.gather([float(p.abs().sum(dtype=torch.float64)) for p in weights])
    for rank, sums in enumerate(of_ranks):
        if sums != of_ranks[0]:
            raise DifferentModels(
                f"rank {rank} begins with other weights than rank 0. Does the model draw them from "
                "a generator without a seed, or from the rank's number? Draw them from torch's or "
                "NumPy's global generator"
            )


def check_same_model(learner: Learner, batch: Batch, ranks: Ranks) -> None:
    """Raises DifferentModels, on all ranks, where loss and gradient of `batch` (on the CPU) are not
    those of rank 0.

    The norm of each parameter's gradient is compared, with everything that only training does
    switched off.
    """
    if ranks.world_size == 1:
        return
    found = ranks.together(lambda: as_many_as_fit(lambda few: _norms(learner, few), batch))
    of_ranks = ranks.gather(found)
    expected = torch.tensor(of_ranks[0], dtype=torch.float64)
    # The loss to itself, the gradient of each parameter to the largest one: a tiny one is mostly
    # rounding.
    scales = (
        torch.full_like(expected, float(expected[1:].max()))
        if len(expected) > 1
        else expected.clone()
    )
    scales[0] = expected[0]
    for rank, other in enumerate(of_ranks):
        apart = (torch.tensor(other, dtype=torch.float64) - expected).abs() / scales
        worst = float(apart.nan_to_num(0.0).max())
        if worst > DIFFERENCE:
            raise DifferentModels(
                f"rank {rank} computes another loss or gradient than rank 0 from the same samples "
                f"and weights: {worst:.0e} away. Does the model or the task hold something of its "
                "own on each rank, drawn from a generator without a seed, such as "
                "numpy.random.default_rng(), or made from the rank's number? Draw it from torch's "
                "or NumPy's global generator: these are set from the run's seed"
            )


def _norms(learner: Learner, batch: Batch) -> list[float]:
    """Of the loss, and of the gradient of each parameter."""
    module = learner.module
    with (
        undisturbed(module, learner.device),
        widest_forward(learner, batch),
        torch.enable_grad(),
        drawn_from(DATA_SEED),
    ):
        module.eval()
        loss, *gradient = loss_and_gradient(learner, batch)
    return [abs(float(loss)), *learner.parallel.norms(gradient).tolist()]
