"""A label or token that the model has no output for: told as it comes, where the data is not in
memory.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.data.files import write
from tests.helpers import argv
from train.batch import sample_ids
from train.main import main
from train.standard import compute_gradient

NUMBERS = "model.args={inputs: 2, hidden: [4], outputs: 3}"
LM = "model={target: gpt, args: {vocabulary: 200, width: 8, layers: 1, heads: 1}}"


def start(arguments: list[str]) -> int:
    return main(arguments, "standard", compute_gradient)


def table(folder: Path, label: int, row: int) -> Path:
    kinds = [0, 1, 2, -100] * 16
    kinds[row] = label
    return write(folder / "own.parquet", {"a": [0.5] * 64, "b": [1] * 64, "kind": kinds})


def streamed(folder: Path, label: int, row: int) -> list[str]:
    columns = "columns: {inputs: [a, b], labels: kind}, streaming: true, shuffle_buffer: 0"
    return argv(
        folder,
        f"data={{source: {table(folder, label, row)}, {columns}}}",
        NUMBERS,
        "duration={steps: 8}",
    )


@pytest.mark.parametrize(
    ("world_size", "label", "row"), [(1, 5, 45), (1, -1, 45), (2, 5, 45), (1, 3, 2)]
)
def test_a_label_in_a_stream(
    run_ranks: Any, tmp_path: Path, world_size: int, label: int, row: int
) -> None:
    codes = run_ranks(world_size, start, streamed(tmp_path, label, row))

    assert codes == [2] * world_size
    ended = tmp_path / "run" / "ended.json"
    if row == 2:  # among the samples that are tried
        assert not ended.exists()
    else:
        reason = json.loads(ended.read_text())["reason"]
        expected = (
            f"sample {row} of the stream, in the order of epoch 0, holds {label} in 'labels' "
            "(column 'kind'), but"
        )
        assert expected in reason
        assert "the model has 3 outputs: it takes 0 to 2, and -100 for none" in reason


def test_labels_that_do_not_count_are_none(tmp_path: Path) -> None:
    assert start(streamed(tmp_path, 2, 45)) == 0


def documents() -> Dataset:
    """Plain letters, all below 200; 256 begins each text."""
    return Dataset.from_dict({"text": ["some words and more"] * 20})


@pytest.mark.parametrize("vocabulary", [200, 257])
def test_a_tokenizer_with_more_tokens_than_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], vocabulary: int
) -> None:
    data = "data={source: tests.data.test_in_range.documents, block_size: 4, streaming: true}"
    model = LM.replace("200", str(vocabulary))

    code = start(argv(tmp_path, data, model, "task=causal_lm", "duration={steps: 2}"))

    said = capsys.readouterr().err
    assert code == (2 if vocabulary == 200 else 0)
    if code:
        assert (
            "tokens from 0 to 256 (data.tokenizer has 257), but the model has 200 outputs" in said
        )
        assert not (tmp_path / "run").exists()


LAST = int(sample_ids(32, 0, 0, 0, 32)[-1])


def ready_tokens() -> Dataset:
    """One, in the sample that comes last, is too large for a model of 200 tokens."""
    tokens = [[i % 200, 1, 2, 3] for i in range(32)]
    tokens[LAST][2] = 300
    return Dataset.from_dict({"inputs": tokens, "labels": tokens})


def test_tokens_that_are_read_from_the_disk(tmp_path: Path) -> None:
    data = "data={source: tests.data.test_in_range.ready_tokens, preload: false}"

    code = start(argv(tmp_path, data, LM, "task=causal_lm", "duration={epochs: 1}"))

    assert code == 2
    reason = json.loads((tmp_path / "run" / "ended.json").read_text())["reason"]
    assert (
        f"sample {LAST} of the training set holds 300 in 'inputs', but the model has 200 outputs"
        in reason
    )
