"""What is wrong with the data is told by row, before training."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from tests.data.files import FLOWERS, SIDE_BY_SIDE, Table, opened, write
from tests.helpers import argv, record
from train.config import load
from train.data import DataError, Rows, open_datasets
from train.data.columns import Columns, match_columns
from train.data.holdout import hold_out
from train.data.shares import Misread
from train.main import main
from train.standard import compute_gradient

FLOWER_MODEL = ("model.args={inputs: 2, hidden: [4], outputs: 3}", SIDE_BY_SIDE)


def changed(column: str, row: int, value: object) -> Table:
    own = {name: list(values) for name, values in FLOWERS.items()}
    own[column][row] = value
    return own


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("column", ["height", "leaves", "kind"])
def test_a_missing_value(tmp_path: Path, column: str, kind: str) -> None:
    path = write(tmp_path / f"own.{kind}", changed(column, 4, None))

    with pytest.raises(
        DataError, match=f"column '{column}' has no value in row 4 of split 'train'"
    ):
        opened(tmp_path, path, SIDE_BY_SIDE)


def test_nan_in_a_column_of_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "own.parquet", changed("height", 2, math.nan))

    with pytest.raises(DataError, match="column 'height' has no value in row 2"):
        opened(tmp_path, path, SIDE_BY_SIDE)


@pytest.mark.parametrize("value", [math.inf, -math.inf])
@pytest.mark.parametrize("streaming", ["false", "true"])
def test_infinity_in_a_column_of_numbers(tmp_path: Path, value: float, streaming: str) -> None:
    path = write(
        tmp_path / "own.parquet", {"inputs": [0.5, value, 2.0, value], "labels": [0, 1, 0, 1]}
    )

    with pytest.raises(
        DataError,
        match=rf"column 'inputs' is {value} in row 1 of split 'train' \(and 1 more are inf",
    ):
        opened(tmp_path, path, f"data.streaming={streaming}", "data.shuffle_buffer=0").train.first(
            0, 4
        )


@pytest.mark.parametrize("at", [0, 3, 79])
@pytest.mark.parametrize(
    "task", ["{inputs: text, labels: kind}, max_length: 4", "{text: text}, block_size: 4"]
)
@pytest.mark.parametrize("streaming", ["false", "true"])
def test_a_number_among_texts(tmp_path: Path, at: int, task: str, streaming: str) -> None:
    texts: list[object] = [f"word {i}" for i in range(80)]
    texts[at] = 5
    path = write(tmp_path / "own.jsonl", {"text": texts, "kind": [0, 1] * 40})

    data = f"data={{columns: {task}, streaming: {streaming}, shuffle_buffer: 0}}"

    with pytest.raises(DataError) as error:
        opened(tmp_path, path, data).train.first(0, 80)

    assert "column 'text' holds values of several kinds" in str(error.value)
    assert (
        f"row {at} of split 'train' has a number, 5, where 79 others have text. Write all of"
        in str(error.value)
    )


def test_none_within_a_list(tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", {"inputs": [[1.0, 2.0], [3.0, None]], "labels": [0, 1]})

    with pytest.raises(DataError, match="column 'inputs' has no value somewhere in row 1"):
        opened(tmp_path, path)


def test_a_word_among_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv", changed("leaves", 3, "four"))

    with pytest.raises(
        DataError, match="column 'leaves' does not hold numbers: it is 'four' in row 3"
    ):
        opened(tmp_path, path, SIDE_BY_SIDE)


def test_lists_of_several_lengths(tmp_path: Path) -> None:
    path = write(
        tmp_path / "own.jsonl", {"inputs": [[1.0, 2.0], [1.0, 2.0], [3.0]], "labels": [0, 1, 0]}
    )

    with pytest.raises(DataError, match="row 2 is of another shape"):
        opened(tmp_path, path)


def test_text_that_nobody_said_how_to_read(tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv", FLOWERS)

    with pytest.raises(
        DataError, match=r"column 'kind' holds text, not numbers. Set: data.max_length=256"
    ):
        opened(tmp_path, path, "data.columns={inputs: kind, labels: leaves}")
    with pytest.raises(DataError, match="not known before a stream has ended"):
        opened(tmp_path, path, SIDE_BY_SIDE, "data.streaming=true").train.first(0, 2)


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv", FLOWERS)

    with pytest.raises(
        DataError,
        match=r"inputs \(as column 'width'\); the data has the columns height, leaves, kind",
    ):
        opened(tmp_path, path, "data.columns={inputs: [height, width], labels: kind}")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            "columns: {inputs: leaves, labels: kind, label: kind}",
            r"columns\.label: .* mean data\.columns\.labels\?",
        ),
        (
            "columns: {input: leaves, labels: kind}",
            r"columns\.input: .* mean data\.columns\.inputs\?",
        ),
        ("columns: {texts: kind}, block_size: 4", r"columns\.texts: .* mean data\.columns\.text\?"),
    ],
)
def test_a_name_that_is_nearly_one_of_the_tasks(tmp_path: Path, data: str, said: str) -> None:
    path = write(tmp_path / "own.parquet", FLOWERS)

    with pytest.raises(DataError, match=said):
        opened(tmp_path, path, f"data={{{data}}}")


def test_a_name_for_another_task_below_may_stay_and_a_near_one_be_taken_out(tmp_path: Path) -> None:
    path = write(tmp_path / "own.parquet", FLOWERS)
    below = "data.columns={inputs: leaves, labels: kind, targets: height, label: kind}"

    assert len(opened(tmp_path, path, below, "data.columns.label=null").classes) == 1


def test_a_class_that_only_the_evaluation_has(tmp_path: Path) -> None:
    write(tmp_path / "own" / "train.csv", FLOWERS)
    write(tmp_path / "own" / "test.csv", changed("kind", 1, "thistle"))

    with pytest.raises(
        DataError,
        match="'thistle' in row 1, a class that the training split has not: daisy, rose, tul",
    ):
        opened(tmp_path, tmp_path / "own", SIDE_BY_SIDE, "data.eval_split=test")


@pytest.mark.parametrize(("label", "row"), [(3, 4), (-1, 0)])
def test_a_label_outside_the_range(tmp_path: Path, label: int, row: int) -> None:
    labels = [0, 1, 2, -100, 1, 0] * 3
    labels[row] = label
    path = write(tmp_path / "own.csv", {"a": [0.5] * 18, "b": [1] * 18, "labels": labels})
    columns = (
        "data.columns={inputs: [a, b]}",
        "data.eval_fraction=0.5",
        "model.args={inputs: 2, hidden: [4], outputs: 3}",
    )

    with pytest.raises(DataError) as error:
        record(argv(tmp_path, f"data.source={path}", *columns))

    assert f"row {row} of split 'train' has the label {label} (column 'labels')" in str(error.value)
    assert "labels go from 0 to 2" in str(error.value)


def test_more_names_than_the_model_has_outputs(tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv", FLOWERS)
    overrides = (SIDE_BY_SIDE, "model.args={inputs: 2, hidden: [4], outputs: 2}")

    with pytest.raises(DataError, match=r"row 3 of split 'train' has the label 2"):
        record(argv(tmp_path, f"data.source={path}", *overrides))


@pytest.mark.parametrize("kind", [pa.int32(), pa.uint8(), pa.bool_()], ids=str)
def test_whole_labels_are_int64(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"inputs": pa.array([1.0, 2.0]), "labels": pa.array([0, 1]).cast(kind)})
    pyarrow.parquet.write_table(table, tmp_path / "own.parquet")

    train = opened(tmp_path, tmp_path / "own.parquet").train

    assert isinstance(train, Rows)
    assert train.columns["labels"].dtype == torch.int64


def test_fewer_samples_than_a_batch_train_and_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "own.csv", FLOWERS)
    scaling = ("optimizer.lr_scaling=linear", "optimizer.lr_reference_batch=8")

    code = main(
        argv(tmp_path, f"data.source={path}", *FLOWER_MODEL, *scaling), "standard", compute_gradient
    )

    said = capsys.readouterr().out
    assert code == 0
    assert (
        "fewer samples than batch.effective=8: each step takes 6; optimizer.lr_scaling follows the "
        "stated 8" in said
    )
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["derived"]["lr_peak"] == 0.5
    assert plan["classes"] == {"labels": ["daisy", "rose", "tulip"]}


def named_classes() -> dict[str, Any]:
    """Splits that are streams, of the same classes."""
    features = Features({"inputs": Value("float32"), "labels": ClassLabel(names=["cat", "dog"])})
    data = Dataset.from_dict({"inputs": [0.0, 1.0], "labels": [0, 1]}, features=features)
    return {"train": data, "test": data.to_iterable_dataset()}


def test_a_streamed_split_to_evaluate_on_keeps_its_classes(tmp_path: Path) -> None:
    config = load(
        argv(tmp_path, "data={source: tests.data.test_checks.named_classes, eval_split: test}")
    ).config

    sets = open_datasets(config, ("inputs", "labels"))

    assert next(iter(sets.evaluation[""].batches(np.arange(2), 2)))["labels"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("given", "typed"),
    [
        ({"labels": "survived"}, "{inputs: [age, fare]}"),
        ({"labels": "fare"}, "{inputs: [survived, age]}"),
        ({"inputs": ["age", "fare"]}, "{labels: survived}"),
        ({}, "{inputs: [survived, age], labels: fare}"),
    ],
)
def test_a_column_that_is_given_is_not_proposed_again(given: Columns, typed: str) -> None:
    with pytest.raises(Misread) as error:
        match_columns(["survived", "age", "fare"], given, ["inputs", "labels"])

    assert error.value.fix == f"Say which column is what: 'data.columns={typed}'"


def test_of_no_samples_none_can_be_held_out() -> None:
    with pytest.raises(DataError, match=r"The data set is empty: look at data\.split"):
        hold_out(0, 0.1)
