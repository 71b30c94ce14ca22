"""A run that was interrupted, and goes on, is the run that was not."""

import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers import Array, argv, flat, rows
from train.batch.window import Window
from train.config import load
from train.loop import fit
from train.main import train
from train.run import build

STEPS = 12  # of 8 samples; an epoch of 37 has 5, so that each run sees two ends of an epoch
OWN = (
    "checkpoint.resume=auto",
    f"duration={{steps: {STEPS}}}",
    "optimizer.target=adamw",
    "optimizer.lr=0.01",
)
STREAM = ("data.source=tests.helpers.stream", "data.shuffle_buffer=16")
DROPOUT = ("model.args.dropout=0.3",)
WAYS = [
    (1, "standard", "all"),
    (1, "accumulate", "3"),
    (2, "standard", "all"),
    (2, "accumulate", "1"),
]
UNREPEATABLE = ("time/", "throughput/", "memory/", "progress/hours")


class Killed(BaseException):
    pass


@dataclass
class Segment:
    """What a rank did between a start and its end."""

    ids: dict[int, list[int]]  # by step: this rank's samples
    weights: Array
    moments: Array
    draws: list[float]  # the next random numbers of torch and NumPy


def segment(arguments: list[str], loop: str, killed_before: int | None = None) -> Segment:
    """One start on this rank; with `killed_before`, the process is gone in the middle of that step."""
    run = build(load(arguments), loop)
    ids: dict[int, list[int]] = {}

    def watched() -> Iterator[Window]:
        for window in run.windows:
            if window.k == killed_before:
                raise Killed
            ids[window.k] = [
                i for m in window.micro_batches if m.samples for i in m.batch["sample_id"].tolist()
            ]
            yield window

    compute_gradient = importlib.import_module(f"train.{loop}").compute_gradient
    try:
        fit(replace(run, windows=watched()), run.watch(compute_gradient))
        run.finish()
        run.report.close("finished", 0)
    except Killed:
        pass
    state = run.learner.optimizer.state_dict()["state"]
    moments = [
        value
        for of_one in state.values()
        for value in of_one.values()
        if isinstance(value, torch.Tensor)
    ]
    draws = [torch.rand(1).item(), float(np.random.rand())]
    return Segment(ids, flat(run.learner.parameters), flat([m.flatten() for m in moments]), draws)


def repeatable(folder: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in row.items() if not key.startswith(UNREPEATABLE)}
        for row in rows(folder, "train/loss")
    ]


