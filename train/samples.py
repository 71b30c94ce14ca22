"""What the model makes of some held-out samples, in words, at each evaluation: for tasks that have `samples`."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from train.config import Config
from train.data import Sets, make_tokenizer
from train.feed import to_device
from train.ranks import Ranks
from train.step import Learner
from train.undisturbed import undisturbed

Evaluate = Callable[[], dict[str, float]]
Table = Sequence[Mapping[str, str]]

ROWS = 2  # samples, from the inside of the held-out set: a document that begins with its title tells little


def sampled(
    evaluate: Evaluate, learner: Learner, sets: Sets, config: Config, ranks: Ranks, show: Callable[[Table], None]
) -> Evaluate:
    """The same evaluation; before it the task's table is made, on every rank alike, and handed to `show`.

    As in an evaluation, the random numbers of training and the modes of the module stay as they were.
    """
    samples = getattr(learner.task, "samples", None)
    if samples is None or not sets.evaluation:
        return evaluate
    rows = next(iter(sets.evaluation.values()))
    ids = np.arange(1, ROWS + 1) * len(rows) // (ROWS + 1)
    decode = ranks.together(lambda: make_tokenizer(config.data)).decode

    def with_samples() -> dict[str, float]:
        read = ranks.together(lambda: next(rows.batches(ids, len(ids))))
        batch = to_device(read, learner.device, learner.dtype)
        with undisturbed(learner.module, learner.device), torch.no_grad():
            learner.module.eval()
            show(samples(learner.module, batch, decode))
        return evaluate()

    return with_samples
