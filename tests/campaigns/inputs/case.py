"""One input: what is written, what is right, and what comes of it when the advice of each error is
typed.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tests.helpers import argv
from train.config import load
from train.data import Datasets, open_datasets
from train.errors import UserError

ROWS = 40
_random = np.random.default_rng(11)
A, B = (_random.normal(size=ROWS).round(3) for _ in range(2))
LABEL = (A + B > 0).astype(int)
"""What every table holds: two numbers, and whether their sum is above 0."""

TRIES = 3  # errors in a row whose advice is typed

RIGHT, ADVISED, REFUSED = "right", "right as advised", "refused"
SILENT, TRACE, FAILS = "SILENT", "TRACE", "ADVICE FAILS"
BAD = (SILENT, TRACE, FAILS)

_KEY = r"(?:data|task|name|output_dir|duration|wandb|batch|model)[\w.]*="
_TYPED = re.compile(rf"'({_KEY}[^']*)'|({_KEY}[^\s',;)]+)")


@dataclass(frozen=True)
class Truth:
    """Of the rows in their order."""

    inputs: NDArray[np.float64]  # (rows, ...)
    labels: Sequence[str]  # names of the classes, or their numbers as text


@dataclass(frozen=True)
class Case:
    kind: str
    name: str
    write: Callable[[Path], str]  # into an empty folder; gives data.source
    overrides: tuple[str, ...]
    truth: Truth
    may_be_refused: bool = False  # nothing that is typed reads it: the file itself must be changed

    def judge(self, folder: Path) -> "Outcome":
        home = folder / "input"
        home.mkdir(parents=True)
        source = self.write(home)
        return _tried(self, folder, (f"data.source={source}", *self.overrides), TRIES)


class Input(Protocol):
    @property
    def kind(self) -> str: ...

    @property
    def name(self) -> str: ...

    def judge(self, folder: Path) -> "Outcome": ...


@dataclass(frozen=True)
class Outcome:
    case: Input
    verdict: str
    said: str  # the last error, or what was read

    @property
    def is_bad(self) -> bool:
        return self.verdict in BAD


def table_truth(names: Sequence[str] = ("0", "1")) -> Truth:
    return Truth(np.stack([A, B], axis=1), [names[label] for label in LABEL])


def _tried(case: Case, folder: Path, overrides: tuple[str, ...], tries: int) -> Outcome:
    is_typed = tries < TRIES
    try:
        sets = open_datasets(load(argv(folder, *overrides)).config, ("inputs", "labels"))
        wrong = _difference(sets, case.truth)
    except UserError as error:
        return _advised(case, folder, overrides, tries, str(error))
    except Exception as error:
        return Outcome(case, FAILS if is_typed else TRACE, f"{type(error).__name__}: {error}")
    if wrong:
        return Outcome(case, FAILS if is_typed else SILENT, wrong)
    return Outcome(case, ADVISED if is_typed else RIGHT, "")


def _advised(
    case: Case, folder: Path, overrides: tuple[str, ...], tries: int, said: str
) -> Outcome:
    lines = typed_lines(said)
    outcomes = [_tried(case, folder, (*overrides, *line), tries - 1) for line in lines if tries]
    good = [outcome for outcome in outcomes if not outcome.is_bad]
    if good:
        return good[0]
    if case.may_be_refused:
        return Outcome(case, REFUSED, said)
    return Outcome(case, FAILS, said)


def typed_lines(said: str) -> list[tuple[str, ...]]:
    """What an error tells to type: the arguments that stand side by side are typed together."""
    lines: list[tuple[str, ...]] = []
    end = -2
    for found in _TYPED.finditer(said):
        argument = (found[1] or found[2]).rstrip(".")
        if found.start() == end + 1 and lines:
            lines[-1] = (*lines[-1], argument)
        else:
            lines.append((argument,))
        end = found.end()
    return lines


def _difference(sets: Datasets, truth: Truth) -> str:
    """Between what was read and what is right; none: ''."""
    size = sets.train.size or len(truth.labels)
    batch = sets.train.first(0, size)
    order = np.argsort(batch["sample_id"].numpy())
    found = batch["inputs"].double().numpy()[order]
    names = sets.classes.get("labels")
    numbers = batch["labels"].numpy()[order].astype(int)
    labels = [str(number) if names is None else names[number] for number in numbers]
    if len(found) != len(truth.inputs):
        return f"{len(found)} rows of {len(truth.inputs)}"
    if found.shape != truth.inputs.shape or not np.allclose(found, truth.inputs, atol=2e-3):
        return (
            f"other inputs: {found.reshape(len(found), -1)[0][:4]}, not "
            f"{truth.inputs.reshape(len(found), -1)[0][:4]}"
        )
    return (
        ""
        if labels == list(truth.labels)
        else f"other labels: {labels[:6]}, not {list(truth.labels)[:6]}"
    )
