"""What the model makes of some held-out samples, in words, at each evaluation: for tasks that have
`samples`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from train.batch.window import Batch
from train.config import Config
from train.data import Datasets, make_tokenizer
from train.data.device_prefetch import to_device
from train.distributed.ranks import Ranks
from train.errors import UserError, ends_in_a_sentence
from train.evaluation.evaluator import Evaluate
from train.evaluation.together import side_by_side
from train.models.preserve_state import undisturbed
from train.parts import Part
from train.randomness import DATA_SEED, drawn_from
from train.step import Learner

Table = Sequence[Mapping[str, str]]

# samples, from the inside of the held-out set: a document that begins with its title tells little
ROWS = 2


def part(
    learner: Learner,
    sets: Datasets,
    config: Config,
    ranks: Ranks,
    show: Callable[[Table], None],
    stopping: Callable[[], bool],
) -> Part:
    """`show` is handed each table. Whether a stop was asked for is looked at before each text."""
    return Part(
        name="generations",
        evaluation=lambda evaluate: sampled(evaluate, learner, sets, config, ranks, show, stopping),
    )


class SamplesFailed(UserError):
    """The task's own code raised where it shows what the model makes of some samples."""


def _drawn(samples: Callable[..., Table], module: nn.Module, batch: Batch, decode: Any) -> Table:
    """By the same random numbers at every evaluation, whatever was drawn before."""
    with (
        ends_in_a_sentence(SamplesFailed, "samples() of the task raised"),
        drawn_from(DATA_SEED),
        # A text that grows has another size at each token, and torch compiles a forward eight times
        # at most.
        torch.compiler.set_stance("force_eager"),
    ):
        return samples(module, batch, decode)


def sampled(
    evaluate: Evaluate,
    learner: Learner,
    sets: Datasets,
    config: Config,
    ranks: Ranks,
    show: Callable[[Table], None],
    stopping: Callable[[], bool] = lambda: False,
) -> Evaluate:
    """The same evaluation; before it the task's table is made, on every rank alike, and handed to
    `show`.

    A sample at a time. Raises Abandoned, on all ranks, where a stop is asked for meanwhile.
    As in an evaluation, the random numbers of training and the modes of the module stay as they
    were.
    """
    samples = getattr(learner.task, "samples", None)
    if samples is None or not sets.evaluation:
        return evaluate
    held_out = next(iter(sets.evaluation.values()))
    ids = np.arange(1, ROWS + 1) * len(held_out) // (ROWS + 1)
    decode = ranks.together(lambda: make_tokenizer(config.data)).decode

    def with_samples(module: nn.Module) -> dict[str, float]:
        read = ranks.together(lambda: next(held_out.batches(ids, len(ids))))
        batch = to_device(read, learner.device, learner.dtype)
        table: list[Mapping[str, str]] = []

        def add(row: int) -> None:
            ranks.pulse.beat()
            one = {name: column[row : row + 1] for name, column in batch.items()}
            table.extend(_drawn(samples, module, one, decode))

        with undisturbed(module, learner.device), torch.no_grad():
            module.eval()
            rows = iter(range(len(ids)))
            in_step = learner.parallel.is_sharded
            ranks.together(lambda: side_by_side(rows, len(ids), add, ranks, stopping, in_step))
        show(table)
        return evaluate(module)

    return with_samples
