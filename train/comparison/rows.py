"""Rows and keys as they were written, to numbers and to mathematics and execution. Pure."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from train import metric_names
from train.comparison.run import Row
from train.config import flatten, is_execution
from train.config.check_batch import SCHEDULES
from train.config.identity import under
from train.disk import Unreadable, parse
from train.errors import counted


def parse_rows(lines: Iterable[bytes]) -> tuple[tuple[Row, ...], list[str]]:
    """The rows that say how many samples had been seen, and remarks about lines that are no rows."""
    rows, damaged = [], 0
    for line in filter(bytes.strip, lines):
        try:
            row = clean_row(parse(line))
        except Unreadable:
            row = {}
        if row:
            rows.append(row)
        else:
            damaged += 1
    remark = f"{counted(damaged, 'damaged line')} of metrics.jsonl left out"
    return tuple(rows), [remark] if damaged else []


def clean_row(row: Any) -> Row:
    """Its numbers; what was not finite is written as null, or as a word by W&B. Empty where it is no row of a run."""
    if not isinstance(row, Mapping):
        return {}
    not_finite = (None, "NaN", "Infinity", "-Infinity")
    known = {key: value for key, value in row.items() if "/" in key}
    for key, value in known.items():
        if isinstance(value, str | None) and value in not_finite:
            known[key] = math.nan
    numbers = {key: _number(value) for key, value in known.items() if _is_number(value)}
    return numbers if math.isfinite(numbers.get(metric_names.SAMPLES_SEEN, math.nan)) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf


def split_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(mathematics, execution) of a nested config; a schedule of the batch is neither: what follows is in the plan."""
    flat = {key: value for key, value in flatten(config).items() if not under(key, SCHEDULES)}
    return (
        {key: value for key, value in flat.items() if not is_execution(key)},
        {key: value for key, value in flat.items() if is_execution(key)},
    )
