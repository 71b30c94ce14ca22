"""What a file holds is read as it is meant, or refused with the line to type; each of these was
once read wrongly, or ended in a trace.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.files import opened, picture, pictures
from train.data import DataError, Rows
from train.data.checks import check_values
from train.data.reading import Reader

COLUMNS = "data.columns={inputs: [a, b], labels: label}"
IMAGES = "data.columns={inputs: image, labels: label}"


def read(folder: Path, source: Path, *overrides: str) -> Rows:
    rows = opened(folder, source, *overrides).train
    assert isinstance(rows, Rows)
    return rows


def table(folder: Path, text: str, name: str = "own.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refused(folder: Path, source: Path, *overrides: str) -> str:
    with pytest.raises(DataError) as error:
        read(folder, source, *overrides)
    return str(error.value)


def test_a_column_has_one_type_over_all_rows(tmp_path: Path) -> None:
    """pandas looks at 10,000 rows at a time: `007` is a number in some of them, and text in others."""
    rows = [f"{i},0.5,{'007' if i < 10_500 else 'K1'},{i % 2}\n" for i in range(10_600)]
    path = table(tmp_path, "a,b,code,label\n" + "".join(rows))

    assert len(read(tmp_path, path, COLUMNS)) == 10_600
    codes = opened(tmp_path, path, "data.columns={inputs: [a, b], labels: code}").classes
    assert codes == {"labels": ("007", "K1")}


def test_a_word_after_the_first_rows_is_named_by_its_row(tmp_path: Path) -> None:
    rows = "".join(f"{'?' if i == 10_500 else i},0.5,{i % 2}\n" for i in range(10_600))

    said = refused(tmp_path, table(tmp_path, "a,b,label\n" + rows), COLUMNS)

    assert "column 'a' does not hold numbers: it is '?' in row 10500 of split 'train'" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "a,b,label\n9,1,2,0\n9,3,4,1\n",
            "line 2 has 4 fields, and the header names 3. If the first field",
        ),
        ("a,b,label\n1,2,0\n3,4,1,9\n", "line 3 has 4 fields, and the header names 3"),
        (
            "a,b,label,more\n1,2,0,5\n3,1,5\n",
            "line 3 has 3 fields, and the header names 4. Where one is empty",
        ),
        ("a,a,b,label\n1,2,3,0\n", "the data has the columns a.0, a.1, b, label"),
        (
            "a,b,label\n1,2, cat\n1,2,cat\n",
            "the classes ' cat' and 'cat', which differ in nothing but blanks",
        ),
        ("a,b,label\n,2,0\n3,4,1\n", "set: 'data.fill={\"a\": 3}'"),
        ("a,b,label\n", "has no rows in split 'train'"),
    ],
)
def test_a_table_that_would_be_read_wrongly(tmp_path: Path, text: str, said: str) -> None:
    assert said in refused(tmp_path, table(tmp_path, text), COLUMNS)


def test_commas_at_the_ends_of_rows_move_nothing(tmp_path: Path) -> None:
    path = table(
        tmp_path, "id,a,b,label,checked\n" + "".join(f"{i},{i},2,{i % 2},7,\n" for i in range(4))
    )

    assert read(tmp_path, path, COLUMNS).columns["inputs"].tolist() == [[i, 2] for i in range(4)]


def test_a_column_without_a_name_is_not_proposed(tmp_path: Path) -> None:
    """pandas calls it `Unnamed: 3`, where header and rows end in a comma; it would be the last one,
    as labels are.
    """
    path = table(tmp_path, "a,b,kind,\n" + "".join(f"{i},2,{i % 2},\n" for i in range(4)))

    [typed] = re.findall(r"'(data\.columns=[^']*)'", refused(tmp_path, path))

    assert typed == "data.columns={inputs: [a, b], labels: kind}"
    assert read(tmp_path, path, typed).columns["labels"].tolist() == [0, 1, 0, 1]


def test_missing_values_are_filled_by_what_one_types(tmp_path: Path) -> None:
    path = table(tmp_path, "a,b,label\n,2,0\n3,4,1\n5,6,1\n")

    [typed] = re.findall(r"'(data\.fill=[^']*)'", refused(tmp_path, path, COLUMNS))

    assert read(tmp_path, path, COLUMNS, typed).columns["inputs"].tolist() == [
        [3, 2],
        [3, 4],
        [5, 6],
    ]
    streamed = opened(
        tmp_path, path, COLUMNS, typed, "data.streaming=true", "data.shuffle_buffer=0"
    ).train
    assert streamed.first(0, 3)["inputs"].tolist() == [[3, 2], [3, 4], [5, 6]]
    assert "data.fill.c: the data has no such column" in refused(
        tmp_path, path, COLUMNS, "data.fill={c: 1}"
    )
    assert "'x' is no value of a column of double" in refused(
        tmp_path, path, COLUMNS, "data.fill={a: x}"
    )


def test_an_argument_that_no_reader_takes(tmp_path: Path) -> None:
    path = table(tmp_path, "a,b,label\n1,2,0\n")

    said = refused(tmp_path, path, COLUMNS, "data.args={separator: ;}")

    assert "data.args.separator: what reads csv files takes no such argument" in said


@pytest.mark.parametrize(("rows", "typed"), [(1, "0"), (2, "0.5"), (3, "0.33")])
def test_few_rows_are_held_out_as_one_types(tmp_path: Path, rows: int, typed: str) -> None:
    path = table(tmp_path, "a,b,label\n" + "1,2,0\n" * rows)

    assert refused(tmp_path, path, COLUMNS, "data.eval_fraction=0.1").endswith(
        f"Set: data.eval_fraction={typed}"
    )
    sets = opened(tmp_path, path, COLUMNS, f"data.eval_fraction={typed}")
    assert len(sets.evaluation.get("", ())) == (rows > 1)  # type: ignore[arg-type]


def test_a_number_as_text_is_named_by_its_line(tmp_path: Path) -> None:
    rows = [{"a": 0.5 + i, "b": 1.0, "label": i % 2} for i in range(20)]
    rows[15]["a"] = "0.25"  # type: ignore[assignment]
    path = table(tmp_path, "\n".join(map(json.dumps, rows)), "own.jsonl")

    said = refused(tmp_path, path, COLUMNS)

    assert f'Row 15 (line 16 of {path}) has text, "0.25", where 19 others have a number' in said


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("cat/a/0", "dog/b/0", "dog/a/0"), "which of them is the class is not clear"),
        (("0", "cat/0", "dog/0"), "0.png lies in no class folder, while others do"),
        (
            ("train/cat/0", "train/dog/0", "more/cat/0"),
            "0.png belongs to no split, while others in",
        ),
        (
            ("train/cat/0", "train/dog/0", "test/0"),
            "or train on the others alone, set: data.source=",
        ),
    ],
)
def test_folders_that_can_be_understood_in_two_ways(
    tmp_path: Path, files: tuple[str, ...], said: str
) -> None:
    for file in files:
        picture(tmp_path / "own" / f"{file}.png", 7)

    assert said in refused(tmp_path, tmp_path / "own", IMAGES)


def test_what_is_left_out_of_a_folder_is_counted(tmp_path: Path) -> None:
    own = pictures(tmp_path / "own")
    for name in ("0.heic", "1.heic", "notes"):
        (own / "cat" / name).write_text("x")
    (own / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")

    [note] = [note for note in opened(tmp_path, own, IMAGES).notes if note.startswith("skipped")]

    assert all(words in note for words in ("2 x .heic", "1 x no suffix", "1 x broken link"))


def test_a_class_of_which_nothing_can_be_read_does_not_vanish(tmp_path: Path) -> None:
    own = pictures(tmp_path / "own")
    (own / "bird").mkdir()
    (own / "bird" / "0.heic").write_text("x")

    assert "bird lies beside the folders of the other classes, and holds no image" in refused(
        tmp_path, own, IMAGES
    )


def test_whole_numbers_of_32_bits_are_no_brightness(tmp_path: Path) -> None:
    for kind in ("cat", "dog"):
        (tmp_path / "own" / kind).mkdir(parents=True)
        Image.fromarray(np.full((4, 4), 40_000, np.int32)).save(tmp_path / "own" / kind / "0.tif")

    assert "32-bit whole numbers (mode I)" in refused(tmp_path, tmp_path / "own", IMAGES)


@pytest.mark.parametrize(
    "make", [list, lambda images: [{"bytes": image, "path": None} for image in images]]
)
def test_files_of_images_in_a_table_are_images(
    tmp_path: Path, make: Callable[[list[bytes]], object]
) -> None:
    files = [picture(tmp_path / f"{i}.png", 51 * i).read_bytes() for i in range(3)]
    pq.write_table(pa.table({"image": make(files), "label": [0, 1, 0]}), tmp_path / "own.parquet")

    rows = read(tmp_path, tmp_path / "own.parquet", IMAGES)

    assert rows.fetch(np.arange(3))["inputs"].amax((1, 2, 3)).tolist() == pytest.approx(
        [0, 0.2, 0.4]
    )


def test_a_zero_byte_may_stand_in_a_text_and_utf_16_is_told() -> None:
    reader = Reader(columns={"labels": "word"}, classes={"labels": ["a"]})
    check_values(
        pa.table({"word": ["a line with a \0 in it, and more than that"]}), reader, "train"
    )

    wide = "as some editors write it".encode("utf-16-le").decode()
    with pytest.raises(DataError, match="24 zero bytes in row 0, as UTF-16"):
        check_values(pa.table({"word": ["plain", wide][1:]}), reader, "train")
