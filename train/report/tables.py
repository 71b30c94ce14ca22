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

Table = Sequence[Mapping[str, str]]
"""Rows of {column: text}, all with the same columns."""
NAME = "samples"


@dataclass(frozen=True)
class Tables:
    """Rank 0's."""

    folder: RunFolder
    screen: Screen
    tracker: Tracker

    def show(self, place: Mapping[str, float], table: Table) -> None:
        """`place`: how far the training is, by the names of metrics."""
        table = clean(table)
        number = open_own(self.folder.inside(f"{NAME}.jsonl"))
        with os.fdopen(number, "a", encoding="utf-8") as file:
            file.writelines(json.dumps({**place, **row}) + "\n" for row in table)
        for row in table:
            self.screen.say("sample    " + " | ".join(map(_on_one_line, row.values())))
        if table:
            self.tracker.do(_send, (place, table))


def _on_one_line(text: str) -> str:
    """An untrained model writes control characters too: none of them may reach a terminal."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(text.split()))


def _send(run: Any, told: tuple[Mapping[str, float], Table]) -> None:
    import wandb  # here, as in the tracker: only where there is a run

    place, table = told
    data = [list(row.values()) for row in table]
    run.log({**place, NAME: wandb.Table(columns=[*table[0]], data=data)})
