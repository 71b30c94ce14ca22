"""Pages in W&B: python -m train.comparison.wandb_page ENTITY/PROJECT [RUN ...]

A saved view of the project, and where runs are named a report that compares them. Imports no torch.
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
from train.comparison.facts import Comparison
from train.comparison.judge import compare
from train.comparison.online import read_wandb
from train.comparison.panels import Panel, panels
from train.comparison.read import Found
from train.comparison.tables import Table, tables
from train.errors import FINISHED, UserError, entry_point
from train.installation import command

PROGRAM = command("page")
NAME = "Cost and gain"
LOOKED_AT = 20
"""The newest runs of a project, which tell what is evaluated in it."""
LONGEST_TITLE = 128
"""Characters, of a report in W&B."""

COLUMNS = (
    metric_names.RUN_EFFECTIVE_BATCH,
    metric_names.RUN_MICRO_BATCH,
    metric_names.RUN_ACCUMULATION_STEPS,
    metric_names.RUN_WORLD_SIZE,
    metric_names.RUN_PEAK_ALLOCATED,
    metric_names.RUN_PEAK_RSS,
    metric_names.RUN_SAMPLES_PER_SECOND,
    metric_names.RUN_EXACT,
    metric_names.VERIFIED_STEP,
)
"""Of the table of runs, from the left. Behind them: the best of what was evaluated, and its step.
"""

EPILOG = """\
RUN is the id of a run in that project, the last part of its address in W&B. The others are compared
with the first set-up. Each call saves new pages, and prints their addresses.

exit code: 0 saved, 2 not
"""

T = TypeVar("T")


class CannotSave(UserError):
    """There is no page; the message says why, and what to type."""


@entry_point
def main(argv: Sequence[str]) -> int:
    options = _parse(argv)
    for kind, address in save(options.project, options.runs).items():
        print(f"{kind:<8}{address}")
    return FINISHED


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="page.py",
        description=(
            "Save a view of a project in W&B, and a report that compares the runs which are named."
        ),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("project", metavar="ENTITY/PROJECT")
    parser.add_argument("runs", nargs="*", metavar="RUN")
    return parser.parse_args(argv)


def save(project: str, runs: Sequence[str]) -> dict[str, str]:
    """{kind: address} of what was saved. Raises CannotSave."""
    if not re.fullmatch(r"[^/\s]+/[^/\s]+", project):
        raise _refusal(
            "it takes ENTITY/PROJECT, as in a project's address in W&B", f"{PROGRAM} ENTITY/PROJECT"
        )
    _library("workspaces")  # before anybody is asked
    keys = _summary_keys(project)
    pages = {"view": _view(project, keys)}
    if runs:
        pages["report"] = _report(project, runs, keys)
    for page in pages.values():
        _asked(page.save, f"{PROGRAM} {shlex.join([project, *runs])}   (once more)")
    return {kind: str(page.url) for kind, page in pages.items()}


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


def _summary_keys(project: str) -> list[str]:
    """Of the newest runs: what is evaluated in the project, and what its runs tell of
    themselves.
    """
    api = _api()

    def ask() -> list[str]:
        newest = islice(api.runs(project, order="-created_at", lazy=False), LOOKED_AT)
        return [key for run in newest for key in dict(run.summary)]

    return _asked(ask, f"{PROGRAM} ENTITY/PROJECT   (one that has runs)")


def _columns(keys: Sequence[str]) -> list[str]:
    """As W&B calls them; those alone that a run has."""
    best = {key for key in keys if key.startswith(metric_names.BEST)} - {metric_names.BEST_STEP}
    wanted = [*COLUMNS, *sorted(best), metric_names.BEST_STEP]
    return [
        "run:displayName",
        "run:state",
        *(f"summary:{column}" for column in wanted if column in keys),
    ]


def _view(project: str, keys: Sequence[str]) -> Any:
    library = _library("workspaces")
    entity, _, name = project.partition("/")
    drawn = _drawn(panels(keys))
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
        runset_settings=library.RunsetSettings(pinned_columns=_columns(keys)),
    )


def _report(project: str, runs: Sequence[str], keys: Sequence[str]) -> Any:
    library = _library("reports.v2")
    entity, _, name = project.partition("/")
    found = Found()
    for run in dict.fromkeys(runs):
        found.add(f"{project}/{run}", read_wandb(f"{project}/{run}"))
    if not found.runs:
        told = "; ".join(f"{each.where}: {each.why}" for each in found.left_out)
        raise _refusal(told, f"{PROGRAM} {project} RUN   (the last part of a run's address)")
    comparison = compare(found.runs, found.left_out)
    ids = [run.where.rpartition("/")[2] for run in comparison.runs]
    drawn = _drawn(panels(metric for run in comparison.runs for metric in run.metrics))
    # Locked: else W&B shows the other 150 keys of config and summary as well.
    shown = library.Runset(
        entity=entity,
        project=name,
        filters=f"ID in {ids}",
        pinned_columns=_columns(keys),
        lock_columns=True,
    )
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
        parts.append(
            "\n".join(["### Notes", *(f"- {_escaped(note)}" for note in comparison.notes)])
        )
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
