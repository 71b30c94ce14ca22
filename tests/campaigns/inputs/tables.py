"""Tables as text: separators, quotes, encodings, headers, kinds of labels, line ends, columns that
nobody asks for.
"""

import gzip
import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tests.campaigns.inputs.case import LABEL, ROWS, A, B, Case, table_truth

COLUMNS = "data.columns={inputs: [a, b], labels: label}"

LABELS: Mapping[str, tuple[str, str]] = {
    "whole": ("0", "1"),
    "float": ("0.0", "1.0"),
    "text": ("cat", "dog"),
    "none": ("None", "mild"),
    "na": ("NA", "ok"),
    "null": ("null", "set"),
    "yes": ("no", "yes"),
    "bool": ("False", "True"),
    "umlaut": ("kleiner", "größer"),
    "digits": ("01", "x2"),
    "quoted": ('a "b"', "c"),
}


@dataclass(frozen=True)
class Form:
    sep: str = ","
    decimal: str = "."
    quotes: str = "none"  # none, text, all
    encoding: str = "utf-8"
    header: str = "plain"  # plain, comment, title, none, blanks, mixed_order
    labels: str = "whole"
    ends: str = "\n"
    extra: str = "none"
    rows: str = "plain"  # plain, trailing, blank_lines, short_header
    suffix: str = ".csv"
    stem: str = "own"


CHOICES: Mapping[str, tuple[str, ...]] = {
    "sep": (",", ";", "\t", "|", " "),
    "decimal": (".", ","),
    "quotes": ("none", "text", "all"),
    "encoding": ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "cp1252"),
    "header": ("plain", "comment", "title", "none", "blanks"),
    "labels": tuple(LABELS),
    "ends": ("\n", "\r\n"),
    "extra": (
        "none",
        "long_ids",
        "late_text",
        "dates",
        "gaps",
        "commas",
        "lines",
        "zeros",
        "repeated",
    ),
    "rows": ("plain", "trailing", "blank_lines", "short_header"),
    "suffix": (".csv", ".tsv", ".txt", ".csv.gz", ".dat", ".CSV"),
    "stem": ("own", "own[1]", "own*", "own ?", "größe", "test", "a,b", "x=1"),
}


def cases(count: int, seed: int = 0) -> Iterator[Case]:
    """Each form that differs in one thing, then as many that differ in several as it takes to be
    `count`.
    """
    single = [
        replace(Form(), **{name: value}) for name, values in CHOICES.items() for value in values[1:]
    ]
    forms = {form: None for form in (Form(), *single) if _can_be(form)}
    drawn = random.Random(seed)
    while len(forms) < count:
        names = drawn.sample(list(CHOICES), drawn.choice((2, 2, 3)))
        form = replace(Form(), **{name: drawn.choice(CHOICES[name]) for name in names})
        if _can_be(form):
            forms[form] = None
    yield from (_case(form) for form in itertools.islice(forms, count))


def _can_be(form: Form) -> bool:
    """Whether it can be told at all what is meant."""
    if form.sep == " " and (
        form.extra in ("gaps", "commas") or form.header == "blanks" or form.rows == "trailing"
    ):
        return False
    if form.decimal == "," and form.sep == "," and form.quotes != "all":
        return False
    if form.header == "none" and (form.extra != "none" or form.rows != "plain"):
        return False
    if form.quotes == "none" and (form.extra in ("commas", "lines") or form.labels == "quoted"):
        return False
    if form.sep == " " and form.labels == "quoted":
        return False
    if form.labels == "umlaut":
        return form.encoding != "utf-16-le" or form.sep != "|"
    return True


def _case(form: Form) -> Case:
    plain = Form()
    told = [
        f"{name}={value!r}" for name, value in vars(form).items() if value != getattr(plain, name)
    ]
    names = LABELS[form.labels]
    if form.labels in ("float", "bool"):
        names = ("0", "1")
    return Case(
        kind="table",
        name=", ".join(told) or "plain",
        write=partial(write, form),
        overrides=(COLUMNS,),
        truth=table_truth(names),
        may_be_refused=form.header == "title" and form.rows == "short_header",
    )


def write(form: Form, folder: Path) -> str:
    lines = [
        form.sep.join(_field(form, value, is_text) for value, is_text in row) for row in _rows(form)
    ]
    if form.rows == "trailing":
        lines = (
            [lines[0], *(line + form.sep for line in lines[1:])] if form.header != "none" else lines
        )
    if form.rows == "blank_lines":
        lines = [*lines[:5], "", *lines[5:], "", ""]
    before = {"comment": ["# made by hand, 2024"], "title": ["My table", "second line"]}.get(
        form.header, []
    )
    text = form.ends.join([*before, *lines]) + form.ends
    if form.encoding in ("latin-1", "cp1252") and form.labels != "umlaut":
        text = text.replace("label", "label")
    path = folder / f"{form.stem}{form.suffix}"
    content = text.encode(form.encoding)
    path.write_bytes(gzip.compress(content, mtime=0) if form.suffix.endswith(".gz") else content)
    if form.stem != "own":  # what a pattern would find in its place
        (folder / f"own1{form.suffix}").write_bytes(content[: len(content) // 2])
    return str(path)


def _rows(form: Form) -> Iterator[list[tuple[str, bool]]]:
    """(value, whether it is text) of each row, the header first."""
    header = [("a", True), ("b", True), ("label", True)]
    if form.header == "blanks":
        header = [(f" {name}" if place else name, True) for place, (name, _) in enumerate(header)]
    names = {"none": [], "repeated": [("c", True), ("c", True)]}.get(form.extra, [("more", True)])
    if form.header != "none":
        yield [*([] if form.rows == "short_header" else names), *header]
    if form.rows == "short_header" and form.extra == "none":
        names = [("more", True)]
    label = LABELS[form.labels]
    for row in range(ROWS):
        numbers = [(f"{value[row]}".replace(".", form.decimal), False) for value in (A, B)]
        last = (
            label[LABEL[row]].replace(".", form.decimal)
            if form.labels == "float"
            else label[LABEL[row]]
        )
        is_text = form.labels not in ("whole", "float", "bool")
        extra = [
            (_extra(form.extra, row), form.extra in ("commas", "lines", "dates")) for _ in names
        ]
        yield [*extra, *numbers, (last, is_text)]


def _extra(kind: str, row: int) -> str:
    return {
        "none": str(row),
        "long_ids": str(10**21 + row),
        "late_text": "K1A" if row > ROWS // 2 else "12345",
        "dates": f"2024-01-{row % 28 + 1:02d}",
        "gaps": "" if row % 3 else "7",
        "commas": f"one, two; {row}\t|",
        "lines": f"one\ntwo {row}",
        "zeros": f"{row:05d}",
        "repeated": str(row),
    }[kind]


def _field(form: Form, value: str, is_text: bool) -> str:
    if form.quotes == "none" or (form.quotes == "text" and not is_text):
        return value
    return '"' + value.replace('"', '""') + '"'
