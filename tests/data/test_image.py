"""data.image: size, mode and range of images, against PIL, NumPy and plain PyTorch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy, interpolate

import train
from tests.conftest import run_ranks
from tests.data import test_pixels
from tests.data.files import opened, pictures, write
from tests.helpers import Trace, argv, distance, flat, record, rows
from train.config import ConfigError, load
from train.data import DataError
from train.errors import UserError
from train.models.mlp import MLP
from train.run import Run

IMAGES = "data.columns={inputs: image, labels: label}"
MEAN, STD = 0.3, 0.2


def saved(folder: Path, images: dict[str, Image.Image]) -> Path:
    """All of them in each of two classes."""
    for kind in ("cat", "dog"):
        (folder / kind).mkdir(parents=True)
        for name, image in images.items():
            image.save(folder / kind / name)
    return folder


def read(folder: Path, *overrides: str) -> torch.Tensor:
    """The images of the first class, in the order of their names."""
    batch = opened(folder.parent, folder, IMAGES, *overrides).train.first(0, 99)
    return batch["inputs"][batch["sample_id"].argsort()][: len(batch["labels"]) // 2]


def grey(value: int, mode: str) -> Image.Image:
    if mode == "F":
        return Image.fromarray(np.full((4, 6), value / 255, np.float32))
    if mode == "I;16":
        return Image.fromarray(np.full((4, 6), value * 257, np.uint16))
    return Image.fromarray(np.full((4, 6, 3), value, np.uint8)).convert(mode)


MODES = ("L", "RGB", "RGBA", "LA", "P", "CMYK", "I;16", "F")


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_whatever_they_are_stored_as(tmp_path: Path, mode: str, channels: int) -> None:
    images = {
        f"{i}.{'tif' if m in ('F', 'I;16', 'CMYK') else 'png'}": grey(51 * (i % 5), m)
        for i, m in enumerate(MODES)
    }

    found = read(saved(tmp_path / "own", images), f"data.image.mode={mode}")

    assert found.shape == (len(MODES), channels, 4, 6)
    levels = np.array([51 * (i % 5) / 255 for i in range(len(MODES))], np.float32)
    # the nearest colour of its palette
    levels[MODES.index("P")] = found[MODES.index("P")].mean().item()
    assert found.mean((1, 2, 3)).tolist() == pytest.approx(levels.tolist(), abs=1e-6)
    assert found[MODES.index("P")].mean().item() == pytest.approx(204 / 255, abs=0.1)


def test_without_a_mode_each_depth_counts_as_0_to_1(tmp_path: Path) -> None:
    """Else those of 16 bits would be 257 times as bright, and those of floats dark."""
    images = {"0.png": grey(51, "L"), "1.tif": grey(102, "I;16"), "2.tif": grey(204, "F")}

    found = read(saved(tmp_path / "own", images))

    assert found.dtype == torch.float32
    assert found.amax((1, 2, 3)).tolist() == pytest.approx([0.2, 0.4, 0.8])


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    black = np.zeros((4, 6, 4), np.uint8)
    black[:2, :, 3] = 255  # above: black; below: nothing
    half = np.zeros((4, 6, 2), np.uint8)
    half[..., 1] = 102

    found = read(
        saved(tmp_path / "own", {"0.png": Image.fromarray(black), "1.png": Image.fromarray(half)}),
        "data.image.mode=L",
    )

    assert found[0, 0, :, 0].tolist() == [0, 0, 1, 1]
    assert found[1].unique().tolist() == pytest.approx([0.6])


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "I;16B", "F"])
def test_a_size(tmp_path: Path, mode: str) -> None:
    """Against PyTorch's own resize with antialiasing, to the rounding of what is stored."""
    random = np.random.default_rng(0)
    levels = random.random((30, 40, 3) if mode == "RGB" else (30, 40))
    kind = {"L": np.uint8, "RGB": np.uint8, "I;16": np.uint16, "I;16B": np.uint16, "F": np.float32}[
        mode
    ]
    most = 1 if mode == "F" else np.iinfo(kind).max
    stored = (levels * most).astype(kind)
    image = Image.fromarray(stored)
    if mode == "I;16B":
        image = Image.frombytes(mode, (40, 30), stored.astype(">u2").tobytes())
    own = saved(tmp_path / "own", {"0.tif": image})

    [found] = read(own, "data.image.size=[9, 16]")

    plain = torch.from_numpy(stored.astype(np.float64) / most)
    plain = plain[None] if plain.dim() == 2 else plain.permute(2, 0, 1)
    wanted = interpolate(plain[None], (9, 16), mode="bilinear", antialias=True)[0]
    assert found.shape == wanted.shape
    # PIL rounds after each of the two directions.
    assert (found.double() - wanted).abs().max().item() <= (1.01 if most > 1 else 1e-6) / (
        most if most > 1 else 1
    )
    assert read(own, "data.image.size=7").shape[2:] == (7, 7)


def test_the_advice_about_images_that_differ(tmp_path: Path) -> None:
    own = saved(tmp_path / "own", {"0.png": grey(9, "L"), "1.png": grey(9, "RGB").resize((5, 5))})

    with pytest.raises(DataError, match=r"Set: data\.image\.mode=RGB 'data\.image\.size=\[4, 5\]'"):
        read(own)
    assert read(own, "data.image.mode=RGB", "data.image.size=[4, 5]").shape == (2, 3, 4, 5)


