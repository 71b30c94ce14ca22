"""Which rows are held out, and which columns are read."""

import difflib
import json
import re
from collections.abc import Sequence

import numpy as np

from train.batch import sample_ids
from train.batch.order import Ids
from train.batch.window import MASK
from train.data.reading import Columns
from train.data.shares import DataError, Misread
from train.errors import counted

# not the run's: runs with different seeds are compared on the same held-out samples
HOLDOUT_SEED = 0


def hold_out(size: int, fraction: float) -> tuple[Ids, Ids]:
    """(rows that stay, rows held out)"""
    count = round(size * fraction)
    if count in (0, size):
        kept = "nothing" if count == 0 else "everything"
        if size == 1:
            fix = "One sample cannot be parted. Type: data.eval_fraction=0"
        else:
            fix = f"Type: data.eval_fraction={1 / size:.2g}"
        raise DataError(
            f"data.eval_fraction={fraction} of {counted(size, 'sample')} holds out {kept}. {fix}"
        )
    order = sample_ids(size, HOLDOUT_SEED, 0, 0, size)
    return np.sort(order[count:]), np.sort(order[:count])


def chosen_columns(
    known: Sequence[str], given: Columns, needed: Sequence[str], texts: Sequence[str] = ()
) -> dict[str, str | Sequence[str]]:
    """{name that the task asks for: name in the data, or several}. A mask that is given is read
    too.

    `texts`: columns of text, which are not proposed beside columns of numbers.
    """
    check_names(given, needed)
    if MASK in given and MASK not in needed:
        needed = [*needed, MASK]
    names = asked_columns(given, needed)
    lists = {name: [own] if isinstance(own, str) else list(own) for name, own in names.items()}
    missing = {
        name: [column for column in own if column not in known] for name, own in lists.items()
    }
    missing = {name: own for name, own in missing.items() if own}
    if missing:
        wanted = ", ".join(
            f"{name} (as column {', '.join(map(repr, own))})" for name, own in missing.items()
        )
        used = {column for name, own in lists.items() if name not in missing for column in own}
        free = [column for column in known if column not in used]
        raise Misread(
            what=f"the task needs {wanted}; the data has the columns {', '.join(known)}",
            fix=(
                "Say which column is what: "
                f"'data.columns={{{_example(free, list(missing), texts)}}}'"
            )
            if len(known) >= len(names)
            else "It lacks what the task needs: write it into the data, a column for each "
            "(images: a folder for each class)",
        )
    return names


def asked_columns(given: Columns, needed: Sequence[str]) -> dict[str, str | Sequence[str]]:
    """{name that the task asks for: name in the data, or several}, whether the data has them or
    not.
    """
    return {name: given.get(name, name) for name in needed}


def _example(known: Sequence[str], missing: Sequence[str], texts: Sequence[str]) -> str:
    """What may well be meant: the label is called so, or comes last, and the inputs are the other
    numbers.

    `known`: the columns that nothing is said of yet. Not a column that has no name, as pandas calls
    it where each row ends in a comma.
    """
    known = [name for name in known if not name.startswith("Unnamed: ")] or known
    written = {
        name: name if re.fullmatch(r"[A-Za-z_]\w*", name) else json.dumps(name) for name in known
    }
    names = list(written.values()) or ["NAME"]
    told = [name for name in names if re.search("label|class|target|species", name.lower())]
    last = (told or names)[-1]
    others = names
    if {"labels", "targets"} & set(missing):
        others = [name for name in names if name != last] or names
    others = [
        name for own, name in written.items() if name in others and own not in texts
    ] or others
    inputs = others[0] if len(others) == 1 else f"[{', '.join(others)}]"
    given = {"labels": last, "targets": last, "inputs": inputs}
    return ", ".join(f"{name}: {given.get(name, names[0])}" for name in missing)


def check_names(given: Columns, needed: Sequence[str]) -> None:
    """Refuse a name like one of the task's. Another one may stand there: configs that are laid over
    each other keep what a task below asked for.
    """
    for name in given:
        near = difflib.get_close_matches(name, needed, n=1, cutoff=0.8)
        if name not in needed and near:
            raise DataError(
                f"data.columns.{name}: the task asks for {', '.join(needed)}, and not for "
                f"{name!r}. "
                f"Did you mean data.columns.{near[0]}? To take it out of a config, type: "
                f"data.columns.{name}=null"
            )
