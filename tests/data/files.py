"""Files of users, written for a test."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from tests.helpers import argv
from train.config import load
from train.data import Datasets, open_datasets

Table = Mapping[str, Sequence[Any]]

FLOWERS = {
    "height": [1.5, 2.0, 0.5, 1.0, 3.0, 2.5],
    "leaves": [3, 5, 2, 4, 7, 6],
    "kind": ["rose", "daisy", "rose", "tulip", "daisy", "tulip"],
}
SIDE_BY_SIDE = "data.columns={inputs: [height, leaves], labels: kind}"


def write(path: Path, table: Table) -> Path:
    """A table in the kind of file that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([table.keys(), *(row.values() for row in rows)])
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pa.parquet.write_table(
            pa.table({name: list(column) for name, column in table.items()}), path
        )
    else:
        raise ValueError(path)
    return path


def picture(path: Path, value: int, shape: tuple[int, ...] = (4, 5, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)
    return path


def pictures(folder: Path, count: int = 3, kinds: Sequence[str] = ("cat", "dog")) -> Path:
    for i, kind in enumerate(kinds):
        for j in range(count):
            picture(folder / kind / f"{j}.png", 10 * i + j)
    return folder


def opened(folder: Path, source: Path | str, *overrides: str) -> Datasets:
    config = load(argv(folder, f"data.source={source}", *overrides)).config
    return open_datasets(config, ("inputs", "labels"))
