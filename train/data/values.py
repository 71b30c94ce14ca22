"""Columns as they are meant: images decoded, and missing values filled (data.fill)."""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds
from datasets import Dataset, Image, IterableDataset, Value

from train.data.shares import DataError

Readable: TypeAlias = Dataset | IterableDataset

IMAGE_STARTS = (
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"GIF8",
    b"BM",
    b"RIFF",
    b"II*\0",
    b"MM\0*",
    b"P5",
    b"P6",
)
"""First bytes of the kinds of images that people keep in tables."""


def decode_and_fill(rows: Readable, columns: Collection[str], fill: Mapping[str, Any]) -> Readable:
    """`columns`: those that are read."""
    for name in columns:
        if rows.features and name in rows.features and _holds_images(rows, name):
            rows = rows.cast_column(name, Image())
    return _filled(rows, fill) if fill else rows


def _holds_images(rows: Readable, name: str) -> bool:
    """Whether a column holds image files: bytes, or {bytes, path} as datasets writes them."""
    feature = rows.features[name]
    is_struct = isinstance(feature, dict) and feature.keys() == {"bytes", "path"}
    is_bytes = isinstance(feature, Value) and feature.dtype in ("binary", "large_binary")
    if not is_struct and not is_bytes:
        return False
    # By the first value: a column holds images or none.
    first = next((row[name] for row in rows.select_columns([name])), None)
    content = first.get("bytes") if isinstance(first, dict) else first
    return content is None or content.startswith(IMAGE_STARTS)


def _filled(rows: Readable, fill: Mapping[str, Any]) -> Readable:
    features = rows.features
    for name in fill:
        if features and name not in features:
            raise DataError(
                f"data.fill.{name}: the data has no such column; it has {', '.join(features)}"
            )
    filled = rows.with_format("arrow").map(
        partial(_fill, fill=fill), batched=True, features=features
    )
    return filled.with_format(None)


def _fill(table: pa.Table, fill: Mapping[str, Any]) -> pa.Table:
    for name, value in fill.items():
        column = table.column(name)
        try:
            filler = pa.scalar(value, column.type)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise DataError(
                f"data.fill.{name}: {value!r} is no value of a column of {column.type}"
            ) from error
        if kinds.is_floating(column.type):
            # pandas' gaps among numbers are NaN, which fill_null leaves as they are.
            column = pc.if_else(pc.is_nan(column), filler, column)
        position = table.schema.get_field_index(name)
        table = table.set_column(position, name, pc.fill_null(column, filler))
    return table
