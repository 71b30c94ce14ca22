"""Rows and keys as they were written, to numbers and to mathematics and execution. Pure."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import json

from train import metric_names
from train.comparison.columns import Column, Row, Rows, joined, rows_of
from train.config import flatten, is_execution
from train.config.check_batch import SCHEDULES
from train.config.keys import under
from train.disk import Unreadable, parse
from train.errors import counted


def parse_rows(blocks: Iterable[bytes]) -> tuple[Rows, list[str]]:
    """The rows that say how many samples had been seen, and remarks about lines that are no rows.

    `blocks`: of whole lines, each of which is read once.
    """
    pieces, damaged = [], 0
    for block in blocks:
        piece = _numbers(block)
        if piece is None:
            written = list(filter(bytes.strip, block.split(b"\n")))
            piece = rows_of(filter(None, map(_row, written)))
            damaged += len(written) - len(piece)
        pieces.append(piece)
    remark = f"{counted(damaged, 'damaged line')} of metrics.jsonl left out"
    return joined(pieces), [remark] if damaged else []


def _row(line: bytes) -> Row:
    try:
        return clean_row(parse(line))
    except Unreadable:
        return {}


def _numbers(block: bytes) -> Rows | None:
    """Rows of finite numbers and nothing else, as most are: many times as fast. None: some line is
    another one.
    """
    count = block.count(b"\n")
    # A mapping a line, nothing inside it: what is nested deep enough ends Arrow's parser, and the
    # process (26.0).
    is_flat = (
        block.startswith(b"{") and block.endswith(b"}\n") and block.count(b"}\n{") == count - 1
    )
    if not is_flat or block.count(b"{") != count or b"[" in block:
        return None
    try:
        table = json.read_json(
            pa.BufferReader(block), json.ReadOptions(use_threads=False, block_size=len(block) + 1)
        )
        names = table.column_names
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    is_plain = all(
        pa.types.is_int64(each.type) or pa.types.is_float64(each.type) for each in table.schema
    )
    if not is_plain or table.num_rows != count or not all("/" in name for name in names):
        return None
    # Arrow gives a null as it gives what is not there.
    if sum(len(column) - column.null_count for column in table.columns) != block.count(b":"):
        return None
    columns = zip(names, table.combine_chunks().columns, strict=True)
    rows = Rows(table.num_rows, {name: _column(column.chunk(0)) for name, column in columns})
    return rows if np.isfinite(rows.values(metric_names.SAMPLES_SEEN)).all() else None


def _column(array: pa.Array) -> Column:
    """Out of Arrow's own memory: its to_numpy imports pandas, half a second and 35 MB."""
    valid, numbers = array.buffers()
    kind = np.int64 if pa.types.is_int64(array.type) else np.float64
    at = np.arange(len(array))
    if array.null_count:
        bits = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")
        at = np.flatnonzero(bits[array.offset :][: len(array)])
    values = np.frombuffer(numbers, kind)[array.offset :][: len(array)]
    return Column(at.astype(np.int32), values[at].astype(np.float64))


def clean_row(row: Any) -> Row:
    """Its numbers; what was not finite is written as null, or as a word by W&B. Empty where it is
    no row of a run.
    """
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
    """(mathematics, execution) of a nested config; a schedule of the batch is neither: what follows
    is in the plan.
    """
    flat = {key: value for key, value in flatten(config).items() if not under(key, SCHEDULES)}
    return (
        {key: value for key, value in flat.items() if not is_execution(key)},
        {key: value for key, value in flat.items() if is_execution(key)},
    )
