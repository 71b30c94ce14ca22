"""One HTML page that holds everything: verdict, pictures, tables, notes. It loads nothing.

The template is compare.html.jinja, beside this file.
"""

import base64
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from train.comparison.comparison import Comparison
from train.comparison.formatting import UNKNOWN
from train.comparison.pictures import Picture
from train.comparison.tables import Table, tables

TEMPLATE = "compare.html.jinja"
MOST_NAMES = 3
"""Set-ups that the title names; more are counted."""


def html_page(comparison: Comparison, pictures: Sequence[Picture]) -> str:
    """A document, in UTF-8. Pictures are embedded, so that one file can be sent to others."""
    environment = Environment(
        loader=PackageLoader("train", "comparison"),
        autoescape=True,  # names of runs are anybody's text
        # A name that is misspelt in the template fails, and leaves no empty place.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(TEMPLATE).render(
        title=_title(comparison),
        comparison=comparison,
        pictures=pictures,
        embedded=_embedded,
        tables=[*tables(comparison), _runs(comparison)],
        unknown=UNKNOWN,
    )


def _title(comparison: Comparison) -> str:
    labels = comparison.labels
    if len(labels) > MOST_NAMES:
        return f"Comparison of {len(labels)} set-ups"
    return f"Comparison of {', '.join(labels)}"


def _embedded(picture: Picture) -> str:
    image = base64.b64encode(picture.path.read_bytes()).decode("ascii")
    return f"data:image/png;base64,{image}"


def _runs(comparison: Comparison) -> Table:
    rows = []
    for group in comparison.groups:
        for run in group.runs:
            # With the folder: names of runs may be the same.
            rows.append((run.name, group.label, str(run.seed), run.ended or "not ended", run.where))
    return Table("Runs", ("run", "set-up", "seed", "end", "where"), tuple(rows))
