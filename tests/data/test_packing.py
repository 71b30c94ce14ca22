"""Texts in blocks: no token is lost, none is predicted from another document."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import argv
from train.batch.window import IGNORED
from train.config import load
from train.config.recipe import Data
from train.data import DataError, Rows, open_datasets
from train.data.packing import COLUMNS, make_tokenizer, pack
from train.data.python_docs import python_docs
from train.data.tokenizers import Bytes
from train.data.tokens import Tokenising

START = Bytes.document_start


def packed(texts: list[str], size: int) -> dict[str, np.ndarray]:
    documents = Tokenising("text", Bytes(), identity=None).of(Dataset.from_dict({"text": texts}))
    rows = pack(documents, Data(source="x", block_size=size), COLUMNS)
    return {name: column.numpy() for name, column in rows.columns.items()}


def given_texts(texts: list[str]) -> Dataset:
    return Dataset.from_dict({"text": texts})


def opened(folder: Path, texts: object, needed: tuple[str, ...], data: str = "") -> Rows:
    source = (
        f"source: tests.data.test_packing.given_texts, args: {{texts: {json.dumps(texts)}}}, "
        "block_size: 128"
    )
    rows = open_datasets(load(argv(folder, f"data={{{source}{data}}}")).config, needed).train
    assert isinstance(rows, Rows)
    return rows


def pairs(columns: dict[str, np.ndarray]) -> list[tuple[int, int]]:
    """(token, what follows it) wherever that is predicted, in order."""
    inputs, labels = columns["inputs"].ravel(), columns["labels"].ravel()
    return [(int(a), int(b)) for a, b in zip(inputs, labels, strict=True) if b != IGNORED]


@given(
    texts=st.lists(st.text(max_size=40), min_size=1, max_size=12).filter(lambda texts: any(texts)),
    size=st.integers(1, 50),
)
def test_every_token_of_every_document_is_predicted_once_from_the_one_before_it(
    texts: list[str], size: int
) -> None:
    columns = packed(texts, size)

    expected = []
    for text in texts:
        tokens = [START, *text.encode()]
        expected += list(pairwise(tokens))
    assert pairs(columns) == expected
    assert Counter(b for _, b in pairs(columns)) == Counter(
        byte for text in texts for byte in text.encode()
    )
    assert columns["bytes"].sum() == sum(len(text.encode()) for text in texts)
    assert columns["inputs"].shape[1] == columns["labels"].shape[1] == size


def test_blocks_follow_each_other_and_the_last_is_filled_up() -> None:
    columns = packed(["abc", "de"], 4)

    a, b, c, d, e = b"abcde"
    assert columns["inputs"].tolist() == [[START, a, b, c], [START, d, e, START]]
    assert columns["labels"].tolist() == [[a, b, c, IGNORED], [d, e, IGNORED, IGNORED]]
    assert columns["documents"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 2]]
    assert columns["bytes"].tolist() == [3, 2]


def test_the_manual_of_python_itself_is_packed_whole(tmp_path: Path) -> None:
    rows = open_datasets(
        load(argv(tmp_path, "data={source: python_docs, block_size: 128}")).config, COLUMNS
    ).train
    assert isinstance(rows, Rows)

    text = "".join(python_docs()["text"]).encode()
    labels = rows.columns["labels"].numpy()
    assert bytes(labels[labels != IGNORED].astype(np.uint8)) == text
    assert len(text) > 300_000


@pytest.mark.parametrize(
    ("texts", "columns", "needed", "message"),
    [
        (["a"], ", columns: {text: body}", COLUMNS, "data.columns.text=text"),
        ([1], "", COLUMNS, "holds int64"),
        (["a"], "", ("image",), "the task needs image"),
        ([""], "", COLUMNS, "holds no text"),
    ],
)
def test_what_cannot_be_packed_is_refused(
    tmp_path: Path, texts: list[str], columns: str, needed: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        opened(tmp_path, texts, needed, columns)


def test_a_tokenizer_that_does_not_exist_is_refused() -> None:
    with pytest.raises(DataError, match=r"data.tokenizer: .*Set: data.tokenizer=bytes"):
        make_tokenizer(Data(source="x", block_size=4, tokenizer="bites"))


def test_text_comes_back() -> None:
    text = "naïve 日本"

    assert Bytes().decode([START, *Bytes().encode(text)]) == text


def missing_text() -> Dataset:
    return Dataset.from_dict({"text": ["one", None, "three"]})


def test_a_missing_text_is_told_by_its_row(tmp_path: Path) -> None:
    config = load(
        argv(tmp_path, "data={source: tests.data.test_packing.missing_text, block_size: 4}")
    ).config

    with pytest.raises(DataError, match="no value in row 1 of split 'train'"):
        open_datasets(config, ("inputs", "labels"))
