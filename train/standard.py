"""The standard loop: a rank's part of a step is one micro-batch.

accelerate launch -m train.standard CONFIG [key=value ...]
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
    (micro_batch,) = window.micro_batches
    return forward_backward(learner, micro_batch, window)


if __name__ == "__main__":
    leave(main(sys.argv[1:], "standard", compute_gradient))