# Checkpoints at 3, 6, 9: steps 7 and 8, or step 4, are trained twice. One rank that accumulates,
# with dropout: tests/gpu/test_resume.py.
@pytest.mark.parametrize(
    ("world_size", "loop", "micro", "extra", "killed_before"),
    [
        *(pytest.param(*way, STREAM, 5, id=f"{way[0]}-{way[1]}-stream") for way in WAYS),
        *(
            pytest.param(*way, DROPOUT, 9, id=f"{way[0]}-{way[1]}-dropout")
            for way in WAYS
            if way != WAYS[1]
        ),
    ],
)
def test_bit_identical_on_the_same_ranks(
    run_ranks: Any,
    tmp_path: Path,
    world_size: int,
    loop: str,
    micro: str,
    extra: tuple[str, ...],
    killed_before: int,
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    given = (*OWN, "checkpoint.every_steps=3", "precision=fp32", f"batch.micro={micro}", *extra)

    uninterrupted = run_ranks(world_size, segment, argv(whole, *given), loop)
    before = run_ranks(world_size, segment, argv(parts, *given), loop, killed_before)
    after = run_ranks(world_size, segment, argv(parts, *given), loop)

    for rank in range(world_size):
        expected, first, second = uninterrupted[rank], before[rank], after[rank]
        assert max(first.ids) == killed_before - 1, "the fault fired"
        assert min(second.ids) == 3 * ((killed_before - 1) // 3) + 1
        assert {**first.ids, **second.ids} == expected.ids
        assert np.array_equal(second.weights, expected.weights)
        assert np.array_equal(second.moments, expected.moments)
        assert second.draws == expected.draws
        assert not np.array_equal(first.weights, expected.weights)
    assert repeatable(parts) == repeatable(whole)
    assert [row["train/global_step"] for row in repeatable(parts)] == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
    ("before", "after"), [((1, "8"), (2, "2")), ((2, "2"), (1, "3")), ((2, "4"), (3, "1"))]
)
@pytest.mark.parametrize("extra", [(), STREAM], ids=["rows", "stream"])
def test_the_same_curve_on_other_ranks(
    run_ranks: Any,
    tmp_path: Path,
    before: tuple[int, str],
    after: tuple[int, str],
    extra: tuple[str, ...],
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    given = (*OWN, "checkpoint.every_steps=3", *extra)

    run_ranks(1, segment, argv(whole, *given), "accumulate")
    run_ranks(before[0], segment, argv(parts, *given, f"batch.micro={before[1]}"), "accumulate", 8)
    run_ranks(after[0], segment, argv(parts, *given, f"batch.micro={after[1]}"), "accumulate")

    ours, expected = repeatable(parts), repeatable(whole)
    assert [row["batch/world_size"] for row in ours] == [before[0]] * 6 + [after[0]] * 6
    for key in (
        "train/learning_rate",
        "batch/effective_size",
        "progress/samples_seen",
        "train/epoch",
    ):
        assert [row[key] for row in ours] == [row[key] for row in expected]
    for key in ("train/loss", "train/grad_norm"):
        np.testing.assert_allclose(
            [row[key] for row in ours], [row[key] for row in expected], rtol=1e-10
        )
    assert (
        f"world_size: {before[0]} there, {after[0]} now" in (parts / "run" / "log.txt").read_text()
    )


def stopped_inside(arguments: list[str]) -> tuple[str, int, int]:
    """The way an entry point goes; a signal comes in the third micro-batch of step 6."""
    import signal

    from train.accumulate import compute_gradient
    from train.step import Learner

    calls = []

    def interrupted(learner: Learner, window: Window) -> torch.Tensor:
        def on_third(*_: object) -> None:
            calls.append(window.k)
            if len(calls) == 3:
                signal.raise_signal(signal.SIGTERM)

        hook = learner.module.register_forward_hook(on_third) if window.k == 6 else None
        try:
            return compute_gradient(learner, window)
        finally:
            if hook:
                hook.remove()

    ended = train(load(arguments), "accumulate", interrupted)
    assert calls.count(6) == 4, "the signal came in a micro-step of step 6"
    return ended.reason, ended.code, ended.step


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_stop_is_saved_at_the_end_of_a_step(
    run_ranks: Any, tmp_path: Path, world_size: int
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    given = (*OWN, f"batch.micro={2 // world_size}", *DROPOUT)

    uninterrupted = run_ranks(world_size, segment, argv(whole, *given), "accumulate")
    stopped = run_ranks(world_size, stopped_inside, argv(parts, *given))
    after = run_ranks(world_size, segment, argv(parts, *given), "accumulate")

    reason, code, step = stopped[0]
    assert (reason, code) == ("stopped by SIGTERM", 75)
    assert step in (6, 7, 8)
    assert len(set(stopped)) == 1
    assert min(after[0].ids) == step + 1
    for resumed, expected in zip(after, uninterrupted, strict=True):
        assert np.array_equal(resumed.weights, expected.weights)
    assert repeatable(parts) == repeatable(whole)


def go(arguments: list[str]) -> tuple[str, int, int]:
    from train.accumulate import compute_gradient

    ended = train(load(arguments), "accumulate", compute_gradient)
    return ended.reason, ended.code, ended.step


def test_a_stop_file_and_hours(run_ranks: Any, tmp_path: Path) -> None:
    (by_hours,) = run_ranks(1, go, argv(tmp_path, *OWN, "duration={steps: 100000, hours: 0.001}"))
    (tmp_path / "run" / "stop").touch()
    (by_file,) = run_ranks(1, go, argv(tmp_path, *OWN, "duration={steps: 100000}"))

    assert by_hours[:2] == ("stopped by duration.hours=0.001", 75)
    assert by_file[1] == 75
    assert by_file[0].endswith("run/stop")
    assert by_file[2] == by_hours[2] > 0, "it was there before the first step"
    assert not (tmp_path / "run" / "stop").exists()
    ended = json.loads((tmp_path / "run" / "ended.json").read_text())
    assert (ended["code"], ended["step"]) == (75, by_file[2])


def test_a_finished_run_goes_on_for_longer(run_ranks: Any, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()

    run_ranks(1, segment, argv(whole, *OWN), "accumulate")
    run_ranks(1, segment, argv(parts, *OWN, "duration={steps: 7}"), "accumulate")
    (after,) = run_ranks(1, segment, argv(parts, *OWN), "accumulate")

    assert min(after.ids) == 8
    assert repeatable(parts) == repeatable(whole)
    assert "duration.steps: 7 there, 12 now" in (parts / "run" / "log.txt").read_text()


def test_from_an_older_checkpoint_by_name(run_ranks: Any, tmp_path: Path) -> None:
    given = (*OWN, "checkpoint.every_steps=3", "checkpoint.keep=9")
    run_ranks(1, segment, argv(tmp_path, *given), "accumulate")
    before = repeatable(tmp_path)
    path = tmp_path / "run" / "checkpoints" / "step-00000006"

    (after,) = run_ranks(
        1, segment, argv(tmp_path, *given, f"checkpoint.resume={path}"), "accumulate"
    )

    assert min(after.ids) == 7
    assert repeatable(tmp_path) == before, "neither a hole nor a duplicate"
    kept = {p.name for p in path.parent.iterdir()}
    assert {"step-00000009", "step-00000009.abandoned", "step-00000012.abandoned"} <= kept


def test_another_run_begins_where_one_was(run_ranks: Any, tmp_path: Path) -> None:
    run_ranks(1, segment, argv(tmp_path, *OWN, "checkpoint.every_steps=3"), "accumulate")

    fork = argv(
        tmp_path, *OWN, "name=fork", "optimizer.lr=0.001", f"checkpoint.resume={tmp_path / 'run'}"
    )
    (after,) = run_ranks(1, segment, [*fork, "duration={steps: 15}"], "accumulate")

    assert list(after.ids) == [13, 14, 15]
    assert [row["train/global_step"] for row in rows(tmp_path, name="fork")] == [13, 14, 15]
    assert rows(tmp_path, name="fork")[0]["train/learning_rate"] == 0.001


def test_tied_weights_are_kept_once(run_ranks: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    given = (*OWN, "model={target: tests.test_resume.Tied, args: {}}", "checkpoint.every_steps=3")
    run_ranks(1, segment, argv(tmp_path, *given), "accumulate", 5)
    saved = load_file(tmp_path / "run" / "checkpoints" / "step-00000003" / "model.safetensors")
    (after,) = run_ranks(1, segment, argv(tmp_path, *given), "accumulate")

    assert len(saved) == 3
    assert min(after.ids) == 4


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = (
            nn.Linear(6, 6),
            nn.Linear(6, 6, bias=False),
            nn.Linear(6, 3, bias=False),
        )
        self.second.weight = self.first.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.last(self.second(self.first(inputs)))
        return outputs
