"""What the model makes of some held-out samples, in words, for tasks that have `samples`.

At each evaluation, as a table.
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
from train.evaluation.lockstep import run_in_lockstep
from train.models.preserve_state import preserve_state
from train.parts import Part
from train.randomness import DATA_SEED, drawn_from
from train.step import Learner

Table = Sequence[Mapping[str, str]]

ROWS = 2
"""Samples from the inside of the held-out set: a first document may be a title page."""


def part(
    learner: Learner,
    sets: Datasets,
    config: Config,
    ranks: Ranks,
    show: Callable[[Table], None],
    stop_requested: Callable[[], bool],
) -> Part:
    """`show` is handed each table. Whether a stop was asked for is looked at before each text."""

    def around(evaluate: Evaluate) -> Evaluate:
        return with_generations(evaluate, learner, sets, config, ranks, show, stop_requested)

    return Part(name="generations", evaluation=around)


class SamplesFailed(UserError):
    """The task's own code raised where it shows what the model makes of some samples."""


def _generate(samples: Callable[..., Table], module: nn.Module, batch: Batch, decode: Any) -> Table:
    """By the same random numbers at every evaluation, whatever was drawn before."""
    with (
        ends_in_a_sentence(SamplesFailed, "samples() of the task raised"),
        drawn_from(DATA_SEED),
        # A growing text has another size at each token, and torch compiles a forward eight times
        # at most.
        torch.compiler.set_stance("force_eager"),
    ):
        return samples(module, batch, decode)


def with_generations(
    evaluate: Evaluate,
    learner: Learner,
    sets: Datasets,
    config: Config,
    ranks: Ranks,
    show: Callable[[Table], None],
    stop_requested: Callable[[], bool] = lambda: False,
) -> Evaluate:
    """The same evaluation; before it the task's table is made, on every rank alike, and shown.

    A sample at a time. Raises EvaluationStopped, on all ranks, where a stop is asked for meanwhile.
    As in an evaluation, the random numbers of training and the modes of the module stay as they
    were.
    """
    samples = getattr(learner.task, "samples", None)
    if samples is None or not sets.evaluation:
        return evaluate
    held_out = next(iter(sets.evaluation.values()))
    ids = np.arange(1, ROWS + 1) * len(held_out) // (ROWS + 1)
    # Once, and before the first step: a tokenizer that cannot be read should end the run here, not
    # at its first evaluation.
    decode = ranks.together(lambda: make_tokenizer(config.data)).decode

    def evaluate_after_generations(module: nn.Module) -> dict[str, float]:
        read = ranks.together(lambda: next(held_out.batches(ids, len(ids))))
        batch = to_device(read, learner.device, learner.dtype)
        table: list[Mapping[str, str]] = []

        def add(row: int) -> None:
            ranks.pulse.beat()
            # One sample, so that a stop that is asked for is seen after each text.
            one_sample = {name: column[row : row + 1] for name, column in batch.items()}
            table.extend(_generate(samples, module, one_sample, decode))

        def add_all() -> None:
            run_in_lockstep(
                iter(range(len(ids))),
                len(ids),
                add,
                ranks,
                stop_requested,
                needs_all_ranks=learner.parallel.is_sharded,
            )

        with preserve_state(module, learner.device), torch.no_grad():
            module.eval()
            # On all ranks, though one would do for the table: what the user's code raises on rank 0
            # alone would leave the others waiting in their next message.
            ranks.together(add_all)
        show(table)
        return evaluate(module)

    return evaluate_after_generations
