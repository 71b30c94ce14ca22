"""What is put around the model: compilation, DDP and its options."""

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from tests.helpers import Trace, argv, distance, record, rows, steps, whole_batch
from tests.test_synchronisation import SEVERAL_BUCKETS, counting
from train.accumulate import compute_gradient
from train.batch.window import Batch
from train.config import load
from train.distributed import accelerator
from train.distributed.accelerator import Unsupported
from train.main import main
from train.metrics.compilations import compiled_graphs
from train.models.mlp import MLP
from train.run import build
from train.tasks.classification import Classification

COMPILED = ("model.compile=aot_eager",)


class Showing(Classification):
    """Its texts grow, in the eyes of a compiler."""

    compiled: ClassVar[list[int]] = []  # graphs, for the samples of each evaluation

    def samples(self, model: Any, batch: Batch, decode: Any) -> list[dict[str, str]]:
        before = compiled_graphs()
        for copies in (1, 2, 3):
            model(batch["inputs"].repeat(copies, 1))
        Showing.compiled.append(compiled_graphs() - before)
        return []


def compiled_forwards(arguments: list[str]) -> tuple[Trace, int, int, list[int]]:
    """(trace, graphs that torch has made before the first step, and after it, and for samples)."""
    before: list[int] = []
    trace = record(arguments, prepare=lambda *_: before.append(compiled_graphs()))
    return trace, before[0], compiled_graphs() - before[0], Showing.compiled


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_compiled_model_has_the_gradient_of_the_whole_batch(
    run_ranks: Any, tmp_path: Path, world_size: int
) -> None:
    """Micro-batches of 9, 8 and 1; evaluations, of 9 and 7, apart."""
    batch = (
        "batch={effective: 17, micro: 9}",
        "duration={epochs: 1}",
        "data={args: {size: 52}, eval_split: train}",
    )
    given = (*COMPILED, *batch, "task=tests.test_setup.Showing", "evaluate.every_steps=2")
    arguments = argv(tmp_path, *given)

    for trace, before, after, for_samples in run_ranks(world_size, compiled_forwards, arguments):
        assert set(for_samples) == {0}
        assert before + after >= 2
        for k, ids in enumerate(steps(52, 17), start=1):
            _, expected = whole_batch(arguments, trace.weights[k - 1], ids, cross_entropy)
            assert distance(trace.gradients[k], expected) <= 1e-12

    last = rows(tmp_path, "compile/training_graphs")[-1]
    assert 1 <= last["compile/training_graphs"] <= 3
    assert 1 <= last["compile/evaluation_graphs"] <= 3
    assert "compiled: " in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize("micro_steps", [1, 4])
def test_a_compiled_model_is_reduced_once_per_step(
    run_ranks: Any, tmp_path: Path, micro_steps: int
) -> None:
    batch = (
        "data.args.size=96",
        "batch.effective=32",
        f"batch.accumulation_steps={micro_steps}",
        "batch.on_oom=stop",
    )

    for _, reductions, found in run_ranks(
        2, counting, argv(tmp_path, *SEVERAL_BUCKETS, *COMPILED, *batch)
    ):
        assert found[2] == found[3] >= 2
        assert reductions == found


def start(arguments: list[str]) -> int:
    return main(arguments, "accumulate", compute_gradient)


@pytest.mark.parametrize(
    "overrides", [COMPILED, (*COMPILED, "precision=bf16"), (*COMPILED, "model.dtype=bf16")]
)
def test_final_weights_have_the_models_own_names(
    run_ranks: Any, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    given = ("data.eval_fraction=0.2", "precision=fp32", *overrides)

    assert run_ranks(2, start, argv(tmp_path, *given)) == [0, 0]

    expected = MLP(inputs=6, hidden=[8], outputs=3).state_dict()
    assert load_file(tmp_path / "run" / "final" / "model.safetensors").keys() == expected.keys()


def test_a_backend_that_does_not_exist_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(argv(tmp_path, "model.compile=inductr")) == 2

    assert "model.compile=inductr: torch has the backends" in capsys.readouterr().err


class Wrapped(DistributedDataParallel):
    """A user's own model that comes inside DDP."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 3), static_graph=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs)


def refusal(arguments: list[str], static_graph: bool) -> str:
    if static_graph:  # as somebody who forks might write it
        accelerator.DistributedDataParallelKwargs = partial(
            accelerator.DistributedDataParallelKwargs, static_graph=True
        )
    with pytest.raises(Unsupported) as refused:
        build(load(arguments), "accumulate")
    return str(refused.value)


def static_graph_of(arguments: list[str]) -> bool:
    found: list[bool] = []
    record(arguments, prepare=lambda run, trace: found.append(run.learner.model.static_graph))
    return found[0]


def test_static_graph_is_off_and_refused_by_name(run_ranks: Any, tmp_path: Path) -> None:
    """With several micro-steps it ends in an internal assertion of torch."""
    arguments = argv(tmp_path, "batch.micro=1", "duration={steps: 1}")

    assert run_ranks(2, static_graph_of, arguments) == [False, False]
    for said in run_ranks(2, refusal, arguments, True):
        assert "static_graph=True" in said


def test_a_model_that_comes_inside_ddp_is_refused(run_ranks: Any, tmp_path: Path) -> None:
    arguments = argv(tmp_path, "model={target: tests.test_setup.Wrapped}")

    for said in run_ranks(2, refusal, arguments, False):
        assert said.startswith(
            "model.target returns a model inside DDP (Linear): return the plain one"
        )
