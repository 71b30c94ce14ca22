"""metrics.jsonl to columns of numbers, and a config to mathematics and execution. Pure."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import json

from train import metric_names
from train.comparison.columns import Column, Row, Rows, concatenate, rows_of
from train.config import flatten, is_execution
from train.config.check_batch import SCHEDULES
from train.config.keys import under
from train.disk import Unreadable, parse
from train.errors import counted

NOT_FINITE = ("NaN", "Infinity", "-Infinity")
"""As W&B writes them; metrics.jsonl has null."""


def parse_rows(blocks: Iterable[bytes]) -> tuple[Rows, list[str]]:
    """The rows that have the samples seen, and remarks about lines that are no rows.

    `blocks`: of complete lines, each of which is read once.
    """
    pieces = []
    num_damaged = 0
    for block in blocks:
        # The fast way first, block by block: one odd line costs its block alone.
        piece = _parse_numbers(block)
        if piece is None:
            # Line by line, as a block may hold half a line of a kill between good ones.
            lines = list(filter(bytes.strip, block.split(b"\n")))
            piece = rows_of(filter(None, map(_parse_line, lines)))
            num_damaged += len(lines) - len(piece)
        pieces.append(piece)
    remarks = []
    if num_damaged:
        remarks.append(f"{counted(num_damaged, 'damaged line')} of metrics.jsonl skipped")
    return concatenate(pieces), remarks


def _parse_line(line: bytes) -> Row:
    try:
        return clean_row(parse(line))
    except Unreadable:
        return {}


def _parse_numbers(block: bytes) -> Rows | None:
    """Rows of finite numbers and nothing else, as most are: many times as fast as line by line.

    None: some line holds something else.
    """
    if not _is_flat(block):
        return None
    # One block: Arrow would otherwise guess the types of each block anew.
    options = json.ReadOptions(use_threads=False, block_size=len(block) + 1)
    try:
        table = json.read_json(pa.BufferReader(block), options)
        names = table.column_names  # decoded here
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    # Other than one row a line, or a key that is no metric: read line by line instead.
    if table.num_rows != block.count(b"\n") or not all("/" in name for name in names):
        return None
    # Types of other kinds are texts or nulls, which clean_row knows how to read.
    if not all(pa.types.is_int64(each) or pa.types.is_float64(each) for each in table.schema.types):
        return None
    # Arrow reads a null as it reads a key that is absent, so the values are counted.
    num_values = sum(len(column) - column.null_count for column in table.columns)
    if num_values != block.count(b":"):
        return None
    columns = {}
    for name, column in zip(names, table.combine_chunks().columns, strict=True):
        columns[name] = _column(column.chunk(0))
    rows = Rows(table.num_rows, columns)
    # A row without the samples seen has no place on any curve.
    if not np.isfinite(rows.values(metric_names.SAMPLES_SEEN)).all():
        return None
    return rows


def _is_flat(block: bytes) -> bool:
    """One mapping a line, and nothing inside it.

    What is nested deep enough overflows the stack of Arrow's parser (26.0), and ends the process.
    """
    count = block.count(b"\n")
    is_flat = (
        block.startswith(b"{") and block.endswith(b"}\n") and block.count(b"}\n{") == count - 1
    )
    return is_flat and block.count(b"{") == count and b"[" not in block


def _column(array: pa.Array) -> Column:
    """Out of Arrow's own buffers: its to_numpy imports pandas, half a second and 40 MB."""
    valid, numbers = array.buffers()
    kind = np.int64 if pa.types.is_int64(array.type) else np.float64
    at = np.arange(len(array))
    if array.null_count:
        # Arrow marks what is there by one bit a row, the lowest bit first.
        bits = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")
        at = np.flatnonzero(bits[array.offset :][: len(array)])
    # `offset`: a column may be a slice of a larger buffer.
    values = np.frombuffer(numbers, kind)[array.offset :][: len(array)]
    return Column(at.astype(np.int32), values[at].astype(np.float64))


def clean_row(row: Any) -> Row:
    """Its numbers, NaN for what was not finite; empty where it is no row of a run."""
    if not isinstance(row, Mapping):
        return {}
    numbers: dict[str, float] = {}
    for key, value in row.items():
        # Names of metrics have a group, such as train/loss; W&B's own _step and _runtime have none.
        if "/" not in key:
            continue
        if value is None or (isinstance(value, str) and value in NOT_FINITE):
            numbers[key] = math.nan
        # bool is an int to Python, and true is no measurement.
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[key] = _as_float(value)
    if not math.isfinite(numbers.get(metric_names.SAMPLES_SEEN, math.nan)):
        return {}
    return numbers


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf


def split_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(mathematics, execution) of a nested config, each {dotted key: value}.

    A schedule of the batch is in neither: the plan has what follows from it.
    """
    mathematics = {}
    execution = {}
    for key, value in flatten(config).items():
        if under(key, SCHEDULES):
            continue
        if is_execution(key):
            execution[key] = value
        else:
            mathematics[key] = value
    return mathematics, execution
