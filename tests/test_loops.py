"""The promise: the curve depends on data, seed and effective batch, and on nothing else."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.helpers import rows

ARGV = [
    "configs/digits.yaml",
    "precision=fp64",
    "log.every_steps=1",
    "duration.epochs=2",
    "evaluate.every_steps=10",
]


def train(loop: str, output_dir: str, *overrides: str) -> int:
    """One rank's run, as its process would do it."""
    import importlib

    from train.main import main

    argv = [*ARGV, f"output_dir={output_dir}", "name=run", *overrides]
    return main(argv, loop, importlib.import_module(f"train.{loop}").compute_gradient)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """One rank, one micro-batch, for two effective batches."""
    from tests.conftest import run_ranks

    folders = {}
    for effective in (100, 128):
        folders[effective] = tmp_path_factory.mktemp(f"reference{effective}")
        assert run_ranks(
            1, train, "accumulate", str(folders[effective]), f"batch.effective={effective}"
        ) == [0]
    return folders


@pytest.mark.parametrize(
    ("loop", "world_size", "effective", "micro"),
    [
        ("standard", 1, 100, "all"),
        ("standard", 2, 128, "all"),
        ("standard", 3, 100, "all"),
        ("accumulate", 1, 100, "4"),
        ("accumulate", 1, 128, "16"),
        ("accumulate", 2, 100, "8"),
        ("accumulate", 2, 128, "16"),
        ("accumulate", 3, 100, "4"),
        ("accumulate", 3, 128, "8"),
        ("accumulate", 3, 100, "all"),
    ],
)
def test_same_curve(
    run_ranks: Any,
    tmp_path: Path,
    reference: dict[int, Path],
    loop: str,
    world_size: int,
    effective: int,
    micro: str,
) -> None:
    codes = run_ranks(
        world_size,
        train,
        loop,
        str(tmp_path),
        f"batch.effective={effective}",
        f"batch.micro={micro}",
    )

    assert codes == [0] * world_size
    ours, expected = rows(tmp_path), rows(reference[effective])
    assert len(ours) == len(expected) == 2 * -(-1438 // effective)
    for mine, other in zip(ours, expected, strict=True):
        assert mine["batch/world_size"] == world_size
        assert mine["batch/effective_size"] == other["batch/effective_size"]
        for key in ("train/loss", "train/grad_norm", "train/learning_rate"):
            assert mine[key] == pytest.approx(other[key], rel=1e-10)
    mine_eval, other_eval = rows(tmp_path, "eval/loss"), rows(reference[effective], "eval/loss")
    assert [r["eval/samples"] for r in mine_eval] == [359] * len(other_eval)
    assert [r["eval/accuracy"] for r in mine_eval] == [r["eval/accuracy"] for r in other_eval]
    weights = load_file(tmp_path / "run" / "final" / "model.safetensors")
    for name, tensor in load_file(
        reference[effective] / "run" / "final" / "model.safetensors"
    ).items():
        assert weights[name].sub(tensor).norm() <= 1e-10 * tensor.norm(), name
