"""The shipped configs of own data: those with data train, those of the Hub are planned on a
stand-in.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from tests.data.files import FLOWERS, SIDE_BY_SIDE, pictures, write
from tests.helpers import argv, record, rows
from train.accumulate import compute_gradient as accumulate
from train.main import main
from train.prepare import main as prepare
from train.standard import compute_gradient

CONFIGS = Path(__file__).parents[2] / "configs"
NEEDS_VISION = pytest.mark.skipif(
    find_spec("timm") is None, reason="the extra vision is not installed"
)
HEADER_OF_CIFAR10 = (
    "model.target=vision",
    "model.args={name: resnet18, norm_layer: groupnorm, outputs: 10}",
)


@pytest.mark.parametrize(("name", "accuracy"), [("csv", 0.85), ("text", 0.85)])
def test_a_config_with_its_data_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, accuracy: float
) -> None:
    monkeypatch.chdir(CONFIGS.parent)

    code = main(
        [str(CONFIGS / f"{name}.yaml"), f"output_dir={tmp_path}", "wandb.mode=disabled"],
        "standard",
        compute_gradient,
    )

    assert code == 0
    assert rows(tmp_path, "eval/accuracy", name)[-1]["eval/accuracy"] > accuracy


@pytest.mark.parametrize(
    ("name", "column", "shape", "model"),
    [
        ("fashion", "image", (28, 28), ()),
        ("cifar10", "img", (32, 32, 3), ()),
        pytest.param("cifar10", "img", (32, 32, 3), HEADER_OF_CIFAR10, marks=NEEDS_VISION),
    ],
)
def test_a_config_of_the_hub_trains_on_a_stand_in(
    tmp_path: Path, name: str, column: str, shape: tuple[int, ...], model: tuple[str, ...]
) -> None:
    random = np.random.default_rng(0)
    features = Features(
        {column: Image(), "label": ClassLabel(names=[f"kind {i}" for i in range(10)])}
    )
    columns = {
        column: list(random.integers(0, 255, (20, *shape), dtype=np.uint8)),
        "label": [*range(10)] * 2,
    }
    data = Dataset.from_dict(columns, features=features)
    DatasetDict({"train": data, "test": data.select(range(4))}).save_to_disk(str(tmp_path / "own"))
    quick = (
        "duration={steps: 2}",
        "batch.effective=8",
        "wandb.mode=disabled",
        "data.workers=2",
        f"output_dir={tmp_path}",
    )

    code = main(
        [
            str(CONFIGS / f"{name}.yaml"),
            f"data.source={tmp_path / 'own'}",
            "name=run",
            *model,
            *quick,
        ],
        "standard",
        compute_gradient,
    )

    assert code == 0
    assert rows(tmp_path, "eval/accuracy")[-1]["eval/samples"] == 4


def test_the_config_of_web_pages_trains_on_texts_in_their_place(tmp_path: Path) -> None:
    columns = {
        "text": [f"Page {i}: {'naïve words ' * (i % 7)}" for i in range(60)],
        "score": [3.1] * 60,
    }
    rest = (
        "id",
        "dump",
        "url",
        "file_path",
        "language",
        "language_score",
        "token_count",
        "int_score",
    )
    write(tmp_path / "own" / "0.parquet", columns | {name: ["x"] * 60 for name in rest})
    small = ("model.args={vocabulary: 257, layers: 1, heads: 2, width: 8}", "data.block_size=64")
    quick = (
        "batch.effective_tokens=512",
        "batch.micro=3",
        "precision=fp32",
        "duration.steps=4",
        "schedule.warmup_tokens=1024",
    )
    where = (
        f"data.source={tmp_path / 'own'}",
        "name=run",
        f"output_dir={tmp_path}",
        "wandb.mode=disabled",
    )

    code = main([str(CONFIGS / "fineweb.yaml"), *where, *small, *quick], "accumulate", accumulate)

    assert code == 0
    (row,) = rows(tmp_path)
    assert row["progress/tokens_seen"] == 4 * 512


# datasets (5.2) leaves the file open that it was reading when the last step was taken.
@pytest.mark.usefixtures("leaves_files_open")
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(("duration", "steps"), [("samples: 20", 3), ("steps: 4", 4)])
def test_own_files_stream_until_the_duration_ends(
    tmp_path: Path, kind: str, duration: str, steps: int
) -> None:
    for i in range(3):
        table = {**FLOWERS, "kind": [i % 3 for i in range(6)]}
        write(tmp_path / "own" / f"{i}.{kind}", table)
    overrides = (
        SIDE_BY_SIDE,
        "model.args={inputs: 2, hidden: [4], outputs: 3}",
        "data.streaming=true",
    )

    trace = record(
        argv(tmp_path, f"data.source={tmp_path / 'own'}", *overrides, f"duration={{{duration}}}")
    )

    assert [window.samples for window in trace.windows] == [8, 8, 2, 8][:steps]


def test_prepare_says_what_training_would_find(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "own.csv", FLOWERS)
    source = (f"data.source={path}", SIDE_BY_SIDE, "data.eval_fraction=0.34")

    assert prepare(argv(tmp_path, *source)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "data      4 samples; 2 held out",
        "classes   labels: 0 daisy, 1 rose, 2 tulip",
    ]
    assert prepare(argv(tmp_path, f"data.source={tmp_path / 'nowhere.csv'}")) == 2
    assert "there is no such file" in capsys.readouterr().err


def test_a_folder_of_pictures_trains(tmp_path: Path) -> None:
    pictures(tmp_path / "own", 6)
    model = (
        "model.target=convnet",
        "model.args={outputs: 2, channels: 3, widths: [8]}",
        "precision=fp32",
    )
    columns = "data.columns={inputs: image, labels: label}"

    trace = record(argv(tmp_path, f"data.source={tmp_path / 'own'}", columns, *model))

    assert [window.samples for window in trace.windows] == [8, 4]
