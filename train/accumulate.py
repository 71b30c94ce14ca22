"""The accumulation loop: a rank's part of a step is several micro-batches, reduced over the ranks once.

accelerate launch -m train.accumulate CONFIG [key=value ...]
"""

import sys

from torch import Tensor

from train.batch.window import Window
from train.errors import leave
from train.main import main
from train.step import Learner, forward_backward


def compute_gradient(learner: Learner, window: Window) -> Tensor:
    """The gradient of the window in `.grad`, reduced over the ranks; returns this rank's sums of losses: (terms,)."""
    *earlier, last = window.micro_batches
    with learner.accelerator.no_sync(learner.model):  # around forward and backward: DDP decides in the forward
        parts = [forward_backward(learner, micro_batch, window) for micro_batch in earlier]
    return sum(parts, start=forward_backward(learner, last, window))


if __name__ == "__main__":
    leave(main(sys.argv[1:], "accumulate", compute_gradient))
