"""What a step draws is a function of seed, rank and step, whatever was drawn before it."""

from torch import Tensor

from train.batch.window import Window
from train.randomness import Generators, seed_of_rank, seed_of_step
from train.step import ComputeGradient, Learner


def seeded(
    compute_gradient: ComputeGradient, learner: Learner, seed: int, rank: int
) -> ComputeGradient:
    """The same function, with all generators set for the step: a repeated step draws the same."""
    generators = Generators(learner.device)
    rank_seed = seed_of_rank(seed, rank)

    def compute_seeded(learner: Learner, window: Window) -> Tensor:
        # Here, inside of all parts: a part that computes a gradient a second time, such as a retry,
        # gets the same draws without knowing of them.
        generators.seed(seed_of_step(rank_seed, window.k))
        return compute_gradient(learner, window)

    return compute_seeded
