"""The accumulation loop: a rank's part of a step is several micro-batches, reduced once.

accelerate launch -m train.accumulate CONFIG [key=value ...]
"""

import sys

from torch import Tensor

from train.batch.window import Window
from train.errors import leave
from train.main import main
from train.step import Learner, forward_backward


def compute_gradient(learner: Learner, window: Window) -> Tensor:
    """Leave the window's gradient in `.grad`, reduced over the ranks.

    Returns this rank's sums of losses: (terms,).
    """
    micro_batches = iter(window.micro_batches)  # each may be read only when it is asked for
    parts: list[Tensor] = []
    earlier = len(window.micro_batches) - 1
    if earlier:
        # Around forward and backward: DDP decides in the forward whether it will reduce.
        with learner.accelerator.no_sync(learner.model):
            parts = [forward_backward(learner, next(micro_batches), window) for _ in range(earlier)]
    return sum(parts, start=forward_backward(learner, next(micro_batches), window))


if __name__ == "__main__":
    leave(main(sys.argv[1:], "accumulate", compute_gradient))
