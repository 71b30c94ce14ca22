"""Own files with no code: what can be read, how it is split, and what is said of what cannot."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image

from tests.data.files import FLOWERS, SIDE_BY_SIDE, opened, picture, pictures, write
from train.batch import make_plan
from train.batch.window import Place
from train.config import ConfigError
from train.data import DataError, Datasets, Rows

INPUTS = [list(pair) for pair in zip(FLOWERS["height"], FLOWERS["leaves"], strict=True)]
LABELS = [1, 0, 1, 2, 0, 2]  # daisy, rose, tulip
KINDS = ("csv", "tsv", "json", "jsonl", "parquet")


def rows_of(sets: Datasets) -> Rows:
    assert isinstance(sets.train, Rows)
    return sets.train


@pytest.mark.parametrize("kind", KINDS)
def test_a_file(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"flowers.{kind}", FLOWERS)

    sets = opened(tmp_path, path, SIDE_BY_SIDE)

    assert rows_of(sets).columns["inputs"].tolist() == INPUTS
    assert rows_of(sets).columns["labels"].tolist() == LABELS
    assert sets.classes == {"labels": ("daisy", "rose", "tulip")}
    assert sets.notes == ("classes   labels: 0 daisy, 1 rose, 2 tulip",)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_shards_in_the_order_of_their_names(tmp_path: Path, kind: str) -> None:
    for i, (start, stop) in enumerate([(0, 2), (2, 3), (3, 6)]):
        part = {name: column[start:stop] for name, column in FLOWERS.items()}
        write(tmp_path / "shards" / f"part-{i}.{kind}", part)
    (tmp_path / "shards" / "README.md").write_text("what this is")

    sets = opened(tmp_path, tmp_path / "shards", SIDE_BY_SIDE)

    assert rows_of(sets).columns["inputs"].tolist() == INPUTS
    assert rows_of(sets).columns["labels"].tolist() == LABELS


@pytest.mark.parametrize(
    "names",
    [("train.csv", "test.csv"), ("train/a.csv", "test/a.csv"), ("x_train.csv", "x-test.csv")],
)
def test_splits_by_name(tmp_path: Path, names: tuple[str, str]) -> None:
    for name, count in zip(names, (6, 2), strict=True):
        write(tmp_path / "own" / name, {key: column[:count] for key, column in FLOWERS.items()})

    sets = opened(tmp_path, tmp_path / "own", SIDE_BY_SIDE, "data.eval_split=test")

    assert rows_of(sets).columns["labels"].tolist() == LABELS
    held_out = sets.evaluation[""]
    assert isinstance(held_out, Rows)
    assert held_out.columns["labels"].tolist() == [1, 0], (
        "numbered by the classes of the training split"
    )


def test_a_data_set_saved_to_disk(tmp_path: Path) -> None:
    data = Dataset.from_dict(FLOWERS)
    data.save_to_disk(str(tmp_path / "one"))
    DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(str(tmp_path / "several"))

    one = opened(tmp_path, tmp_path / "one", SIDE_BY_SIDE)
    several = opened(tmp_path, tmp_path / "several", SIDE_BY_SIDE, "data.eval_split=test")

    assert (
        rows_of(one).columns["labels"].tolist()
        == rows_of(several).columns["labels"].tolist()
        == LABELS
    )
    assert len(several.evaluation[""]) == 1
    with pytest.raises(DataError, match="no split 'validation'; it has: train, test"):
        opened(tmp_path, tmp_path / "several", SIDE_BY_SIDE, "data.eval_split=validation")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_text_of_lines(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "own.txt").write_text("ab\nä\n", encoding=encoding)

    sets = opened(
        tmp_path,
        tmp_path / "own.txt",
        "data.columns={inputs: text, labels: text}",
        "data.max_length=3",
    )

    assert rows_of(sets).columns["inputs"].tolist() == [[97, 98, 256], [195, 164, 256]]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_images(tmp_path: Path, streaming: bool) -> None:
    pictures(tmp_path / "own" / "train")
    pictures(tmp_path / "own" / "test", 1, ("dog",))
    columns = "data.columns={inputs: image, labels: label}"

    sets = opened(
        tmp_path,
        tmp_path / "own",
        columns,
        "data.eval_split=test",
        f"data.streaming={streaming}",
        "data.shuffle_buffer=0",
    )

    batch = sets.train.first(0, 6)
    assert batch["inputs"].shape == (6, 3, 4, 5)
    assert batch["inputs"].dtype == torch.float32
    pixels = [round(255 * image.max().item()) for image in batch["inputs"]]
    assert sorted(zip(pixels, batch["labels"].tolist(), strict=True)) == [
        (0, 0),
        (1, 0),
        (2, 0),
        (10, 1),
        (11, 1),
        (12, 1),
    ]
    [held_out] = sets.evaluation[""].batches(torch.arange(1).numpy(), 8)
    assert held_out["labels"].tolist() == [1], "dog is dog, whatever else the split holds"


def test_a_held_out_fraction_is_the_same_each_time(tmp_path: Path) -> None:
    path = write(tmp_path / "flowers.csv", FLOWERS)

    sets = [
        opened(tmp_path, path, SIDE_BY_SIDE, "data.eval_fraction=0.34", f"seed={seed}")
        for seed in (0, 1)
    ]

    first, second = (rows_of(found).columns["inputs"].tolist() for found in sets)
    assert first == second
    assert len(first) == 4


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a.csv": "", "b.csv": "x,y\n1,2\n"}, "a.csv is empty: 0 bytes"),
        ({"a.csv": "x,y\n"}, "has no rows in split 'train'"),
        ({"a.csv": "x,y\n1,2\n", "b.csv": "x,y\n1,2\n1,2,3\n"}, "b.csv: line 3 has 3 fields"),
        (
            {"a.jsonl": '{"x": 1, "y": 2}\n', "b.jsonl": '{"x": 1, "y":'},
            "b.jsonl: the object that begins in line 1",
        ),
        ({"b.parquet": "PAR1 and no more"}, "b.parquet: ArrowInvalid"),
        (
            {"a.csv": "x,y\n1,2\n", "b.jsonl": '{"x": 1}\n'},
            "1 x .csv (a.csv), 1 x .jsonl (b.jsonl)",
        ),
        (
            {"train.csv": "x\n1\n", "more.csv": "x\n1\n"},
            "more.csv belongs to no split, while others do (train)",
        ),
        ({"test.csv": "x\n1\n"}, "no split 'train'; it has: test"),
        ({"a.bin": "x"}, "no file that can be read as samples. Known are: .csv"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, files: dict[str, str], said: str) -> None:
    (tmp_path / "own").mkdir()
    for name, text in files.items():
        (tmp_path / "own" / name).write_text(text)

    with pytest.raises(DataError) as error:
        opened(tmp_path, tmp_path / "own")

    assert said in str(error.value)


def test_a_parquet_file_that_was_cut_is_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "own" / "a.parquet", FLOWERS)
    cut = write(tmp_path / "own" / "b.parquet", FLOWERS)
    cut.write_bytes(whole.read_bytes()[:-40])

    for streaming in ("false", "true"):
        with pytest.raises(DataError, match=r"b\.parquet"):
            opened(
                tmp_path, tmp_path / "own", SIDE_BY_SIDE, f"data.streaming={streaming}"
            ).train.first(0, 20)


def test_a_name_that_is_no_file(tmp_path: Path) -> None:
    for source in ("nowhere.csv", "./nowhere", str(tmp_path / "nowhere.parquet")):
        with pytest.raises(DataError, match="there is no such file or folder"):
            opened(tmp_path, source)
    with pytest.raises(ConfigError, match="no module 'nowhere'"):
        opened(tmp_path, "nowhere.other")


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    bad = pictures(tmp_path / "own") / "dog" / "1.png"
    bad.write_bytes(bad.read_bytes()[:30])

    with pytest.raises(DataError, match=rf"{bad} \(row 4\): "):
        opened(tmp_path, tmp_path / "own", "data.columns={inputs: image, labels: label}")


def test_an_image_of_another_size_is_named(tmp_path: Path) -> None:
    picture(pictures(tmp_path / "own") / "dog" / "1.png", 0, (4, 6, 3))

    with pytest.raises(DataError, match=r"row 4 is of shape \(3, 4, 6\), row 0 of \(3, 4, 5\)"):
        opened(tmp_path, tmp_path / "own", "data.columns={inputs: image, labels: label}")


@pytest.mark.parametrize(
    ("mode", "value", "expected"), [("I;16", 65535, 1.0), ("I;16", 13107, 0.2), ("F", 0.25, 0.25)]
)
def test_images_of_16_bits_and_of_floats(
    tmp_path: Path, mode: str, value: float, expected: float
) -> None:
    image = Image.fromarray(np.full((4, 5), value, np.uint16 if mode == "I;16" else np.float32))
    for kind in ("cat", "dog"):
        (tmp_path / "pictures" / kind).mkdir(parents=True)
        image.save(tmp_path / "pictures" / kind / "0.tiff")

    batch = opened(
        tmp_path, tmp_path / "pictures", "data.columns={inputs: image, labels: label}"
    ).train.first(0, 2)

    assert batch["inputs"].dtype == torch.float32
    assert batch["inputs"].unique().tolist() == pytest.approx([expected], rel=1e-6)


@pytest.mark.usefixtures("leaves_files_open")  # datasets (5.2) closes no table
def test_the_damaged_one_of_two_streamed_tables_is_named(tmp_path: Path) -> None:
    # commas, in a file parted by tabs
    good = {"height": [1.5, 2.0], "leaves": [3, 5], "kind": ["a, b, c", "d"]}
    write(tmp_path / "tables" / "a.tsv", good)
    (tmp_path / "tables" / "b.tsv").write_bytes(b"height\tleaves\tkind\n\xff\xfe\t1\t2\n")
    columns = "data.columns={inputs: height, labels: leaves}"
    plan = make_plan(3, "all", None, world_size=1, dataset_size=None)

    data = opened(
        tmp_path, tmp_path / "tables", "data.streaming=true", "data.shuffle_buffer=0", columns
    ).train
    with pytest.raises(DataError, match=r"b\.tsv"):
        list(islice(data.shares(plan, 0, 0, Place(), None), 2))


def test_a_tokenizer_of_ones_own_is_not_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "flowers.csv", FLOWERS)

    with pytest.raises(DataError, match="does not say by which token"):
        opened(
            tmp_path,
            path,
            "data.columns={inputs: kind, labels: leaves}",
            "data.max_length=4",
            "data.tokenizer=tests.data.test_files.Own",
        )


def test_a_tokenizer_that_lacks_something_is_told_of_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "flowers.parquet", FLOWERS)

    for streaming in ("false", "true"):
        with pytest.raises(
            DataError, match=r"Part has no decode, no lengths. A tokenizer of your own needs voc"
        ):
            opened(
                tmp_path,
                path,
                f"data={{columns: {{text: kind}}, block_size: 4, streaming: {streaming}}}",
                "data.tokenizer=tests.data.test_files.Part",
            )


@pytest.mark.parametrize(("separator", "typed"), [(";", ";"), ("|", "|"), ("\t", "\\t")])
def test_a_table_parted_by_something_else_than_commas(
    tmp_path: Path, separator: str, typed: str
) -> None:
    path = write(tmp_path / "flowers.csv", FLOWERS)
    path.write_text(path.read_text().replace(",", separator))
    argument = f'data.args={{sep: "{typed}"}}'

    with pytest.raises(DataError, match="not by commas") as error:
        opened(tmp_path, path, SIDE_BY_SIDE)

    assert f"Set: '{argument}'" in str(error.value)
    assert (
        rows_of(opened(tmp_path, path, SIDE_BY_SIDE, argument)).columns["inputs"].tolist() == INPUTS
    )


def test_decimal_commas(tmp_path: Path) -> None:
    path = tmp_path / "flowers.csv"
    path.write_text("height;leaves;kind\n1,5;3;rose\n2,0;5;daisy\n")
    argument = 'data.args={sep: ";", decimal: ","}'

    with pytest.raises(DataError) as error:
        opened(tmp_path, path, SIDE_BY_SIDE)

    assert f"'{argument}'" in str(error.value)
    assert (
        rows_of(opened(tmp_path, path, SIDE_BY_SIDE, argument)).columns["inputs"].tolist()
        == INPUTS[:2]
    )


class Part:
    """A tokenizer that was left unfinished."""

    vocabulary = 2
    document_start = 0

    def encode(self, text: str) -> list[int]:
        return [1] * len(text)


class Own(Part):
    """A tokenizer that is neither of ours."""

    def decode(self, tokens: list[int]) -> str:
        return "x" * len(tokens)

    def lengths(self, tokens: list[int]) -> list[int]:
        return [1] * len(tokens)
