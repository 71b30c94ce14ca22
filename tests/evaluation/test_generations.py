"""The samples shown beside an evaluation, where one rank alone cannot read them."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers import rank_group
from train.config import load
from train.data import WorkerLost
from train.evaluation.generations import SamplesFailed, with_generations
from train.evaluation.lockstep import EvaluationStopped

WHOLE = SimpleNamespace(is_sharded=False)


class LostOn1:
    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __len__(self) -> int:
        return 4

    def batches(self, ids: object, size: int) -> Iterator[dict[str, Any]]:
        if self.rank == 1:
            raise WorkerLost("loading samples: killed")
        yield {}


def lose_a_worker() -> str:
    ranks = rank_group()
    learner: Any = SimpleNamespace(task=SimpleNamespace(samples=lambda *args: ()), parallel=WHOLE)
    sets: Any = SimpleNamespace(evaluation={"": LostOn1(ranks.rank)})
    config = load(["configs/digits.yaml"]).config
    evaluate = with_generations(lambda module: {}, learner, sets, config, ranks, lambda table: None)
    with pytest.raises(WorkerLost) as lost:
        evaluate(nn.Identity())
    return str(lost.value)


class Readable(LostOn1):
    def batches(self, ids: object, size: int) -> Iterator[dict[str, Any]]:
        yield {}


def fail_to_show() -> str:
    ranks = rank_group()

    def samples(*_: object) -> list[dict[str, str]]:
        if ranks.rank == 1:
            raise KeyError("text")
        return []

    learner: Any = SimpleNamespace(
        task=SimpleNamespace(samples=samples),
        device=torch.device("cpu"),
        dtype=torch.float32,
        parallel=WHOLE,
    )
    sets: Any = SimpleNamespace(evaluation={"": Readable(ranks.rank)})
    config = load(["configs/digits.yaml"]).config
    evaluate = with_generations(lambda module: {}, learner, sets, config, ranks, lambda table: None)
    with pytest.raises(SamplesFailed) as failed:
        evaluate(nn.Identity())
    return str(failed.value)


def test_all_ranks_know_why_one_of_them_could_not_show(run_ranks: Any) -> None:
    for message in run_ranks(2, fail_to_show):
        assert "samples() of the task raised: KeyError: 'text'" in message


def test_all_ranks_know_why_one_of_them_could_not_read(run_ranks: Any) -> None:
    assert run_ranks(2, lose_a_worker) == [
        "rank 1: loading samples: killed",
        "loading samples: killed",
    ]


def stop_after_a_text() -> int:
    ranks = rank_group()
    texts = []

    def samples(*_: object) -> list[dict[str, str]]:
        texts.append("one")
        return []

    learner: Any = SimpleNamespace(
        task=SimpleNamespace(samples=samples),
        device=torch.device("cpu"),
        dtype=torch.float32,
        parallel=WHOLE,
    )
    sets: Any = SimpleNamespace(evaluation={"": Readable(ranks.rank)})
    config = load(["configs/digits.yaml"]).config
    asked = iter([False, ranks.rank == 1])  # of one rank, before its second text
    evaluate = with_generations(
        lambda module: {}, learner, sets, config, ranks, lambda table: None, lambda: next(asked)
    )
    with pytest.raises(EvaluationStopped):
        evaluate(nn.Identity())
    return len(texts)


def test_a_stop_is_seen_between_two_texts(run_ranks: Any) -> None:
    assert run_ranks(2, stop_after_a_text) == [2, 1]
