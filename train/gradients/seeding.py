"""What a step draws is a function of seed, rank and step, whatever was drawn before it."""

from torch import Tensor

from train.batch.window import Window
from train.randomness import Generators, seed_of_rank, seed_of_step
from train.step import ComputeGradient, Learner


def seeded(
    compute_gradient: ComputeGradient, learner: Learner, seed: int, rank: int
) -> ComputeGradient:
    """The same function; before it all generators are set for the step, so a repeated step draws
    the same again.
    """
    generators = Generators(learner.device)
    first = seed_of_rank(seed, rank)

    def at_its_place(learner: Learner, window: Window) -> Tensor:
        generators.seed(seed_of_step(first, window.k))
        return compute_gradient(learner, window)

    return at_its_place
