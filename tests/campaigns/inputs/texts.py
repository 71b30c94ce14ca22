"""Plain text by lines, paragraphs and documents; conversations and nested objects, which are
refused in a sentence.
"""

import itertools
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.campaigns.inputs.case import Case, Truth

LENGTH = 64
COLUMNS = ("data.columns={inputs: text, labels: text}", f"data.max_length={LENGTH}")
WRITTEN = "A line.\nGrüße, one more\n\nAnother paragraph\nof two lines.\n\nThe last"
SAMPLE_BY = {
    "line": lambda text: text.split("\n"),
    "paragraph": lambda text: text.split("\n\n"),
    "document": lambda text: [text],
}

NESTED: dict[str, list[dict[str, Any]]] = {
    "messages": [
        {"text": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "b"}]}
        for i in range(9)
    ],
    "turns": [{"text": [{"from": "human", "value": f"{i}"}]} for i in range(9)],
    "an object": [{"text": {"x": i, "y": 1}} for i in range(9)],
    "a list of objects": [{"text": [{"x": i}]} for i in range(9)],
    "an object in an object": [{"text": {"x": {"y": i}}} for i in range(9)],
}


def cases() -> Iterator[Case]:
    for by, ends, encoding in itertools.product(
        SAMPLE_BY, ("\n", "\r\n"), ("utf-8", "utf-8-sig", "utf-16", "latin-1")
    ):
        texts = SAMPLE_BY[by](WRITTEN)
        yield Case(
            kind="text",
            name=f"{by}s, {ends!r}, {encoding}",
            write=partial(_write, ends, encoding),
            overrides=(*COLUMNS, *(() if by == "line" else (f"data.args={{sample_by: {by}}}",))),
            truth=Truth(np.stack([_tokens(text) for text in texts]), texts),
        )
    for name, rows in NESTED.items():
        yield Case(
            "text",
            name,
            partial(_json, rows),
            COLUMNS,
            Truth(np.zeros((9, 1)), []),
            may_be_refused=True,
        )


def _write(ends: str, encoding: str, folder: Path) -> str:
    (folder / "own.txt").write_bytes(WRITTEN.replace("\n", ends).encode(encoding))
    return str(folder / "own.txt")


def _json(rows: list[dict[str, Any]], folder: Path) -> str:
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / "own.jsonl")


def _tokens(text: str) -> Any:
    found = np.full(LENGTH, 256.0)
    written = np.frombuffer(text.encode()[:LENGTH], np.uint8)
    found[: len(written)] = written
    return found
