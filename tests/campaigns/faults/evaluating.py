"""A row about the user's own code in an evaluation: it fails at any place, on any rank, and costs
no step.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from tests.campaigns.faults import compare, ranks
from tests.campaigns.faults.row import Row, check_fired, folder, train
from tests.helpers import argv
from train.batch.window import Batch
from train.checkpoint.commit import complete
from train.checkpoint.manifest import step_of
from train.tasks.classification import Classification

STEPS = {1: 0, 2: 3, 3: 6, 4: 7}
"""After which step each evaluation comes: at the start, twice in the middle, after the last step.
"""
KINDS = {
    "ValueError": "a metric's own",
    "out of memory": "out of memory with one sample at a time",
    "sys.exit": "SystemExit",
    "NaN": "",
}
"""What a metric does, and what the last sentence of the run says of it; a number that is none is
reported as such.
"""


class Faulty(Classification):
    """Its metric fails from the evaluation of a number on: FAULTY in the environment."""

    calls = 0

    def eval_sums(self, model: Any, batch: Batch) -> dict[str, Any]:
        at, kind, only = json.loads(os.environ.get("FAULTY", '[1000, "", null]'))
        Faulty.calls += 1
        sums: dict[str, Any] = super().eval_sums(model, batch)
        if Faulty.calls < at or only not in (None, ranks.rank()):
            return sums
        ranks.fired(kind)
        if kind == "ValueError":
            raise ValueError("a metric's own")
        if kind == "out of memory":
            raise MemoryError
        if kind == "sys.exit":
            sys.exit("a metric's own")
        return sums | {"loss": (float("nan"), 1)}


@dataclass(frozen=True)
class Case:
    world_size: int
    at: int  # evaluation
    kind: str
    only: int | None  # rank; None: all
    best: bool


def cases(full: bool) -> Sequence[Case]:
    if not full:
        return (
            Case(1, 4, "sys.exit", None, True),
            Case(2, 2, "out of memory", 1, True),
            Case(2, 1, "sys.exit", 0, False),
            Case(2, 3, "NaN", 0, True),
        )
    places = [(1, None), (2, None), (2, 0), (2, 1), (3, 1)]
    every = product(places, STEPS, KINDS, (True, False))
    return [Case(world_size, at, kind, only, best) for (world_size, only), at, kind, best in every]


def failing_evaluations(here: Path, full: bool) -> str:
    preserve_state: dict[tuple[int, bool], Path] = {}
    tried = cases(full)
    for number, case in enumerate(tried):
        key = (case.world_size, case.best)
        if key not in preserve_state:
            preserve_state[key] = folder(here, f"reference-{case.world_size}-{case.best}")
            codes, job = train(
                preserve_state[key], case.world_size, words(preserve_state[key], case.best)
            )
            assert codes == [0] * case.world_size, job.told()
        _fail_and_resume(folder(here, str(number)), case, preserve_state[key])
    return (
        f"{len(tried)} of {len(tried)}: steps lost 0, hangs 0; the resume did the owed "
        "evaluation, bit-identical"
    )


def words(here: Path, best: bool) -> list[str]:
    given = (
        "task=tests.campaigns.faults.evaluating.Faulty",
        "data.eval_fraction=0.2",
        "duration={steps: 7}",
    )
    often = (
        f"evaluate={{every_steps: 3, at_start: true, best: {'eval/accuracy' if best else 'null'}}}"
    )
    return argv(here, *given, often, "checkpoint={resume: auto, every_steps: 100}")


def _fail_and_resume(own: Path, case: Case, preserve_state: Path) -> None:
    fault = json.dumps([case.at, case.kind, case.only])
    codes, job = train(own, case.world_size, words(own, case.best), FAULTY=fault)
    check_fired(own, case.kind)
    ended = json.loads((own / "run" / "ended.json").read_text())
    if case.kind == "NaN":
        assert codes == [0] * case.world_size, f"{case}: {codes}\n{job.told()}"
        assert ended["reason"] == "finished"
        return
    step = STEPS[case.at]
    code = 1 if case.kind == "out of memory" else 2
    assert codes == [code] * case.world_size, f"{case}: {codes}\n{job.told()}"
    assert KINDS[case.kind] in ended["reason"], f"{case}: {ended}"
    assert f"Step {step} is saved." in ended["reason"], f"{case}: {ended}"
    assert "Traceback" not in job.told(), f"{case}: {job.told()}"
    assert step_of(complete(own / "run" / "checkpoints")[-1]) == step, case
    codes, job = train(own, case.world_size, words(own, case.best))
    assert codes == [0] * case.world_size, f"{case}: {codes}\n{job.told()}"
    apart = compare.differing(compare.state(preserve_state / "run"), compare.state(own / "run"))
    assert not apart, f"{case}: {apart[:5]}"
    evaluated = [
        row["train/global_step"] for row in compare.rows(own / "run") if "eval/loss" in row
    ]
    assert evaluated == list(STEPS.values()), f"{case}: {evaluated}"


ROWS = (
    Row(
        "39",
        "a metric fails in an evaluation",
        "an exception, out of memory, sys.exit, NaN; at the start, twice in the middle, at the "
        "end; on one rank or all of 1 to 3; a best kept or not",
        "no step lost, the metric's error is named, the resume evaluates first and ends "
        "bit-identical",
        failing_evaluations,
    ),
)
