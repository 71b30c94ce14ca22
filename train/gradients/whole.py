"""Which step is complete on this rank: what a run that fails may still save."""

from torch import Tensor

from train.batch.window import Window
from train.step import ComputeGradient, Learner


class Whole:
    """`step`: the one whose state this rank holds. None from the first gradient of a step until it is counted."""

    def __init__(self, step: int) -> None:
        self.step: int | None = step

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        def marked(learner: Learner, window: Window) -> Tensor:
            self.step = None
            return compute_gradient(learner, window)

        return marked
