"""docs/unread.md: each file says what its row shows, and is read once its line is typed."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.files import picture, pictures
from tests.helpers import argv, record
from train.config import load
from train.data import open_datasets
from train.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "unread.md"
ROW = re.compile(r"^\| `([^`]+)` \| [^|]+ \| ([^|]+) \|$", re.MULTILINE)
KEY = re.compile(r"`('?(?:data|model)\.[^`]*)`")

COLUMNS = "data.columns={inputs: [a, b], labels: label}"
IMAGES = "data.columns={inputs: image, labels: label}"
TEXT = "data.columns={inputs: text, labels: text}"
MODEL = "model.args={inputs: 2, hidden: [4], outputs: 3}"
GOOD = "a,b,label\n0.5,2,0\n1.5,3,1\n2.5,1,0\n0.5,1,1\n"

Written = tuple[str, tuple[str, ...]]
"""(what data.source names, what is typed besides)"""


def table(
    text: str, *more: str, encoding: str = "utf-8", name: str = "own.csv"
) -> Callable[[Path], Written]:
    def write(folder: Path) -> Written:
        (folder / name).write_bytes(text.encode(encoding))
        return name, more or (COLUMNS,)

    return write


def images(
    *files: tuple[str, tuple[int, ...]], more: tuple[str, ...] = (IMAGES,)
) -> Callable[[Path], Written]:
    def write(folder: Path) -> Written:
        for name, shape in files:
            picture(folder / "own" / name, 60, shape)
        return "own", more

    return write


def heic(folder: Path) -> Written:
    pictures(folder / "own")
    for name in ("0.heic", "1.heic"):
        (folder / "own" / "cat" / name).write_text("x")
    return "own", (IMAGES,)


def whole_numbers(folder: Path) -> Written:
    for kind in ("cat", "dog"):
        (folder / "own" / kind).mkdir(parents=True)
        Image.fromarray(np.full((4, 4), 40_000, np.int32)).save(folder / "own" / kind / "0.tif")
    return "own", (IMAGES,)


FILES: dict[str, Callable[[Path], Written]] = {
    "the data has the columns a;b;label": table(GOOD.replace(",", ";")),
    "column 'a' does not hold numbers: it is '0,5'": table(
        GOOD.replace(",", ";").replace(".", ","), COLUMNS, "data.args={sep: ;}"
    ),
    "UnicodeDecodeError": table(GOOD.replace("1\n", "größer\n"), encoding="latin-1"),
    "line 2 has 3 fields, and the header names 1": table("# made by hand\n" + GOOD),
    "holds values, not names": table(GOOD.partition("\n")[2]),
    "has no value in row": table(GOOD.replace("\n1.5", "\n")),
    "The file has 'None' there": table(GOOD.replace("0\n", "None\n").replace("1\n", "mild\n")),
    "line 3 has 4 fields, and the header names 3": table(GOOD.replace("3,1\n", "3,1,9\n")),
    "does not hold numbers: it is 'red'": table(
        GOOD.replace(",2,", ",red,").replace(",3,", ",blue,")
    ),
    "the task needs inputs (as column 'inputs')": table(GOOD, "data.split=train"),
    "takes 6 numbers a sample, and got 2": table(
        GOOD, COLUMNS, "model.args={inputs: 6, hidden: [4], outputs: 3}"
    ),
    "the model has 3 classes": table(GOOD.replace("1\n", "3\n"), COLUMNS, MODEL),
    "columns differ in scale": table(GOOD.replace("0.5,", "900,")),
    "is of shape (3, 4, 4), row 0 of (1, 4, 4)": images(
        ("cat/0.png", (4, 4)), ("dog/0.png", (4, 4, 3))
    ),
    "is of shape (3, 6, 5), row 0 of (3, 4, 4)": images(
        ("cat/0.png", (4, 4, 3)), ("dog/0.png", (6, 5, 3))
    ),
    "32-bit whole numbers (mode I)": whole_numbers,
    "skipped   2 x .heic": heic,
    "It lacks what the task needs": images(("0.png", (4, 4)), ("1.png", (4, 4))),
    "lies in no class folder, while others do": images(
        ("0.png", (4, 4)), ("cat/0.png", (4, 4)), ("dog/0.png", (4, 4))
    ),
    "holds text, not numbers": table("one\ntwo\n", TEXT, name="own.txt"),
    "each line is a text of its own": table(
        "one\ntwo\n\nthree\n", TEXT, "data.max_length=8", name="own.txt"
    ),
    "holds conversations": table(
        '{"text": [{"role": "user", "content": "x"}]}\n', TEXT, name="own.jsonl"
    ),
    "holds objects within objects": table('{"text": {"x": 1}}\n', TEXT, name="own.jsonl"),
    'has text, "0.25", where 3 others have a number': table(
        "".join(f'{{"a": {a}, "b": 1, "label": 0}}\n' for a in ("0.5", "1.5", '"0.25"', "2.5")),
        name="own.jsonl",
    ),
    "has no split 'test'; it has: train": table(GOOD, COLUMNS, "data.eval_split=test"),
    "holds out nothing": table(GOOD, COLUMNS, "data.eval_fraction=0.01"),
}


def rows_of_page() -> dict[str, str]:
    return dict(ROW.findall(PAGE.read_text()))


def test_each_row_has_its_file() -> None:
    assert rows_of_page().keys() == FILES.keys()
    assert len(rows_of_page()) == PAGE.read_text().count("\n| `")


def shown(arguments: list[str], trains: bool) -> str:
    """What is seen on the screen; with `trains` also what only the first forward finds."""
    try:
        notes = open_datasets(load(arguments).config, ("inputs", "labels")).notes
        if trains:
            record(arguments)
    except UserError as error:
        return f"refused: {error}"
    return "\n".join(notes)


@pytest.mark.parametrize("words", FILES)
def test_it_is_seen_and_what_is_typed_helps(tmp_path: Path, words: str) -> None:
    source, more = FILES[words](tmp_path)
    arguments = argv(tmp_path, f"data.source={tmp_path / source}", *more)
    trains = any(each.startswith("model.args") for each in more)

    assert words in shown(arguments, trains)

    typed = KEY.findall(rows_of_page()[words])
    if typed:
        after = shown([*arguments, *shlex.split(typed[0])], trains)
        assert not after.startswith("refused"), after
        assert words not in after
