"""A page in W&B: python -m train.comparison.wandb_page ENTITY/PROJECT [RUN ...]

Without RUN a workspace of the whole project, with them a report that compares those runs. Imports no torch.
"""

import argparse
import importlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, TypeVar

from train import metric_names
from train.comparison.judge import Comparison, compare
from train.comparison.online import read_wandb
from train.comparison.panels import Panel, panels
from train.comparison.read import Found
from train.comparison.tables import Table, tables
from train.errors import FINISHED, UserError, entry_point

PROGRAM = "python scripts/page.py"
NAME = "Cost and gain"
LOOKED_AT = 20
"""The newest runs of a project, which tell what is evaluated in it."""
LONGEST_TITLE = 128
"""Characters, of a report in W&B."""

COLUMNS = [f"summary:{metric_names.RUN_BATCH}"]
"""Pinned to the left of the table of runs."""

EPILOG = """\
RUN is the id of a run in that project, the last part of its address in W&B. The first set-up is what the others are
compared with. Each call saves a new page, and prints its address.

exit code: 0 saved, 2 not
"""

T = TypeVar("T")


class CannotSave(UserError):
    """There is no page; the message says why, and what to type."""


@entry_point
def main(argv: Sequence[str]) -> int:
    options = _parse(argv)
    print(save(options.project, options.runs))
    return FINISHED


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="page.py",
        description="Save a page in W&B: a workspace of a project, or a report that compares some of its runs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("project", metavar="ENTITY/PROJECT")
    parser.add_argument("runs", nargs="*", metavar="RUN")
    return parser.parse_args(argv)


def save(project: str, runs: Sequence[str]) -> str:
    """The address of what was saved. Raises CannotSave."""
    if not re.fullmatch(r"[^/\s]+/[^/\s]+", project):
        raise _refusal("it takes ENTITY/PROJECT, as in a project's address in W&B", f"{PROGRAM} ENTITY/PROJECT")
    page = _report(project, runs) if runs else _workspace(project)
    _asked(page.save, f"{PROGRAM} {shlex.join([project, *runs])}   (once more)")
    return str(page.url)


def _api() -> Any:
    """Asks no question: who is not logged in is told so."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own stack traces, to its makers
    import wandb  # here: it takes a second, which bad arguments need not pay

    wandb.setup(wandb.Settings(silent=True))
    return _asked(wandb.Api, "wandb login")


def _library(name: str) -> Any:
    try:
        return importlib.import_module(f"wandb_workspaces.{name}")
    except ImportError as error:
        raise _refusal(str(error), 'python -m pip install "wandb-workspaces>=0.4.13"') from error


def _asked(question: Callable[[], T], type_this: str) -> T:
    """The answer of W&B; whatever wandb raises, a network included, is a reason and no crash."""
    try:
        return question()
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise _refusal(f"W&B says: {type(error).__name__}: {lines[0]}", type_this) from error


def _refusal(got: str, type_this: str) -> CannotSave:
    return CannotSave(f"page: nothing was saved\n  got:  {got}\n  type: {type_this}")


def _workspace(project: str) -> Any:
    library, (entity, _, name) = _library("workspaces"), project.partition("/")
    api = _api()

    def metrics() -> list[str]:
        newest = islice(api.runs(project, order="-created_at", lazy=False), LOOKED_AT)
        return [metric for run in newest for metric in dict(run.summary)]

    drawn = _drawn(panels(_asked(metrics, f"{PROGRAM} ENTITY/PROJECT   (one that has runs)")))
    section = library.Section(
        name=NAME,
        panels=drawn,
        is_open=True,
        layout_settings=library.SectionLayoutSettings(columns=2, rows=len(drawn) // 2),
        panel_settings=library.SectionPanelSettings(x_axis=metric_names.SAMPLES_SEEN),
    )
    return library.Workspace(
        entity=entity,
        project=name,
        name=NAME,
        sections=[section],
        settings=library.WorkspaceSettings(x_axis=metric_names.SAMPLES_SEEN),
        runset_settings=library.RunsetSettings(pinned_columns=COLUMNS),
    )


def _report(project: str, runs: Sequence[str]) -> Any:
    library, (entity, _, name), found = _library("reports.v2"), project.partition("/"), Found()
    _api()  # who is not logged in is told so once, not for each run
    for run in dict.fromkeys(runs):
        found.add(f"{project}/{run}", read_wandb(f"{project}/{run}"))
    if not found.runs:
        told = "; ".join(f"{each.where}: {each.why}" for each in found.left_out)
        raise _refusal(told, f"{PROGRAM} {project} RUN   (the last part of a run's address)")
    comparison = compare(found.runs, found.left_out)
    ids = [run.where.rpartition("/")[2] for run in comparison.runs]
    drawn = _drawn(panels(metric for run in comparison.runs for metric in run.metrics))
    shown = library.Runset(entity=entity, project=name, filters=f"ID in {ids}", pinned_columns=COLUMNS)
    title = "Comparison of " + ", ".join(group.label for group in comparison.groups)
    return library.Report(
        entity=entity,
        project=name,
        title=title if len(title) <= LONGEST_TITLE else f"{title[: LONGEST_TITLE - 3]}...",
        blocks=[
            library.MarkdownBlock(text=_text(comparison)),
            library.PanelGrid(runsets=[shown], panels=drawn),
        ],
        width="fluid",
    )


def _drawn(wanted: Sequence[Panel]) -> list[Any]:
    """Two in a row, on a report's 24 columns."""
    library = _library("reports.v2")
    return [
        library.LinePlot(
            title=panel.title,
            x=panel.x,
            y=list(panel.y),
            log_y=panel.log_y or None,
            layout=library.Layout(x=12 * (place % 2), y=8 * (place // 2), w=12, h=8),
        )
        for place, panel in enumerate(wanted)
    ]


def _text(comparison: Comparison) -> str:
    """Verdict, tables and notes, in Markdown."""
    parts = [f"**{_escaped(comparison.verdict)}**", *map(_table, tables(comparison))]
    if comparison.notes:
        parts.append("\n".join(["### Notes", *(f"- {_escaped(note)}" for note in comparison.notes)]))
    return "\n\n".join(parts)


def _table(table: Table) -> str:
    lines = [table.header, ["---"] + ["---:"] * (len(table.header) - 1), *table.rows]
    rows = ("| " + " | ".join(map(_escaped, line)) + " |" for line in lines)
    return "\n".join([f"### {_escaped(table.title)}", "", *rows])


def _escaped(text: str) -> str:
    """Names of runs and values of keys may hold what Markdown takes for its own."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
