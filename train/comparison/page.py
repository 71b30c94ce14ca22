"""One HTML page that holds everything: verdict, pictures, tables, notes. It loads nothing from anywhere."""

import base64
from collections.abc import Iterable, Sequence
from html import escape

from train.comparison.figures import UNKNOWN
from train.comparison.judge import Comparison
from train.comparison.pictures import Picture
from train.comparison.tables import Table, tables

STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --page: #fff; --soft: #444; --line: #ddd; --rule: #888; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --page: #181818; --soft: #b8b8b8; --line: #3a3a3a; --rule: #777; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 64rem;
       margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin-bottom: .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.verdict { font-size: 1.05rem; border-left: 4px solid #0072B2; padding: .2rem 0 .2rem 1rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { border-bottom: 2px solid var(--rule); vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; padding-left: 0; position: sticky; left: 0;
                                 background: var(--page); }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(27rem, 100%), 1fr)); gap: 1.5rem; }
figure { margin: 0; }
img { width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption { font-size: .88rem; color: var(--soft); }
li { margin: .2rem 0; overflow-wrap: anywhere; }
.unknown { color: var(--rule); }
@media print { body { margin: 0; max-width: none; } figure, table { break-inside: avoid; } }
"""
MOST_NAMES = 3
"""Set-ups that the title names; more are counted."""


def page(comparison: Comparison, pictures: Sequence[Picture]) -> str:
    """A whole document, in UTF-8."""
    labels = [group.label for group in comparison.groups]
    title = "Comparison of " + (", ".join(labels) if len(labels) <= MOST_NAMES else f"{len(labels)} set-ups")
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
            f'<h1>{escape(title)}</h1>\n<p class="verdict">{escape(comparison.verdict)}</p>',
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
    header = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    title = escape(table.title, quote=True)
    region = f'<div class="wide" tabindex="0" role="region" aria-label="{title}">'  # to be scrolled by the keyboard too
    return f"<h2>{title}</h2>\n{region}<table>\n<tr>{header}</tr>\n{rows}\n</table></div>"


def _cell(text: str) -> str:
    return '<td class="unknown">-</td>' if text == UNKNOWN else f"<td>{escape(text)}</td>"


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
