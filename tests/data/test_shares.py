"""A step can be cut again: the same samples in other micro-batches, equally many on each rank, the
same gradient.
"""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.helpers import Array, argv, distance, flat, steps, whole_batch
from train.accumulate import compute_gradient
from train.batch.window import MicroBatches, Window
from train.config import load
from train.data.shares import RankShare
from train.run import build

CUTS = (1, 3, 100)
TEXTS = (
    "data={source: tests.data.test_by_length.texts, max_length: 24}",
    "model={target: text_conv, args: {outputs: 3}}",
    "batch.micro_tokens=60",
)
SOURCES: dict[str, tuple[str, ...]] = {
    "rows": ("batch.micro=4",),
    "stream": (
        "data={source: tests.helpers.stream, streaming: true}",
        "batch.micro=4",
        "duration={steps: 5}",
    ),
    "by length": TEXTS,
    "on the disk": ("data.preload=false", "data.workers=0", "batch.micro=4"),
}


def sample_ids_of(micro_batches: MicroBatches) -> list[int]:
    return [i for m in micro_batches if m.samples for i in m.batch["sample_id"].tolist()]


def cut_again(
    arguments: list[str],
) -> list[tuple[list[int], dict[int, tuple[list[int], list[int], Array]]]]:
    """For each step of an epoch: (samples of this rank, {micro: (their sizes, samples, gradient)
    when cut again}).
    """
    run = build(load(arguments), "accumulate")
    learner = run.learner
    found = []
    for window in islice(run.windows, 5):
        of_window: dict[int, tuple[list[int], list[int], Array]] = {}
        for micro in CUTS:
            cut = window.recut(micro)
            compute_gradient(learner, cut)
            gradient = flat([p.grad for p in learner.parameters if p.grad is not None])
            learner.optimizer.zero_grad(set_to_none=True)
            of_window[micro] = (
                list(cut.micro_batches.sizes),
                sample_ids_of(cut.micro_batches),
                gradient,
            )
        found.append((sample_ids_of(window.micro_batches), of_window))
    run.close("finished", 0)
    return found


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("world_size", [1, 3])
def test_the_same_samples_and_the_same_gradient(
    run_ranks: Any, tmp_path: Path, source: str, world_size: int
) -> None:
    """8 samples a step, and a tail of 5, of which a rank of 3 takes one or two: it needs fillers."""
    ranks = run_ranks(world_size, cut_again, argv(tmp_path, *SOURCES[source]))

    for k, of_ranks in enumerate(zip(*ranks, strict=True)):
        reference = of_ranks[0][1][CUTS[-1]][2]
        for micro in CUTS:
            sizes = [of_window[micro][0] for _, of_window in of_ranks]
            assert len({len(of_rank) for of_rank in sizes}) == 1, "another number of micro-batches"
            assert max(map(max, sizes)) <= micro
            largest = max(sum(of_rank) for of_rank in sizes)
            assert len(sizes[0]) == max(1, -(-largest // micro)), (
                "more micro-batches than are needed"
            )
            for ids, of_window in of_ranks:
                assert of_window[micro][1] == ids
                assert distance(of_window[micro][2], reference) <= 1e-12, (k, micro)


def test_the_gradient_is_that_of_the_whole_batch(run_ranks: Any, tmp_path: Path) -> None:
    """By plain PyTorch in float64, so that two wrong cuts cannot agree."""
    arguments = argv(tmp_path, "batch.micro=4")
    (alone,) = run_ranks(1, weights_and_cuts, arguments)
    ranks = run_ranks(3, weights_and_cuts, arguments)

    for weights, gradients in (alone, *ranks):
        for ids, gradient in zip(steps(37, 8), gradients, strict=False):
            _, expected = whole_batch(arguments, weights, ids, cross_entropy)
            assert distance(gradient, expected) <= 1e-12


def weights_and_cuts(arguments: list[str]) -> tuple[Array, list[Array]]:
    """(weights, gradients of the steps of the first epoch at these weights, cut into micro-batches
    of 1, 2, 3, ...).
    """
    run = build(load(arguments), "accumulate")
    learner = run.learner
    gradients = []
    for window in islice(run.windows, 5):
        compute_gradient(learner, window.recut(window.k))
        gradients.append(flat([p.grad for p in learner.parameters if p.grad is not None]))
        learner.optimizer.zero_grad(set_to_none=True)
    weights = flat(learner.parameters)
    run.close("finished", 0)
    return weights, gradients


def share(samples: int, largest: int) -> RankShare:
    columns = {"x": torch.arange(float(samples)), "sample_id": torch.arange(samples)}
    filler = (
        {} if samples else {"x": torch.zeros(1), "sample_id": torch.zeros(1, dtype=torch.int64)}
    )
    return RankShare(
        epoch=0,
        last_of_epoch=False,
        samples=columns,
        sizes=(samples,),
        filler=filler,
        largest=largest,
    )


def test_a_rank_with_nothing_left_takes_the_filler_as_often_as_the_others_take_samples() -> None:
    cut = share(0, largest=3).recut(1)

    assert list(cut.sizes) == [0, 0, 0]
    assert [len(m.batch["x"]) for m in cut] == [1, 1, 1]


def test_micro_batches_can_be_read_twice_and_a_window_stays_as_it_was() -> None:
    window = Window(
        k=1,
        epoch=0,
        micro_batches=share(5, 5),
        samples=5,
        weights={"loss": 5.0},
        last_of_epoch=False,
    )

    other = window.recut(2)

    assert (
        [m.samples for m in other.micro_batches]
        == [m.samples for m in other.micro_batches]
        == [2, 2, 1]
    )
    assert [m.samples for m in window.micro_batches] == [5]
    assert (other.k, other.weights, other.samples) == (window.k, window.weights, window.samples)
