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
MOST_ON_SCREEN = 5
"""Rows of a table; samples.jsonl and W&B have all of them."""
LONGEST_ON_SCREEN = 200
"""Characters of a text."""


@dataclass(frozen=True)
class Tables:
    """Rank 0's."""

    folder: RunFolder
    screen: Screen
    tracker: Tracker

    def show(self, position: Mapping[str, float], table: Table) -> None:
        """`position`: how far the training is, by the names of metrics."""
        table = [_texts(row) for row in clean(table)]
        # By path, through `inside`: a folder that is another run's by now gets nothing.
        descriptor = open_own(self.folder.inside(f"{NAME}.jsonl"))
        # Opened for each table, which come seldom: nothing has to follow a folder that moves.
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            file.writelines(json.dumps({**position, **row}) + "\n" for row in table)
        self.screen.say(*map(_line, table[:MOST_ON_SCREEN]))
        if len(table) > MOST_ON_SCREEN:
            self.screen.say(f"sample    ... {len(table) - MOST_ON_SCREEN:,} more in {NAME}.jsonl")
        if table:
            # W&B makes columns of the first row: an empty table has none.
            self.tracker.do(_send, (position, table))


def _texts(row: Mapping[str, object]) -> dict[str, str]:
    return {str(column): _text(value) for column, value in row.items()}


def _text(value: object) -> str:
    """A text that every file and server takes, also of bytes, None, or half of a surrogate pair."""
    if isinstance(value, bytes):
        text = value.decode(errors="backslashreplace")
    else:
        text = str(value)
    return text.encode(errors="backslashreplace").decode()


def _line(row: Mapping[str, str]) -> str:
    """An untrained model writes control characters too: none of them may reach a terminal."""
    cells = [on_one_line(" ".join(text.split()), LONGEST_ON_SCREEN) for text in row.values()]
    return "sample    " + " | ".join(cells)


def _send(run: Any, row: tuple[Mapping[str, float], Table]) -> None:
    import wandb  # here: only a run that is tracked pays for it

    position, table = row
    data = [list(texts.values()) for texts in table]
    run.log({**position, NAME: wandb.Table(columns=[*table[0]], data=data)})
