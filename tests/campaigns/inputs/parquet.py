"""Parquet: what kinds of numbers, labels and images people store in it."""

import io
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.campaigns.inputs.case import LABEL, A, B, Case, Truth, table_truth
from tests.campaigns.inputs.folders import COLUMNS as IMAGES
from tests.campaigns.inputs.tables import COLUMNS

Column = pa.Array

NUMBERS: Mapping[str, Callable[[Any], Column]] = {
    "double": lambda x: pa.array(x, pa.float64()),
    "float": lambda x: pa.array(x, pa.float32()),
    "half": lambda x: pa.array(np.asarray(x, np.float16)),
    "decimal128": lambda x: pa.array([Decimal(str(value)) for value in x], pa.decimal128(10, 3)),
    "decimal256": lambda x: pa.array([Decimal(str(value)) for value in x], pa.decimal256(50, 3)),
    "string": lambda x: pa.array([str(value) for value in x]),
    "large_string": lambda x: pa.array([str(value) for value in x], pa.large_string()),
    "dictionary": lambda x: pa.array(x, pa.float64()).dictionary_encode(),
    "timestamp": lambda x: pa.array([int(value * 1e9) for value in x], pa.timestamp("ns")),
    "a word": lambda x: pa.array([*(str(value) for value in x[:-1]), "?"]),
    "a null": lambda x: pa.array([*x[:-1], None], pa.float64()),
    "a nan": lambda x: pa.array([*x[:-1], float("nan")], pa.float64()),
}
EDITED = {"timestamp", "a word", "a null", "a nan"}

LABELS: Mapping[str, tuple[tuple[str, str], Callable[[Any], Column]]] = {
    "int64": (("0", "1"), lambda x: pa.array(x, pa.int64())),
    "int8": (("0", "1"), lambda x: pa.array(x, pa.int8())),
    "uint8": (("0", "1"), lambda x: pa.array(x, pa.uint8())),
    "uint64": (("0", "1"), lambda x: pa.array(x, pa.uint64())),
    "bool": (("0", "1"), lambda x: pa.array([bool(value) for value in x])),
    "double": (("0", "1"), lambda x: pa.array([float(value) for value in x])),
    "decimal": (
        ("0", "1"),
        lambda x: pa.array([Decimal(int(value)) for value in x], pa.decimal128(3, 0)),
    ),
    "string": (("cat", "dog"), lambda x: pa.array([("cat", "dog")[value] for value in x])),
    "large_string": (
        ("cat", "dog"),
        lambda x: pa.array([("cat", "dog")[value] for value in x], pa.large_string()),
    ),
    "dictionary": (
        ("cat", "dog"),
        lambda x: pa.array([("cat", "dog")[value] for value in x]).dictionary_encode(),
    ),
    "none": (("None", "dog"), lambda x: pa.array([("None", "dog")[value] for value in x])),
}


def cases() -> Iterator[Case]:
    for name in NUMBERS:
        yield Case(
            "parquet",
            f"numbers: {name}",
            partial(_table, name, "int64"),
            (COLUMNS,),
            table_truth(),
            name in EDITED,
        )
    for name, (names, _) in LABELS.items():
        yield Case(
            "parquet",
            f"labels: {name}",
            partial(_table, "double", name),
            (COLUMNS,),
            table_truth(names),
        )
    pixels = np.stack([np.full((3, 4, 4), 200 * (i % 2) / 255) for i in range(6)])
    truth = Truth(pixels, [str(i % 2) for i in range(6)])
    for kind in ("struct", "bytes", "large bytes", "struct of jpeg"):
        yield Case("parquet", f"images: {kind}", partial(_images, kind), (IMAGES,), truth)


def _table(numbers: str, labels: str, folder: Path) -> str:
    columns = {
        "a": NUMBERS[numbers](A),
        "b": NUMBERS[numbers](B),
        "label": LABELS[labels][1](LABEL),
    }
    pq.write_table(pa.table(columns), folder / "own.parquet")
    return str(folder / "own.parquet")


def _images(kind: str, folder: Path) -> str:
    images = []
    for i in range(6):
        written = io.BytesIO()
        grey = Image.fromarray(np.full((4, 4, 3), 200 * (i % 2), np.uint8))
        grey.save(written, "jpeg" if "jpeg" in kind else "png", quality=100)
        images.append(written.getvalue())
    column = pa.array(images, pa.large_binary() if kind == "large bytes" else pa.binary())
    if "struct" in kind:
        column = pa.array([{"bytes": image, "path": None} for image in images])
    pq.write_table(
        pa.table({"image": column, "label": [i % 2 for i in range(6)]}), folder / "own.parquet"
    )
    return str(folder / "own.parquet")
