"""Texts that a model writes while it trains: on the screen, in samples.jsonl, in a table in W&B."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from train.disk import open_own
from train.redaction import clean
from train.report.folder import RunFolder
from train.report.screen import Screen
from train.report.tracker import Tracker
from train.terminal import on_one_line

Table = Sequence[Mapping[str, str]]
"""Rows of {column: text}, all with the same columns."""
NAME = "samples"
MOST_ON_SCREEN, LONGEST_ON_SCREEN = 5, 200
"""Rows of a table, and letters of a text; samples.jsonl and W&B have all of them."""


@dataclass(frozen=True)
class Tables:
    """Rank 0's."""

    folder: RunFolder
    screen: Screen
    tracker: Tracker

    def show(self, place: Mapping[str, float], table: Table) -> None:
        """`place`: how far the training is, by the names of metrics."""
        table = clean(table)
        texts = [{str(column): _text(value) for column, value in row.items()} for row in table]
        number = open_own(self.folder.inside(f"{NAME}.jsonl"))
        with os.fdopen(number, "a", encoding="utf-8") as file:
            file.writelines(json.dumps({**place, **row}) + "\n" for row in texts)
        self.screen.say(*map(_line, texts[:MOST_ON_SCREEN]))
        if len(texts) > MOST_ON_SCREEN:
            self.screen.say(f"sample    ... {len(texts) - MOST_ON_SCREEN:,} more in {NAME}.jsonl")
        if texts:
            self.tracker.do(_send, (place, texts))


def _text(value: object) -> str:
    """A sample that is no text (bytes, None, half of a surrogate pair) as one that every file and
    server takes.
    """
    whole = value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
    return whole.encode(errors="backslashreplace").decode()


def _line(row: Mapping[str, str]) -> str:
    """An untrained model writes control characters too: none of them may reach a terminal."""
    cells = [on_one_line(" ".join(text.split()), LONGEST_ON_SCREEN) for text in row.values()]
    return "sample    " + " | ".join(cells)


def _send(run: Any, told: tuple[Mapping[str, float], Table]) -> None:
    import wandb  # here, as in the tracker: only where there is a run

    place, table = told
    data = [list(row.values()) for row in table]
    run.log({**place, NAME: wandb.Table(columns=[*table[0]], data=data)})