DATA = ("data.source=tests.data.test_pixels.pictures", IMAGES)
MODEL = "model={target: mlp, args: {inputs: 64, hidden: [4], outputs: 3}}"
SCALED = f"data.image={{mean: [{MEAN}], std: [{STD}]}}"
STREAM = ("data.streaming=true", "data.shuffle_buffer=0")


def loss_of(module: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    """Of the pictures, scaled by plain PyTorch in float64."""
    labels = torch.tensor(test_pixels.pictures()["label"])
    return cross_entropy(module((test_pixels.numbers()[ids].double() - MEAN) / STD), labels[ids])


@pytest.mark.parametrize("more", [(), ("data.preload=false", "data.workers=0"), STREAM])
def test_the_model_gets_the_range_and_what_travels_stays_as_it_is(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    travelled: set[torch.dtype] = set()

    def watch(run: Run, trace: Trace) -> None:
        own = run.learner.feed.take

        def take(micro_batch: Any) -> Any:
            travelled.add(micro_batch.batch["inputs"].dtype)
            return own(micro_batch)

        run.learner.feed.take = take  # type: ignore[method-assign]

    given = (*DATA, MODEL, SCALED, "batch={effective: 5, micro: 2}", "duration={steps: 2}", *more)
    trace = record(argv(tmp_path, *given), prepare=watch)

    assert travelled == {torch.uint8}
    module = MLP(64, [4], 3).double()
    weights = list(module.parameters())
    for step in (1, 2):
        torch.nn.utils.vector_to_parameters(torch.from_numpy(trace.weights[step - 1]), weights)
        wanted = flat(torch.autograd.grad(loss_of(module, trace.ids[step - 1]), weights))
        assert distance(trace.gradients[step], wanted) < 1e-12


def test_evaluations_and_train_load_have_the_range_too(tmp_path: Path) -> None:
    words = argv(tmp_path, *DATA, MODEL, SCALED, "data.eval_split=train", "duration={steps: 2}")

    run_ranks(2, record, words)

    module = train.load(tmp_path / "run")
    plain = MLP(64, [4], 3).double()
    plain.load_state_dict(module.state_dict())
    wanted = loss_of(plain, list(range(10))).item()
    assert rows(tmp_path, "eval/loss")[-1]["eval/loss"] == pytest.approx(wanted, rel=1e-12)
    images = test_pixels.numbers()
    torch.testing.assert_close(
        module(images), plain((images.double() - MEAN) / STD), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("data.image.size=0", "got 0; it takes a number of pixels, such as 64"),
        ("data.image.size=[1,2,3]", "or [height, width]"),
        ("data.image.mode=rgb", "it takes one of L, RGB"),
        ("data.image.mean=[0.5]", "they take a number a channel each"),
        ("data.image={mean: [0.5], std: [0.0]}", "each must be above 0"),
        ("data.image={mode: RGB, mean: [0.5], std: [1.0]}", "images of mode RGB have 3"),
    ],
)
def test_what_cannot_be_meant(tmp_path: Path, overrides: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(argv(tmp_path, overrides))
    assert said in str(error.value)


def test_data_without_images_and_another_number_of_channels(tmp_path: Path) -> None:
    table = write(tmp_path / "own.csv", {"a": [1.0, 2.0], "label": [0, 1]})
    with pytest.raises(
        DataError, match=r"none of the columns that are read holds images \(a, label\)"
    ):
        opened(tmp_path, table, "data.columns={inputs: a, labels: label}", "data.image.size=8")
    own = pictures(tmp_path / "own", 4)
    words = argv(
        tmp_path,
        f"data.source={own}",
        IMAGES,
        "model={target: convnet, args: {outputs: 2, channels: 3}}",
    )
    with pytest.raises(
        UserError, match=r"numbers of shape \(4, 1, 1\) .* the first argument is of shape"
    ):
        record([*words, "data.image={mean: [0, 0, 0, 0], std: [1, 1, 1, 1]}"])


@pytest.mark.parametrize("value", [200.0, -0.1, float("nan")])
def test_floats_of_which_nothing_says_what_is_white(tmp_path: Path, value: float) -> None:
    own = saved(tmp_path / "own", {"0.tif": Image.fromarray(np.full((4, 6), value, np.float32))})

    with pytest.raises(DataError, match=r"0\.tif .*floats \(mode F\) outside 0 to 1"):
        read(own, "data.image.mode=L")


def test_lab_as_brightness(tmp_path: Path) -> None:
    """Middle grey of CIE Lab: L* = 50 is 119 of 255 in sRGB."""
    lab = Image.merge("LAB", [Image.new("L", (6, 4), value) for value in (128, 128, 128)])

    found = read(saved(tmp_path / "own", {"0.tif": lab}), "data.image.mode=L")

    assert found.unique().tolist() == pytest.approx([119 / 255], abs=4 / 255)


def test_without_pillow_a_folder_of_images_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As datasets has it in an environment that came without."""
    own = saved(tmp_path / "own", {"0.png": grey(9, "L")})
    monkeypatch.setattr("datasets.config.PIL_AVAILABLE", False)

    with pytest.raises(DataError, match=r"Run: pip install pillow"):
        read(own)
