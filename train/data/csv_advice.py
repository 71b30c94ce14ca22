"""Which arguments read a CSV file as it is meant: they are tried, so that what is advised works
when it is typed.
"""

import codecs
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import fsspec
from datasets.packaged_modules.csv.csv import CsvConfig

from train.data.csv_tables import column_types, frames, header_of, options_of

HEAD = 2**16
"""Bytes at the beginning of a file that are looked at."""

SEPARATORS = (";", "\t", "|", ",", r"\s+", ":")
QUOTING_NONE = 3  # csv.QUOTE_NONE
MOST_CHANGES = 3  # at once

NUMBER = r"[-+]?[\d.,]+([eE][-+]?\d+)?(\.\d+)?"
"""As it may stand in the place of a name; pandas writes a second 1 as 1.1."""

ENCODED = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""{first bytes of a file: its encoding}; the longer ones first, since others begin like them."""


def head_of(file: Path) -> bytes:
    with fsspec.open(str(file), "rb", compression="infer") as opened:
        found: bytes = opened.read(HEAD)
    return found


def encoding_of(file: Path) -> str | None:
    """The encoding of a text that is not UTF-8, as far as its bytes tell; None: they say nothing
    against UTF-8.
    """
    head = head_of(file)
    for mark, name in ENCODED.items():
        if head.startswith(mark):
            return name
    if b"\0" in head:
        return "utf-16-be" if head[:1] == b"\0" else "utf-16-le"
    with fsspec.open(str(file), "rb", compression="infer") as opened:
        whole = opened.read()
    try:
        whole.decode("utf-8")
    except UnicodeDecodeError:
        # The bytes from 0x80 to 0x9f are letters in Windows' own encoding, and nothing that is
        # written in Latin-1.
        return "cp1252" if re.search(rb"[\x80-\x9f]", whole) else "latin-1"
    return None


def find_arguments(
    file: Path, given: Mapping[str, Any], wanted: Sequence[str], numbers: Sequence[str]
) -> dict[str, Any] | None:
    """`given` and the fewest more under which the file holds the columns `wanted`, `numbers` of
    them in numbers.

    None: nothing that was tried does that. Where no columns are asked for, a table of several will
    do.
    """
    second_best: dict[str, Any] | None = None
    is_read = _types_under(file, given, wanted) is not None
    if is_read and not numbers:
        return None
    for more in _candidates(file, given, bool(wanted)):
        types = _types_under(file, {**given, **more}, wanted)
        if types is None:
            continue
        if all(types.get(name) not in ("str", None) for name in numbers):
            return {**given, **more}
        second_best = second_best or {**given, **more}
    return None if is_read else second_best


def separator_in_header(file: Path, given: Mapping[str, Any]) -> str | None:
    """What parts the one name that is read as a header into several; None: there are several, or
    nothing does.
    """
    try:
        header = header_of(str(file), options_of(CsvConfig(**given)))
    except Exception:
        return None
    if len(header) != 1:
        return None
    found = [sep for sep in SEPARATORS[:4] if sep in header[0]]
    if found:
        return max(found, key=header[0].count)
    values = [part for part in header[0].split() if re.fullmatch(NUMBER, part)]
    return r"\s+" if len(values) > 1 else None  # a row, with no header above it


def without_header(file: Path, given: Mapping[str, Any]) -> int:
    """How many columns a file has whose first line holds numbers in place of names; 0: it has
    names.
    """
    try:
        options = options_of(CsvConfig(**given))
        names = list(next(frames(str(file), {**options, "nrows": 20, "chunksize": None})).columns)
    except Exception:
        return 0
    stated = given.get("names") is not None or given.get("header", "infer") is None
    numbers = [name for name in names if re.fullmatch(NUMBER, str(name))]
    return len(names) if len(numbers) * 2 > len(names) and not stated else 0


def reads(file: Path, args: Mapping[str, Any], wanted: Sequence[str]) -> bool:
    return _types_under(file, args, wanted) is not None


def typed(args: Mapping[str, Any]) -> str:
    """data.args as one types it."""
    return (
        "'data.args={"
        + ", ".join(f"{name}: {json.dumps(value)}" for name, value in args.items())
        + "}'"
    )


def _types_under(
    file: Path, args: Mapping[str, Any], wanted: Sequence[str]
) -> dict[str, str] | None:
    """{column: type} of the whole file; None where it cannot be read so, or lacks a column."""
    try:
        options = options_of(CsvConfig(**args))
        first = next(frames(str(file), {**options, "nrows": 20, "chunksize": None}))
        names = [str(name) for name in first.columns]
        missing = [name for name in wanted if name not in names]
        if (
            missing
            or len(names) < 2
            or (not wanted and any(name.startswith("Unnamed: ") for name in names))
        ):
            return None
        return column_types(frames(str(file), options))
    except Exception:  # whatever pandas says of arguments that do not fit
        return None


def _candidates(file: Path, given: Mapping[str, Any], by_name: bool) -> Iterator[dict[str, Any]]:
    """Arguments to try besides those given, the fewest first. Lines are skipped only to find
    columns `by_name`.
    """
    encoding = encoding_of(file) or ("utf-8" if "encoding" in given else None)
    always = {} if encoding == given.get("encoding") else {"encoding": encoding}
    text = head_of(file).decode(encoding or "utf-8", "replace")
    choices = _choices(text)
    if "delimiter" in given:  # another name for sep, which counts where both are given
        choices["delimiter"] = choices.pop("sep")
    if not by_name:
        choices.pop("skiprows", None)
        # every text with a blank in it is parted by blanks
        for name in choices.keys() & {"sep", "delimiter"}:
            choices[name] = [sep for sep in choices[name] if sep in SEPARATORS[:3]]
    for count in range(MOST_CHANGES + 1):
        for names in combinations(choices, count):
            for values in product(*(choices[name] for name in names)):
                more = {**always, **dict(zip(names, values, strict=True))}
                if any(given.get(name) != value for name, value in more.items()):
                    yield more


def _choices(text: str) -> dict[str, Sequence[Any]]:
    """What the beginning of a file gives reason to try."""
    lines = text.splitlines()
    first = lines[0] if lines else ""
    choices: dict[str, Sequence[Any]] = {}
    choices["sep"] = [
        sep for sep in SEPARATORS if re.search(sep if sep == r"\s+" else re.escape(sep), text)
    ]
    if re.search(r"\d,\d", text):
        choices["decimal"] = [","]
    mark = first.strip()[:1]
    if mark in ("#", "%", "!", ";") and all(
        line.startswith(mark) for line in lines if mark in line
    ):
        choices["comment"] = [mark]
    choices["skiprows"] = range(1, min(20, len(lines)))
    if re.search(r"[,;|\t] ", text):
        choices["skipinitialspace"] = [True]
    if '"' in text:
        choices["quoting"] = [QUOTING_NONE]
    if "'" in text:
        choices["quotechar"] = ["'"]
    if re.search(r"\d[ ,.]\d{3}\b", text):
        choices["thousands"] = [",", ".", " "]
    return choices
