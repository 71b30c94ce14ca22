"""The accumulation loop: a rank's part of a step is several micro-batches, reduced over the ranks
once.

accelerate launch -m train.accumulate CONFIG [key=value ...]
"""

import sys

from torch import Tensor

from train.batch.window import Window
from train.errors import leave
from train.main import main
from train.step import Learner, forward_backward


def compute_gradient(learner: Learner, window: Window) -> Tensor:
    """The gradient of the window in `.grad`, reduced over the ranks; returns this rank's sums of
    losses: (terms,).
    """
    micro_batches = iter(window.micro_batches)  # each may be read only now
    parts, earlier = list[Tensor](), len(window.micro_batches) - 1
    if earlier:
        # around forward and backward: DDP decides in the forward
        with learner.accelerator.no_sync(learner.model):
            parts = [forward_backward(learner, next(micro_batches), window) for _ in range(earlier)]
    return sum(parts, start=forward_backward(learner, next(micro_batches), window))


if __name__ == "__main__":
    leave(main(sys.argv[1:], "accumulate", compute_gradient))
