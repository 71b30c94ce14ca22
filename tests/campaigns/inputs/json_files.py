"""JSON: in lines, as a list, by columns, inside of something; and what values people put into it."""

import gzip
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tests.campaigns.inputs.case import LABEL, A, B, Case, table_truth
from tests.campaigns.inputs.tables import COLUMNS

Rows = list[dict[str, Any]]

LAYOUTS: Mapping[str, Callable[[Rows], str]] = {
    "lines": lambda rows: "\n".join(map(json.dumps, rows)) + "\n",
    "lines with blank ones": lambda rows: "\n\n".join(map(json.dumps, rows)),
    "a list": json.dumps,
    "a list over many lines": lambda rows: json.dumps(rows, indent=2),
    "objects over many lines": lambda rows: "\n".join(json.dumps(row, indent=2) for row in rows),
    "columns": lambda rows: json.dumps(_columns(rows)),
    "columns over many lines": lambda rows: json.dumps(_columns(rows), indent=1),
    "as pandas writes it": lambda rows: json.dumps(
        {
            name: {str(row): value for row, value in enumerate(column)}
            for name, column in _columns(rows).items()
        }
    ),
    "rows inside": lambda rows: json.dumps({"version": 2, "data": rows}),
    "rows inside, over many lines": lambda rows: json.dumps({"rows": rows}, indent=1),
}

Change = Callable[[int, dict[str, Any]], Any]

IN_ROW_30: Mapping[str, Change] = {
    "one number as text": lambda _, row: row.update(a=str(row["a"])),
    "one word": lambda _, row: row.update(a="unknown"),
    "one null": lambda _, row: row.update(a=None),
    "one key less": lambda _, row: row.pop("b"),
    "a late column": lambda _, row: row.update(more=1),
}
IN_EACH_ROW: Mapping[str, Change] = {
    "plain": lambda _, row: None,
    "all numbers as text": lambda _, row: row.update(a=str(row["a"])),
    "labels in words": lambda _, row: row.update(label=("cat", "dog")[row["label"]]),
    "labels as floats": lambda _, row: row.update(label=float(row["label"])),
    "labels true or false": lambda _, row: row.update(label=bool(row["label"])),
    "long ids": lambda i, row: row.update(id=10**21 + i),
    "another column of many kinds": lambda i, row: row.update(more=i if i % 2 else "x"),
    "a column within": lambda i, row: row.update(more={"x": [1, {"y": i}]}),
}
EDITED = {"one number as text", "one word", "one null", "one key less"}
"""What nothing that is typed puts right without a choice."""

FILES = ("own.json", "own.jsonl", "own.ndjson", "own[1].json", "own.jsonl.gz")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "latin-1")


def cases() -> Iterator[Case]:
    for layout, values in itertools.product(LAYOUTS, [*IN_EACH_ROW, *IN_ROW_30]):
        yield _case(layout, values, "own.json", "utf-8")
    for file, encoding in itertools.product(FILES, ENCODINGS):
        layout = "lines" if "jsonl" in file or "ndjson" in file else "a list"
        yield _case(layout, "labels in words", file, encoding)


def _case(layout: str, values: str, file: str, encoding: str) -> Case:
    names = ("cat", "dog") if values == "labels in words" else ("0", "1")
    if encoding == "latin-1":
        names = ("kätzchen", "hund")
    return Case(
        kind="json",
        name=f"{layout}, {values}, {file}, {encoding}",
        write=partial(_write, layout, values, file, encoding),
        overrides=(COLUMNS,),
        truth=table_truth(names),
        may_be_refused=values in EDITED,
    )


def _write(layout: str, values: str, file: str, encoding: str, folder: Path) -> str:
    rows: Rows = [
        {"a": float(a), "b": float(b), "label": int(label)}
        for a, b, label in zip(A, B, LABEL, strict=True)
    ]
    for number, row in enumerate(rows):
        if number == 30 or values in IN_EACH_ROW:
            ({**IN_EACH_ROW, **IN_ROW_30})[values](number, row)
    text = LAYOUTS[layout](rows)
    if encoding == "latin-1":
        text = text.replace("cat", "kätzchen").replace("dog", "hund")
    content = text.encode(encoding)
    path = folder / file
    path.write_bytes(gzip.compress(content, mtime=0) if file.endswith(".gz") else content)
    (folder / "own1.json").write_bytes(content[:50])
    return str(path)


def _columns(rows: Rows) -> dict[str, list[Any]]:
    return {name: [row.get(name) for row in rows] for name in rows[0]}
