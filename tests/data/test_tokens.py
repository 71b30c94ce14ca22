"""Tokens are made once, by one rank, and found by whoever asks for the same ones; by nobody who
asks for others.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, disable_caching, enable_caching

from tests.data.test_packing import given_texts
from tests.data.test_tokenizers import save_byte_level, save_words
from tests.helpers import argv
from train.accumulate import compute_gradient
from train.config import load
from train.data import DataError, Rows, open_datasets
from train.data import tokens as tokens_room
from train.data.packing import COLUMNS, blocks, columns_of, filled, make_tokenizer
from train.data.tokens import document_tokens
from train.main import main
from train.prepare import main as prepare

LOGGED = """
from pathlib import Path

from train.data.tokenizers import Bytes

HERE = Path(__file__).parent


class Logged(Bytes):
    def __init__(self):
        self.words = (HERE / "words.txt").read_text()

    def encode(self, text):
        with (HERE / "calls").open("a") as calls:
            calls.write("encoded\\n")
        return super().encode(text)


class Unknown(Logged):
    def __init__(self):
        super().__init__()
        self.by_line = (line for line in self.words)
"""
TEXTS = 9
MODEL = "model={target: gpt, args: {vocabulary: 257, layers: 1, heads: 2, width: 16}}"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tokenizer of one's own, and texts that no other test has."""
    (tmp_path / "logged.py").write_text(LOGGED)
    (tmp_path / "words.txt").write_text("a b")
    (tmp_path / "texts.txt").write_text("".join(f"{tmp_path} {i}\n" for i in range(TEXTS)))
    monkeypatch.delitem(sys.modules, "logged", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def calls(folder: Path) -> int:
    """Of encode, since this was last asked."""
    log = folder / "calls"
    count = len(log.read_text().splitlines()) if log.exists() else 0
    log.unlink(missing_ok=True)
    return count


def in_memory(folder: str) -> Dataset:
    return given_texts(Path(folder, "texts.txt").read_text().splitlines())


def words(folder: Path, *overrides: str, tokenizer: str = "logged.Logged") -> list[str]:
    data = (
        f"data={{source: {folder / 'texts.txt'}, block_size: 16, eval_fraction: 0.4, tokenizer: "
        f"{tokenizer}}}"
    )
    return argv(
        folder,
        data,
        MODEL,
        "task=causal_lm",
        "duration={steps: 1}",
        "batch={effective: 2}",
        *overrides,
    )


def start(arguments: list[str], *path: str) -> int:
    sys.path.extend(path)
    return main(arguments, "accumulate", compute_gradient)


@pytest.mark.parametrize("source", ["a file", "a function"])
def test_what_was_prepared_is_found(
    own: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    of_function = ["data.source=tests.data.test_tokens.in_memory", f"data.args={{folder: {own}}}"]
    arguments = words(own, *(of_function if source == "a function" else []))

    assert prepare(arguments) == 0

    assert calls(own) == TEXTS
    assert "kept in the cache of datasets" in capsys.readouterr().out
    assert start(arguments) == 0
    assert start([*arguments, "data.block_size=8", "data.eval_fraction=0.2", "name=other"]) == 0
    assert calls(own) == 0


def test_one_rank_makes_them_while_the_others_wait(
    own: Path, run_ranks: Callable[..., list[Any]]
) -> None:
    assert run_ranks(2, start, words(own), str(own)) == [0, 0]

    assert calls(own) == TEXTS


@pytest.mark.parametrize("changed", ["source", "vocabulary", "texts"])
def test_others_are_made_anew(own: Path, changed: str) -> None:
    assert prepare(words(own)) == 0
    assert calls(own) == TEXTS

    place = own / {"source": "logged.py", "vocabulary": "words.txt", "texts": "texts.txt"}[changed]
    place.write_text(place.read_text() + "# c\n")

    assert prepare(words(own)) == 0
    assert calls(own) == TEXTS + (changed == "texts")


def test_those_of_another_tokenizer_are_not_found(own: Path) -> None:
    def inputs(tokenizer: str) -> np.ndarray:
        samples = open_datasets(
            load(words(own, tokenizer=tokenizer)).config, ("inputs", "labels")
        ).train
        assert isinstance(samples, Rows)
        return samples.columns["inputs"].numpy()

    bytewise, saved = inputs("bytes"), inputs(save_byte_level(own / "saved"))

    assert not np.array_equal(bytewise[0], saved[0])
    np.testing.assert_array_equal(inputs("logged.Logged"), bytewise)
    assert calls(own) == TEXTS


def test_a_tokenizer_that_nobody_can_tell_from_another_is_asked_each_time(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert prepare(words(own, tokenizer="logged.Unknown")) == 0
        assert calls(own) == TEXTS
    assert (
        "what data.tokenizer=logged.Unknown does is not known beforehand" in capsys.readouterr().out
    )


def test_who_wants_no_cache_gets_none(own: Path) -> None:
    disable_caching()
    try:
        for _ in range(2):
            assert prepare(words(own)) == 0
            assert calls(own) == TEXTS
    finally:
        enable_caching()


def test_blocks_are_those_of_the_tokenizer_itself(own: Path) -> None:
    config = load(
        words(own, "data.eval_fraction=0", tokenizer=save_byte_level(own / "saved"))
    ).config
    tokenizer = make_tokenizer(config.data)
    texts = (own / "texts.txt").read_text().splitlines()
    documents = (document_tokens(text, tokenizer) for text in texts)
    pieces = filled(list(blocks(documents, 16)), 16, tokenizer.document_start)

    for _ in range(2):  # made, and found
        samples = open_datasets(config, COLUMNS).train
        assert isinstance(samples, Rows)
        for name, expected in columns_of(pieces, tokenizer, COLUMNS).items():
            found = samples.columns[name].numpy()
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)


def test_texts_that_lost_bytes_are_known_when_found(own: Path) -> None:
    folder = Path(save_byte_level(own / "saved"))
    inner = json.loads((folder / "tokenizer.json").read_text())
    inner["pre_tokenizer"]["add_prefix_space"] = True
    (folder / "tokenizer.json").write_text(json.dumps(inner))
    config = load(words(own, tokenizer=str(folder))).config

    for _ in range(2):
        with pytest.raises(DataError, match="does not keep every byte"):
            open_datasets(config, COLUMNS)


def classified(folder: str) -> Dataset:
    texts = in_memory(folder)["text"]
    return Dataset.from_dict({"text": texts, "kind": ["a", "b", "a"] * 3, "size": range(TEXTS)})


def test_texts_of_one_length_are_found_too(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = save_words(own / "saved")
    data = (
        f"source: tests.data.test_tokens.classified, args: {{folder: {own}}}, tokenizer: "
        f"{tokenizer}"
    )
    columns = "columns: {inputs: text, labels: kind, targets: size}, preload: false"

    def batch(length: int) -> dict[str, Any]:
        config = load(argv(own, f"data={{{data}, {columns}, max_length: {length}}}")).config
        return open_datasets(config, ("inputs", "labels", "targets")).train.first(0, TEXTS)

    def refuse(*_: Any) -> None:
        raise AssertionError("made anew")

    saved = make_tokenizer(load(argv(own, f"data={{{data}}}")).config.data)
    made = batch(8)
    texts = in_memory(str(own))["text"]
    fill = {"padding": "max_length", "truncation": True, "max_length": 8}
    theirs = [saved._inner(texts[i], **fill) for i in made["sample_id"].tolist()]  # type: ignore[attr-defined]
    monkeypatch.setattr(tokens_room.Saved, "encode_one", refuse)
    found = batch(8)

    assert made.keys() == found.keys()
    for name, column in made.items():
        np.testing.assert_array_equal(found[name].numpy(), column.numpy())
    assert found["inputs"].dtype == found["labels"].dtype
    np.testing.assert_array_equal(
        found["inputs"].numpy(), np.stack([each["input_ids"] for each in theirs])
    )
    np.testing.assert_array_equal(
        found["attention_mask"].numpy(), np.stack([each["attention_mask"] for each in theirs])
    )
    assert found["targets"].tolist() == found["sample_id"].tolist()
    with pytest.raises(AssertionError, match="made anew"):
        batch(4)


def test_blocks_in_memory_say_so(own: Path) -> None:
    notes = open_datasets(load(words(own, "data.preload=false")).config, ("inputs", "labels")).notes

    assert "loading   blocks are held in memory, whatever data.preload says" in notes
