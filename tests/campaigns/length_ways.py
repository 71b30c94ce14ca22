"""Ways to put the texts of a step into micro-batches, for tests.campaigns.lengths."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from unittest import mock

import numpy as np
import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from train.batch import Assignment, BatchPlan
from train.batch.window import Place
from train.data import ByLength
from train.data.lengths import RUNS
from train.data.protocols import assignments

FILLED, IN_ORDER, FEWEST, OURS, GROUPED = range(5)
WAYS = (
    "all filled up",
    "cut, in the order of the data",
    "by length, fewest micro-batches",
    "by length",
    "*group_by_length: other texts share a step*",
)


class InOrder(ByLength):
    """Texts that are cut, but not sorted."""

    def _dealt(
        self, plan: BatchPlan, seed: int, rank: int, place: Place, overfit: int | None
    ) -> Iterator[tuple[int, Assignment]]:
        return assignments(plan, seed, rank, place, overfit)


class Grouped(ByLength):
    """Each epoch in the order of transformers' LengthGroupedSampler, which is given the samples of
    a rank's step.
    """

    def _dealt(
        self, plan: BatchPlan, seed: int, rank: int, place: Place, overfit: int | None
    ) -> Iterator[tuple[int, Assignment]]:
        order: list[int] = []
        for epoch, step in assignments(plan, seed, rank, place, overfit):
            if not order:
                generator = torch.Generator().manual_seed(seed + epoch)
                size = plan.effective // plan.world_size
                order = get_length_grouped_indices(self.lengths.tolist(), size, generator=generator)
            members, order = order[: step.samples], order[step.samples :]
            yield epoch, replace(step, ids=np.array(members[rank :: plan.world_size]))


@contextlib.contextmanager
def in_this_way(way: int) -> Iterator[None]:
    kind = {IN_ORDER: InOrder, GROUPED: Grouped}.get(way, ByLength)
    # Without a search for the least padding there is the evenest cut into the fewest, as it was
    # before.
    with (
        mock.patch("train.data.by_length.ByLength", kind),
        mock.patch("train.data.lengths.RUNS", 0 if way == FEWEST else RUNS),
    ):
        yield
