"""Models of timm and torchvision: the true gradient, weights from a file, and a word on BatchNorm."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from omegaconf import OmegaConf
from torch.nn.functional import cross_entropy

import train
from tests.data.files import picture
from tests.helpers import argv, distance, record, rows, steps, whole_batch
from tests.house.fresh_copy import write_from_guide
from train.accumulate import compute_gradient
from train.main import main
from train.models.vision import vision
from train.verify import main as verify

pytestmark = pytest.mark.skipif(
    find_spec("timm") is None, reason="the extra vision is not installed"
)

IMAGES = "data={source: tests.models.test_vision.images}"
VIT = "name: test_vit, img_size: 32"  # timm's, for tests: 0.4 M parameters, LayerNorm
SQUEEZENET = "name: squeezenet1_1, dropout: 0.0"  # torchvision's: 0.7 M, without normalisation


def images(size: int = 12) -> Dataset:
    random = np.random.default_rng(0)
    pixels = random.random((size, 3, 32, 32), dtype=np.float32)
    return Dataset.from_dict({"inputs": pixels, "labels": random.integers(0, 3, size)})


def model(args: str) -> str:
    return f"model={{target: vision, args: {{outputs: 3, {args}}}}}"


def start(arguments: list[str]) -> int:
    return main(arguments, "accumulate", compute_gradient)


@pytest.mark.parametrize(("args", "world_size"), [(VIT, 1), (VIT, 2), (SQUEEZENET, 2)])
def test_the_gradient_is_that_of_the_whole_batch(
    run_ranks: Any, tmp_path: Path, args: str, world_size: int
) -> None:
    arguments = argv(
        tmp_path, IMAGES, model(args), "batch={effective: 8, micro: 2}", "optimizer.lr=1e-3"
    )

    traces = run_ranks(world_size, record, arguments)

    for trace in traces:
        assert [window.samples for window in trace.windows] == [8, 4]
        for k, ids in enumerate(steps(12, 8), start=1):
            _, expected = whole_batch(arguments, trace.weights[k - 1], ids, cross_entropy)
            assert distance(trace.gradients[k], expected) <= 1e-12


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (VIT, 0, "exact"),
        ("name: resnet18, norm_layer: groupnorm", 0, "exact"),
        (
            "name: resnet18",
            1,
            "BatchNorm in train mode takes its statistics from each micro-batch (bn1, layer1.0.bn1",
        ),
    ],
)
def test_verify_names_batchnorm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: str, code: int, message: str
) -> None:
    assert verify(argv(tmp_path, IMAGES, model(args))) == code

    assert message in capsys.readouterr().out.splitlines()[-1]


def test_the_guides_frozen_batchnorm_is_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_from_guide("my/frozen.py", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    assert (
        verify(
            argv(
                tmp_path,
                IMAGES,
                "model={target: frozen.frozen, args: {outputs: 3, name: test_resnet}}",
            )
        )
        == 0
    )


def test_the_guides_vit_takes_its_pictures(tmp_path: Path) -> None:
    write_from_guide("my/vit.yaml", tmp_path)
    config = OmegaConf.load(tmp_path / "vit.yaml")

    assert config.model.target == "vision"
    assert vision(**config.model.args)(torch.rand(2, 1, 16, 16)).shape == (2, 10)


def test_a_folder_of_pictures_trains(tmp_path: Path) -> None:
    for i in range(12):
        picture(tmp_path / "own" / ("cat", "dog")[i % 2] / f"{i}.png", 20 * i, (64, 64, 3))
    data = (
        f"data.source={tmp_path}/own",
        "data.columns={inputs: image, labels: label}",
        "data.eval_fraction=0.25",
    )

    assert start(argv(tmp_path, *data, model("name: test_convnext"), "duration={steps: 2}")) == 0

    assert rows(tmp_path, "eval/accuracy")[-1]["eval/samples"] == 3


def test_weights_of_a_file_and_the_head_drawn_anew(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(1)
    base = timm.create_model("test_vit", img_size=32, num_classes=7)
    torch.save(base.state_dict(), tmp_path / "base.pt")
    args = (
        f"{VIT}, pretrained: true, pretrained_cfg_overlay: {{file: {tmp_path}/base.pt, "
        "num_classes: 7}"
    )

    assert (
        start(argv(tmp_path, IMAGES, model(args), "duration={steps: 1}", "optimizer.lr=1e-30")) == 0
    )

    (tmp_path / "base.pt").unlink()
    ours = train.load(tmp_path / "run")
    assert torch.allclose(ours.cls_token.float(), base.cls_token)
    assert ours(torch.rand(2, 3, 32, 32).double()).shape == (2, 3)


def test_final_is_a_file_that_timm_opens(tmp_path: Path) -> None:
    import timm

    assert start(argv(tmp_path, IMAGES, model(VIT), "duration={steps: 1}")) == 0

    final = tmp_path / "run" / "final" / "model.safetensors"
    theirs = (
        timm.create_model("test_vit", img_size=32, num_classes=3, checkpoint_path=final)
        .double()
        .eval()
    )
    inputs = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    assert torch.allclose(theirs(inputs), train.load(tmp_path / "run")(inputs), rtol=1e-6)


def test_timm_comes_first() -> None:
    assert type(vision("resnet18", 2)).__module__ == "timm.models.resnet"
    assert type(vision("shufflenet_v2_x0_5", 2)).__module__ == "torchvision.models.shufflenetv2"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("name: resnet81", "no classifier of timm or of torchvision; did you mean resnet"),
        ("name: fasterrcnn_resnet50_fpn", "no classifier of timm or of torchvision"),
        ("name: test_vit, hello: 1", "timm cannot make test_vit: "),
        ("name: shufflenet_v2_x0_5, in_chans: 1", "torchvision cannot make shufflenet_v2_x0_5: "),
        # no way to the Hub
        ("name: test_vit, pretrained: true", "Weights in a file: model.init_from=FILE"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: str, message: str
) -> None:
    assert start(argv(tmp_path, IMAGES, model(args))) == 2

    assert message in capsys.readouterr().err


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_without_the_extra(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    package: str,
) -> None:
    monkeypatch.setattr(
        "train.models._extras.find_spec", lambda name: None if name == package else "there"
    )

    assert start(argv(tmp_path, IMAGES, model(VIT))) == 2

    stderr = capsys.readouterr().err
    assert (
        f"model.target=vision needs {package}, which is not installed. Run: EXTRAS=vision "
        "./launch.sh" in stderr
    )
