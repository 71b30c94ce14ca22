"""What does not fit together ends in a sentence and exit code 2, before anything is written; a full
memory does not.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.data.files import FLOWERS, SIDE_BY_SIDE, pictures, write
from tests.helpers import argv
from train.main import main
from train.standard import compute_gradient
from train.verify import main as verify


class Faulty(nn.Module):
    """A user's own, with a slip of the pen."""

    def __init__(self, full: bool = False) -> None:
        super().__init__()
        self.layer, self.full = nn.Linear(6, 3), full

    def forward(self, inputs: Tensor) -> Tensor:
        if self.full:
            raise torch.OutOfMemoryError("CUDA out of memory")
        outputs: Tensor = self.layr(inputs)
        return outputs


def start(folder: Path, *overrides: str) -> int:
    return main(argv(folder, *overrides), "standard", compute_gradient)


def mlp(inputs: int) -> str:
    return f"model.args={{inputs: {inputs}, hidden: [8], outputs: 3}}"


@pytest.fixture
def flowers(tmp_path: Path) -> str:
    return f"data.source={write(tmp_path / 'flowers.csv', FLOWERS)}"


@pytest.mark.parametrize("inputs", [1, 3])
@pytest.mark.parametrize("verifying", [False, True])
def test_another_number_of_inputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flowers: str, inputs: int, verifying: bool
) -> None:
    overrides = (flowers, SIDE_BY_SIDE, mlp(inputs))

    code = verify(argv(tmp_path, *overrides)) if verifying else start(tmp_path, *overrides)

    stderr = capsys.readouterr().err
    assert code == 2
    assert (
        f"MLP raised ValueError: MLP(inputs={inputs}) takes {inputs} numbers a sample, and got 2"
        in stderr
    )
    assert "Set: model.args.inputs=2" in stderr
    assert "mlp.py:" in stderr
    assert (
        "a batch of inputs (6, 2) float64, labels (6,) int64. Look at model.args and data.columns"
        in stderr
    )
    assert "Traceback" not in stderr
    assert not (tmp_path / "run").exists()


def test_one_plain_column_of_numbers_trains(tmp_path: Path, flowers: str) -> None:
    assert start(tmp_path, flowers, "data.columns={inputs: height, labels: kind}", mlp(1)) == 0


def test_one_plain_column_of_whole_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flowers: str
) -> None:
    code = start(tmp_path, flowers, "data.columns={inputs: leaves, labels: kind}", mlp(1))

    assert code == 2
    assert "'data.columns={inputs: [NAME]}'" in capsys.readouterr().err
    assert start(tmp_path, flowers, "data.columns={inputs: [leaves], labels: kind}", mlp(1)) == 0


def test_coloured_images_for_a_model_of_grey_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = (
        f"data={{source: {pictures(tmp_path / 'own')}, columns: {{inputs: image, labels: label}}}}"
    )

    code = start(
        tmp_path, source, "model={target: convnet, args: {outputs: 2, channels: 1, widths: [4]}}"
    )

    stderr = capsys.readouterr().err
    assert code == 2
    assert "ConvNet raised ValueError: ConvNet(channels=1) takes images" in stderr
    assert "inputs (6, 3, 4, 5) float64" in stderr


def test_text_for_a_model_of_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flowers: str
) -> None:
    code = start(
        tmp_path, flowers, "data={columns: {inputs: kind, labels: kind}, max_length: 4}", mlp(4)
    )

    stderr = capsys.readouterr().err
    assert code == 2
    assert "layers.0 (Linear) of MLP raised" in stderr
    assert "inputs (6, 4) int64" in stderr


def test_a_slip_in_ones_own_model_is_found_by_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = start(tmp_path, "model={target: tests.exactness.test_first_forward.Faulty, args: {}}")

    stderr = capsys.readouterr().err
    line = 1 + next(
        i for i, text in enumerate(Path(__file__).read_text().splitlines()) if "self.layr(" in text
    )
    assert code == 2
    assert "Faulty raised AttributeError: 'Faulty' object has no attribute 'layr'" in stderr
    assert f"test_first_forward.py:{line})" in stderr


def test_a_lack_of_memory_is_no_misfit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        start(
            tmp_path,
            "model={target: tests.exactness.test_first_forward.Faulty, args: {full: true}}",
        )

    stderr = capsys.readouterr().err
    assert "ran out of memory before the first step" in stderr
    assert "OutOfMemoryError: one sample does not fit the memory" in stderr
