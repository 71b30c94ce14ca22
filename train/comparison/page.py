"""One HTML page that holds everything: verdict, pictures, tables, notes. It loads nothing from
anywhere.
"""

import base64
from collections.abc import Iterable, Sequence
from html import escape

from train.comparison.facts import Comparison
from train.comparison.figures import UNKNOWN
from train.comparison.pictures import Picture
from train.comparison.tables import Table, tables

STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --page: #fff; --soft: #444; --line: #ddd; --rule: #888; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 76rem;
       margin: 1.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin-bottom: .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.verdict { font-size: 1.1rem; font-weight: 600; border-left: 4px solid #0072B2; padding: .2rem 0 .2rem 1rem;
           overflow-wrap: anywhere; }
.details { font-size: .88rem; color: var(--soft); margin: .6rem 0 1.2rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .5rem; text-align: right; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th { border-bottom: 2px solid var(--rule); vertical-align: bottom; overflow-wrap: break-word; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(27rem, 100%), 1fr)); gap: 1.5rem; }
figure { margin: 0; }
img { width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption { font-size: .88rem; color: var(--soft); }
li { margin: .2rem 0; overflow-wrap: anywhere; }
.unknown { color: var(--rule); }
@media (max-width: 44rem) {
  table, tbody, tr, td { display: block; }
  thead { display: none; }
  tr { margin-bottom: .8rem; }
  td { display: flex; justify-content: space-between; gap: 1rem; padding: .15rem 0; }
  td::before { content: attr(data-label); color: var(--soft); text-align: left; flex: none; max-width: 55%; }
  td:first-child { font-weight: 600; border-bottom: 2px solid var(--rule); }
  td:first-child::before { content: none; }
}
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --page: #181818; --soft: #b8b8b8; --line: #3a3a3a; --rule: #777; }
  img { filter: invert(.906) hue-rotate(180deg); }
}
@media print { body { margin: 0; max-width: none; } figure, table { break-inside: avoid; } }
"""
MOST_NAMES = 3
"""Set-ups that the title names; more are counted."""


def page(comparison: Comparison, pictures: Sequence[Picture]) -> str:
    """A whole document, in UTF-8."""
    labels = [group.label for group in comparison.groups]
    title = "Comparison of " + (
        ", ".join(labels) if len(labels) <= MOST_NAMES else f"{len(labels)} set-ups"
    )
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
            f'<h1>{escape(title)}</h1>\n<p class="verdict">{escape(comparison.headline)}</p>',
            f'<p class="details">{escape(comparison.details)}</p>' if comparison.details else "",
            '<div class="pictures">',
            *map(_picture, pictures),
            "</div>",
            *map(_table, tables(comparison)),
            _table(_runs(comparison)),
            _list("Notes", comparison.notes),
            "</body>\n</html>\n",
        ]
    )


def _picture(picture: Picture) -> str:
    image = base64.b64encode(picture.path.read_bytes()).decode("ascii")
    caption = f"<b>{escape(picture.title)}.</b> {escape(picture.caption)}"
    text = escape(picture.title, quote=True)
    shown = f'<img alt="{text}" src="data:image/png;base64,{image}">'
    return "\n".join(["<figure>", shown, f"<figcaption>{caption}</figcaption>", "</figure>"])


def _table(table: Table) -> str:
    """On a narrow screen each row stands by itself, and each value has its column's
    name beside it.
    """
    header = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = "\n".join(_row(table.header, row) for row in table.rows)
    head = f"<thead><tr>{header}</tr></thead>"
    return f"<h2>{escape(table.title)}</h2>\n<table>\n{head}\n<tbody>\n{rows}\n</tbody></table>"


def _row(header: Sequence[str], row: Sequence[str]) -> str:
    cells = (_cell(name, text) for name, text in zip(header, row, strict=True))
    return f"<tr>{''.join(cells)}</tr>"


def _cell(name: str, text: str) -> str:
    label = escape(name, quote=True)
    if text == UNKNOWN:
        return f'<td class="unknown" data-label="{label}">-</td>'
    return f'<td data-label="{label}">{escape(text)}</td>'


def _runs(comparison: Comparison) -> Table:
    rows = [
        (run.name, group.label, str(run.seed), run.ended or "not ended", run.where)
        for group in comparison.groups
        for run in group.runs
    ]
    return Table("Runs", ("run", "set-up", "seed", "end", "where"), tuple(rows))


def _list(title: str, lines: Iterable[str]) -> str:
    items = "\n".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<h2>{escape(title)}</h2>\n<ul>\n{items}\n</ul>" if items else ""
