"""Which columns of the data a task reads (data.columns)."""

import difflib
import json
import re
from collections.abc import Mapping, Sequence

from train.batch.window import MASK
from train.data.shares import DataError, Misread

Columns = Mapping[str, str | Sequence[str]]
"""{name that the task asks for: column of the data, or several: their numbers side by side}"""

LABEL_WORDS = "label|class|target|species"


def as_list(columns: str | Sequence[str]) -> list[str]:
    """One entry of `Columns`, as a list of columns of the data."""
    return [columns] if isinstance(columns, str) else list(columns)


def flat_columns(columns: Columns) -> list[str]:
    """The columns of the data, each once, in the order in which the task asks for them."""
    flat: dict[str, None] = {}
    for names in columns.values():
        flat |= dict.fromkeys(as_list(names))
    return list(flat)


def requested_columns(configured: Columns, needed: Sequence[str]) -> dict[str, str | Sequence[str]]:
    """The columns for the names that the task needs, whether the data has them or not."""
    return {name: configured.get(name, name) for name in needed}


def match_columns(
    available: Sequence[str], configured: Columns, needed: Sequence[str], texts: Sequence[str] = ()
) -> dict[str, str | Sequence[str]]:
    """The columns that are read. A mask that is configured is read too.

    `texts`: columns of text, which are not proposed beside columns of numbers. Raises DataError
    where the data lacks one.
    """
    check_column_names(configured, needed)
    # Whoever names a column of masks has texts whose length the model is to see.
    if MASK in configured and MASK not in needed:
        needed = [*needed, MASK]
    requested = requested_columns(configured, needed)
    missing: dict[str, list[str]] = {}
    for name, columns in requested.items():
        absent = [column for column in as_list(columns) if column not in available]
        if absent:
            missing[name] = absent
    if missing:
        raise _missing_columns(available, requested, missing, texts)
    return requested


def check_column_names(configured: Columns, needed: Sequence[str]) -> None:
    """Raises DataError for a misspelt name of the task.

    Names that resemble none are let through: a config that is merged over another keeps the columns
    that the other one's task needed.
    """
    for name in configured:
        if name in needed:
            continue
        # A misspelt name would be passed over: the task's column would then be looked for under its
        # own name.
        close = difflib.get_close_matches(name, needed, n=1, cutoff=0.8)
        if close:
            raise DataError(
                f"data.columns.{name}: the task asks for {', '.join(needed)}, and not for "
                f"{name!r}. Did you mean data.columns.{close[0]}? To take it out of a config, set: "
                f"data.columns.{name}=null"
            )


def _missing_columns(
    available: Sequence[str],
    requested: Columns,
    missing: Mapping[str, Sequence[str]],
    texts: Sequence[str],
) -> Misread:
    lacking = []
    for name, absent in missing.items():
        lacking.append(f"{name} (as column {', '.join(map(repr, absent))})")
    present = {name: columns for name, columns in requested.items() if name not in missing}
    used = flat_columns(present)
    unused = [column for column in available if column not in used]
    # With fewer columns than the task needs, no data.columns could help.
    if len(available) >= len(requested):
        example = _example(unused, list(missing), texts)
        fix = f"Say which column is what: 'data.columns={{{example}}}'"
    else:
        fix = (
            "It lacks what the task needs: write it into the data, a column for each (images: a "
            "folder for each class)"
        )
    return Misread(
        what=(
            f"the task needs {', '.join(lacking)}; the data has the columns {', '.join(available)}"
        ),
        fix=fix,
    )


def _example(unused: Sequence[str], missing: Sequence[str], texts: Sequence[str]) -> str:
    """A guess: the label is named so, or comes last, and the inputs are the other numbers.

    `unused`: columns that data.columns does not name.
    """
    # pandas gives this name to a column that has none, as where each row ends in a comma.
    named = [name for name in unused if not name.startswith("Unnamed: ")] or unused
    quoted = {name: _quoted(name) for name in named}
    candidates = list(quoted.values()) or ["NAME"]
    labels = [name for name in candidates if re.search(LABEL_WORDS, name.lower())]
    label = (labels or candidates)[-1]

    others = candidates
    if {"labels", "targets"} & set(missing):
        others = [name for name in candidates if name != label] or candidates
    numbers = [name for column, name in quoted.items() if name in others and column not in texts]
    others = numbers or others
    inputs = others[0] if len(others) == 1 else f"[{', '.join(others)}]"

    guesses = {"labels": label, "targets": label, "inputs": inputs}
    return ", ".join(f"{name}: {guesses.get(name, candidates[0])}" for name in missing)


def _quoted(name: str) -> str:
    """A column as YAML takes it."""
    return name if re.fullmatch(r"[A-Za-z_]\w*", name) else json.dumps(name)
