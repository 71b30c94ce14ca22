"""What fails on one rank alone, outside of a step: all ranks end by it, and what they hold is
saved.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

import train.run
from tests.campaigns.faults.compare import differing, state
from tests.helpers import argv
from train.accumulate import compute_gradient
from train.batch.window import Window
from train.disk import remove
from train.distributed.ranks import launched_rank
from train.distributed.stop import Stop
from train.main import main
from train.metrics import profiler
from train.parts import Part
from train.report.screen import Screen
from train.report.tracker import Tracker

GIVEN = (
    "data.eval_fraction=0.2",
    "evaluate={every_steps: 3, best: eval/loss}",
    "checkpoint={resume: auto, every_steps: 4}",
    "duration={steps: 7}",
    "profile.steps=[2,3]",
)


class Fault(Exception):
    """Nothing that a run knows of."""


def failing(place: Callable[..., Any], when: Callable[..., bool]) -> Callable[..., Any]:
    """The same function, which fails once `when(*args)` is true."""

    def fails(*args: Any, **options: Any) -> Any:
        if when(*args):
            raise Fault("a fault of one rank")
        return place(*args, **options)

    return fails


def broken_row(key: str) -> Callable[..., bool]:
    return lambda sink, row: key in row


def taken(windows: Iterable[Window]) -> Iterator[Window]:
    """A part that takes a window and fails before it hands it on."""
    for window in windows:
        if window.k == 5:
            raise Fault("a fault of one rank")
        yield window


def break_at(patch: pytest.MonkeyPatch, place: str, rank: int) -> None:
    if launched_rank() != rank:
        return
    rows = {"train row": (Screen, "train/loss"), "evaluation row": (Tracker, "eval/loss")}
    rows["save row"] = (Tracker, "time/save_seconds")
    if place in rows:
        sink, key = rows[place]
        patch.setattr(sink, "log", failing(sink.log, broken_row(key)))
    elif place == "profile":
        patch.setattr(profiler, "remove", failing(remove, lambda path: path.name == "trace.json"))
    elif place == "stop file":
        looks = count(1)
        patch.setattr(Stop, "requested", failing(Stop.requested, lambda stop: next(looks) == 3))
    else:
        ours = train.run.list_parts
        rows_made = count(1)
        sixth = failing(dict, lambda metrics: next(rows_made) == 6)
        part = {
            "metrics": Part(name="own", metrics=sixth),
            "windows": Part(name="own", windows=taken),
        }[place]
        patch.setattr(train.run, "list_parts", lambda *args: (part, *ours(*args)))


def start(arguments: list[str]) -> str:
    try:
        return str(main(arguments, "accumulate", compute_gradient))
    except Fault as error:
        return str(error)


def broken_and_resumed(cases: list[tuple[str, int, list[str]]]) -> list[tuple[str, int, str]]:
    """Of each case: how it ended, at which step all ranks were saved, how the resume ended."""
    # it would take the process group with it; the next run needs it
    Accelerator.end_training = lambda self: None
    found = []
    for place, rank, arguments in cases:
        folder = Path(arguments[1].removeprefix("output_dir=")) / "run"
        with pytest.MonkeyPatch.context() as patch:
            break_at(patch, place, rank)
            ended = start(arguments)
        saved = -1
        if launched_rank() == 0:  # the other may have left before it is written
            saved = max(
                int(path.name[5:]) for path in (folder / "checkpoints").glob("step-????????")
            )
            reason = json.loads((folder / "ended.json").read_text())["reason"]
            assert "a fault of one rank" in reason, f"{place}: {reason}"
            assert f"Step {saved} is saved" in reason, f"{place}: {reason}"
        found.append((ended, saved, start(arguments)))
    return found


# Where it fails, on which rank, and the step that is saved: a step is under way before the ranks
# next agree.
PLACES = (
    ("train row", 0, 2),
    ("evaluation row", 0, 4),
    ("save row", 0, 5),
    ("profile", 0, 4),
    ("stop file", 0, 2),
    ("metrics", 1, 7),
    ("windows", 1, 6),
)


def test_all_ranks_end_and_what_they_hold_is_saved(run_ranks: Any, tmp_path: Path) -> None:
    cases = []
    for place, rank, _ in (("preserve_state", -1, 0), *PLACES):
        folder = tmp_path / place
        folder.mkdir()
        cases.append((place, rank, argv(folder, *GIVEN)))
    assert run_ranks(2, start, cases[0][2]) == ["0", "0"]

    found = run_ranks(2, broken_and_resumed, cases[1:])

    for (place, _, step), *of_ranks in zip(PLACES, *found, strict=True):
        assert of_ranks[0][1] == step, (place, of_ranks)
        assert [resumed for _, _, resumed in of_ranks] == ["0", "0"], (place, of_ranks)
        assert all("a fault of one rank" in ended for ended, _, _ in of_ranks), (place, of_ranks)
        assert not differing(
            state(tmp_path / "preserve_state" / "run"), state(tmp_path / place / "run")
        ), place
