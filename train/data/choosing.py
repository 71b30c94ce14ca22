"""Which rows are held out, and which columns are read."""

import difflib
from collections.abc import Sequence

import numpy as np

from train.batch import sample_ids
from train.batch.order import Ids
from train.batch.window import MASK
from train.data.reading import Columns
from train.data.shares import DataError

HOLDOUT_SEED = 0  # not the run's: runs with different seeds are compared on the same held-out samples


def hold_out(size: int, fraction: float) -> tuple[Ids, Ids]:
    """(rows that stay, rows held out)"""
    count = round(size * fraction)
    if count in (0, size):
        kept = "nothing" if count == 0 else "everything"
        raise DataError(
            f"data.eval_fraction={fraction} of {size} samples holds out {kept}. Type: data.eval_fraction=0.1"
        )
    order = sample_ids(size, HOLDOUT_SEED, 0, 0, size)
    return np.sort(order[count:]), np.sort(order[:count])


def chosen_columns(known: Sequence[str], given: Columns, needed: Sequence[str]) -> dict[str, str | Sequence[str]]:
    """{name that the task asks for: name in the data, or several}. A mask that is given is read too."""
    check_names(given, needed)
    if MASK in given and MASK not in needed:
        needed = [*needed, MASK]
    names = {name: given.get(name, name) for name in needed}
    lists = {name: [own] if isinstance(own, str) else list(own) for name, own in names.items()}
    missing = {name: [column for column in own if column not in known] for name, own in lists.items()}
    missing = {name: own for name, own in missing.items() if own}
    if missing:
        _check_separator(known)
        wanted = ", ".join(f"{name} (as column {', '.join(map(repr, own))})" for name, own in missing.items())
        example = ", ".join(f"{name}: {known[0] if known else 'NAME'}" for name in missing)
        raise DataError(
            f"the task needs {wanted}; the data has the columns {', '.join(known)}. "
            f"Say which column is what: 'data.columns={{{example}}}'"
        )
    return names


def check_names(given: Columns, needed: Sequence[str]) -> None:
    """Refuse a name like one of the task's. Another one may stand there: configs that are laid over each other keep
    what a task below asked for."""
    for name in given:
        near = difflib.get_close_matches(name, needed, n=1, cutoff=0.8)
        if name not in needed and near:
            raise DataError(
                f"data.columns.{name}: the task asks for {', '.join(needed)}, and not for {name!r}. Did you mean "
                f"data.columns.{near[0]}? To take it out of a config, type: data.columns.{name}=null"
            )


def _check_separator(known: Sequence[str]) -> None:
    """A table whose values are not parted by commas has one column, named like the whole first line."""
    found = [separator for separator in (";", "\t", "|") if len(known) == 1 and separator in known[0]]
    if found:
        separator = max(found, key=known[0].count)
        sep = f'sep: "{separator}"'.replace("\t", "\\t")
        decimal = f"; where numbers have commas: 'data.args={{{sep}, decimal: \",\"}}'" if separator == ";" else ""
        raise DataError(
            f"the data has one column, {known[0]!r}: its values seem to be parted by {separator!r}, not by commas. "
            f"Type: 'data.args={{{sep}}}'{decimal}"
        )
