"""Pages in W&B: python -m train.comparison.wandb_page ENTITY/PROJECT [RUN ...]

A saved view of the project, and where runs are named a report that compares them. Imports no torch.
"""

import argparse
import importlib
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, TypeVar

from train import metric_names
from train.comparison.compare import compare
from train.comparison.comparison import Comparison
from train.comparison.online import first_line, read_wandb, wandb_api
from train.comparison.panels import panels
from train.comparison.read import LoadedRuns
from train.comparison.tables import Table, tables
from train.errors import FINISHED, UserError, entry_point
from train.installation import command

PROGRAM = command("page")
NAME = "Cost and gain"
NEWEST = 20
"""Runs of a project that are asked what is evaluated in it."""
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
    """There is no page; the message says why, and what to run."""


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
        raise _cannot_save(
            "it takes ENTITY/PROJECT, as in a project's address in W&B", f"{PROGRAM} ENTITY/PROJECT"
        )
    # Before W&B is asked, which takes seconds: a missing library is reported at once.
    _library("workspaces")
    keys = _summary_keys(project)
    # All pages are made before the first is saved: a run that cannot be read leaves nothing behind.
    pages = {"view": _view(project, keys)}
    if runs:
        pages["report"] = _report(project, runs, keys)
    for page in pages.values():
        _ask(page.save, f"{PROGRAM} {shlex.join([project, *runs])}   (once more)")
    return {kind: str(page.url) for kind, page in pages.items()}


def _library(name: str) -> Any:
    try:
        return importlib.import_module(f"wandb_workspaces.{name}")
    except ImportError as error:
        raise _cannot_save(
            str(error), 'python -m pip install "wandb-workspaces>=0.4.13"'
        ) from error


def _ask(question: Callable[[], T], command: str) -> T:
    """The answer of W&B. `command`: what to run where it gives none."""
    try:
        return question()
    except Exception as error:  # whatever wandb raises is a reason: no network, no such project
        raise _cannot_save(f"W&B says: {first_line(error)}", command) from error


def _cannot_save(got: str, command: str) -> CannotSave:
    return CannotSave(f"page: nothing was saved\n  got:  {got}\n  Run:  {command}")


def _summary_keys(project: str) -> list[str]:
    """Of the newest runs: what is evaluated in the project, and what its runs log of themselves."""
    api = _ask(wandb_api, "wandb login")

    def newest_summaries() -> list[dict[str, Any]]:
        # lazy=False: else each summary would be a request of its own.
        runs = api.runs(project, order="-created_at", lazy=False)
        return [dict(run.summary) for run in islice(runs, NEWEST)]

    keys: list[str] = []
    for summary in _ask(newest_summaries, f"{PROGRAM} ENTITY/PROJECT   (one that has runs)"):
        keys.extend(summary)
    return keys


def _columns(keys: Sequence[str]) -> list[str]:
    """As W&B names them; those alone that a run has."""
    # What is evaluated differs from task to task: best/loss, best/accuracy.
    best = {key for key in keys if key.startswith(metric_names.BEST)} - {metric_names.BEST_STEP}
    columns = ["run:displayName", "run:state"]
    # The step of the best comes last, behind all that it may belong to.
    for key in (*COLUMNS, *sorted(best), metric_names.BEST_STEP):
        if key in keys:
            columns.append(f"summary:{key}")
    return columns


def _view(project: str, keys: Sequence[str]) -> Any:
    library = _library("workspaces")
    entity, _, name = project.partition("/")
    plots = _line_plots(keys)
    section = library.Section(
        name=NAME,
        panels=plots,
        is_open=True,
        layout_settings=library.SectionLayoutSettings(columns=2, rows=len(plots) // 2),
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


def _report(project: str, run_ids: Sequence[str], keys: Sequence[str]) -> Any:
    library = _library("reports.v2")
    entity, _, name = project.partition("/")
    comparison = _compare(project, run_ids)
    # Without those that could not be read: the filter would show them without figures.
    compared_ids = [run.where.rpartition("/")[2] for run in comparison.runs]
    # Locked: else W&B shows the other 150 keys of config and summary as well.
    runset = library.Runset(
        entity=entity,
        project=name,
        filters=f"ID in {compared_ids}",
        pinned_columns=_columns(keys),
        lock_columns=True,
    )
    metrics = [metric for run in comparison.runs for metric in run.metrics]
    title = "Comparison of " + ", ".join(comparison.labels)
    if len(title) > LONGEST_TITLE:
        title = f"{title[: LONGEST_TITLE - 3]}..."
    return library.Report(
        entity=entity,
        project=name,
        title=title,
        blocks=[
            library.MarkdownBlock(text=_markdown(comparison)),
            library.PanelGrid(runsets=[runset], panels=_line_plots(metrics)),
        ],
        width="fluid",
    )


def _compare(project: str, run_ids: Sequence[str]) -> Comparison:
    loaded = LoadedRuns()
    # Each once: a run that is named twice would be compared with itself.
    for run_id in dict.fromkeys(run_ids):
        path = f"{project}/{run_id}"
        loaded.add(path, read_wandb(path))
    if not loaded.runs:
        reasons = "; ".join(f"{each.where}: {each.why}" for each in loaded.skipped)
        raise _cannot_save(reasons, f"{PROGRAM} {project} RUN   (the last part of a run's address)")
    return compare(loaded.runs, loaded.skipped)


def _line_plots(metrics: Iterable[str]) -> list[Any]:
    """Two in a row, on a report's 24 columns."""
    library = _library("reports.v2")
    plots = []
    for index, panel in enumerate(panels(metrics)):
        row, column = divmod(index, 2)
        plots.append(
            library.LinePlot(
                title=panel.title,
                x=panel.x,
                y=list(panel.y),
                # W&B takes None for a linear axis.
                log_y=panel.log_y or None,
                layout=library.Layout(x=12 * column, y=8 * row, w=12, h=8),
            )
        )
    return plots


def _markdown(comparison: Comparison) -> str:
    """Verdict, tables and notes."""
    parts = [f"**{_escaped(comparison.verdict)}**", *map(_table, tables(comparison))]
    if comparison.notes:
        notes = [f"- {_escaped(note)}" for note in comparison.notes]
        parts.append("\n".join(["### Notes", *notes]))
    return "\n\n".join(parts)


def _table(table: Table) -> str:
    alignment = ["---"] + ["---:"] * (len(table.header) - 1)
    rows = []
    for cells in (table.header, alignment, *table.rows):
        rows.append(f"| {' | '.join(map(_escaped, cells))} |")
    return "\n".join([f"### {_escaped(table.title)}", "", *rows])


def _escaped(text: str) -> str:
    """Names of runs and values of keys may hold what Markdown takes for its own."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
