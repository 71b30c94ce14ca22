"""Where a step's time goes: the parts add up to the step, on a clock that the test holds."""

import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.helpers import argv, rows
from train import metric_names as names
from train.accumulate import compute_gradient
from train.batch.window import Window
from train.checkpoint import Checkpoints
from train.main import main
from train.metrics.step_timing import StepTiming
from train.step import Learner

PARTS = (
    names.DATA_SECONDS,
    names.FORWARD_BACKWARD_SECONDS,
    names.OPTIMIZER_SECONDS,
    names.REST_SECONDS,
)


MICRO_BATCHES: Any = (1, 2, 3)  # only counted here


class Steps:
    """A loop whose work takes the seconds that the test says."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, every: int, steps: int = 6, world_size: int = 2
    ) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        self.parameter = torch.nn.Parameter(torch.ones(()))
        self.optimizer = torch.optim.SGD([self.parameter], lr=0.0)
        self.asked: list[int] = []
        ranks: Any = SimpleNamespace(world_size=world_size)
        self.phases = StepTiming(
            False, self.optimizer, [self.parameter] if ranks.world_size > 1 else [], self.sampled
        )
        self.every, self.steps = every, steps

    def sampled(self, k: int) -> bool:
        self.asked.append(k)
        return k % self.every == 0

    def spend(self, seconds: float) -> None:
        self.now += seconds

    def windows(self) -> Iterator[Window]:
        for k in range(1, self.steps + 1):
            self.spend(3 + k)  # data
            yield Window(
                k=k,
                epoch=0,
                micro_batches=MICRO_BATCHES,
                samples=1,
                weights={"loss": 1.0},
                last_of_epoch=False,
            )

    def run(
        self, *, row: float = 0.0, evaluation: dict[int, float] | None = None, no_update: Any = ()
    ) -> dict[int, Any]:
        """{step: times}; a row costs `row` seconds, an evaluation after step k evaluation[k]."""

        def gradient(learner: Learner, window: Window) -> torch.Tensor:
            for seconds in (8, 9, 3):  # three micro-steps
                learner.task.loss_sum(None, {})
                self.spend(seconds)
                (self.parameter * 2).backward()
            self.spend(5)  # reduction
            return torch.zeros(1)

        learner: Any = Learner(**{field.name: None for field in fields(Learner)})  # type: ignore[arg-type]
        learner.task = SimpleNamespace(loss_sum=lambda model, batch: None)
        found = {}
        compute = self.phases.around(gradient)
        for window in self.phases.windows(self.windows()):
            self.spend(1)  # between window and gradient
            compute(learner, window)
            self.spend(7)
            if window.k not in no_update:
                self.optimizer.step()
            self.spend(0.5)  # after the update
            if window.k in (evaluation or {}):
                self.phases.outside(self.spend)((evaluation or {})[window.k])
            if window.k % self.every == 0:
                found[window.k] = self.phases.take()
                self.spend(row)
        return found


@pytest.mark.parametrize(("every", "row"), [(1, 0.0), (3, 0.0), (3, 40.0), (2, 40.0)])
def test_the_parts_add_up_to_the_step(
    monkeypatch: pytest.MonkeyPatch, every: int, row: float
) -> None:
    found = Steps(monkeypatch, every).run(row=row)

    assert list(found) == list(range(every, 7, every))
    for k, times in found.items():
        rest = 1 + (0.5 if k > 1 else 0)
        assert times == {
            names.DATA_SECONDS: 3 + k,
            names.FORWARD_BACKWARD_SECONDS: 25,
            names.SYNC_SECONDS: 5,
            names.OPTIMIZER_SECONDS: 7,
            names.REST_SECONDS: rest,
        }
        assert sum(times[part] for part in PARTS) == 3 + k + 25 + 7 + rest


def test_one_rank_synchronises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, of_two = Steps(monkeypatch, 3, world_size=1).run(), Steps(monkeypatch, 3).run()

    for k, times in alone.items():
        assert times == {
            name: seconds for name, seconds in of_two[k].items() if name != names.SYNC_SECONDS
        }


def test_a_row_after_every_step_is_part_of_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Steps(monkeypatch, 1).run(row=40)

    assert [times[names.REST_SECONDS] for times in found.values()] == [1, *[41.5] * 5]


def test_hooks_see_the_gradients_of_the_last_micro_step_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model of 148 tensors and 16 micro-steps would call 2,368 of them in a step that gets a row."""
    steps, called = Steps(monkeypatch, 3), []
    on_gradient = steps.phases._on_gradient

    def counted(parameter: torch.Tensor) -> None:
        called.append(parameter)
        on_gradient(parameter)

    monkeypatch.setattr(steps.phases, "_on_gradient", counted)

    found = steps.run()

    assert len(called) == 2  # one tensor, rows after steps 3 and 6
    assert [times[names.SYNC_SECONDS] for times in found.values()] == [5, 5]


def test_an_evaluation_belongs_to_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Steps(monkeypatch, 3).run(evaluation={2: 1000, 3: 1000, 5: 1000})

    assert [times[names.REST_SECONDS] for times in found.values()] == [1, 1]


def test_a_step_without_an_update_is_not_part_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Steps(monkeypatch, 3).run(no_update=(2, 6))

    assert found[3][names.REST_SECONDS] == 1
    assert found[6] == {}


def test_each_step_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch, 1000)

    steps.run()

    assert steps.asked == list(range(1, 8))


def slow_saves(arguments: list[str]) -> int:
    def slowly(self: Checkpoints, step: int, first: object = None) -> None:
        time.sleep(0.5)

    Checkpoints.save = slowly
    return main(arguments, "accumulate", compute_gradient)


def test_a_save_belongs_to_no_step(run_ranks: Any, tmp_path: Path) -> None:
    assert run_ranks(1, slow_saves, argv(tmp_path, "checkpoint.every_steps=2")) == [0]

    for row in rows(tmp_path):
        assert row[names.STEP_SECONDS] < 0.5
        assert row.get(names.REST_SECONDS, 0) < 0.5
