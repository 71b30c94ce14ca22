"""What contradicts itself is refused, with numbers and a line to paste; a stop that was asked for
is a clean end.
"""

import ast
import contextlib
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from datasets import Dataset

from tests.helpers import argv, rows, tiny
from train import accumulate, evaluate, standard, verify
from train.batch.window import Window
from train.config import load
from train.distributed.ranks import LaunchError
from train.errors import UserError
from train.main import main
from train.run import build
from train.step import Learner


def run_main(arguments: list[str], loop: str = "accumulate") -> int:
    return main(arguments, loop, (standard if loop == "standard" else accumulate).compute_gradient)


@pytest.mark.parametrize(
    ("batch", "parts"),
    [
        (("batch.micro=8",), ("batch.micro=8", "share of 32 samples", "into 4")),
        (
            ("batch.accumulation_steps=2",),
            ("batch.accumulation_steps=2", "share of 32 samples", "into 2"),
        ),
    ],
)
def test_the_standard_loop_refuses_to_cut_a_step(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    batch: tuple[str, ...],
    parts: tuple[str, ...],
) -> None:
    code = run_main(argv(tmp_path, "batch.effective=32", *batch), "standard")

    said = capsys.readouterr().err
    assert code == 2
    assert all(
        part in said
        for part in (*parts, "Set: batch.effective=32 batch.micro=all", "train.accumulate")
    )


def test_numbers_that_contradict_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run_main(argv(tmp_path, "batch={effective: 32, micro: 8, accumulation_steps: 2}"))

    assert code == 2
    assert capsys.readouterr().err.strip().endswith("batch.effective=32 batch.micro=8")


def test_a_missing_column_is_told_with_those_that_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run_main(argv(tmp_path, "data.columns={labels: answer}"))

    said = capsys.readouterr().err
    assert code == 2
    assert all(
        part in said
        for part in ("labels (as column 'answer')", "inputs, labels", "data.columns={labels: ")
    )


@pytest.mark.parametrize("flag", ["--plan", "--print-config"])
def test_a_question_touches_no_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    def touched(**_: Any) -> None:
        raise AssertionError("a device was touched")

    monkeypatch.setattr("train.distributed.accelerator.Accelerator", touched)
    monkeypatch.setenv("ISOBATCH_WORLD_SIZE", "2")

    code = run_main(argv(tmp_path, "batch.micro=2", flag))

    said = capsys.readouterr()
    assert (code, said.err) == (0, "")
    expected = (
        "8 samples = 2 x 4 on 2 ranks, in micro-batches of 2+2"
        if flag == "--plan"
        else "effective: 8"
    )
    assert expected in said.out
    assert not (tmp_path / "run").exists()


def build_in(environment: dict[str, str | None], arguments: list[str]) -> str:
    """The refusal of a rank in this environment (None: not set)."""
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    with pytest.raises(LaunchError) as refusal:
        build(load(arguments), "accumulate")
    if dist.is_initialized():
        dist.barrier()  # a rank that left now would break off the other's meeting
    return str(refusal.value)


@pytest.mark.parametrize(
    ("world_size", "environment", "expected"),
    [
        (
            2,
            {"ACCELERATE_USE_CPU": None},
            "2 ranks were asked for by WORLD_SIZE (from the launcher), but 1 met",
        ),
        (
            1,
            {"ISOBATCH_WORLD_SIZE": "2"},
            "2 ranks were asked for by ISOBATCH_WORLD_SIZE (from launch.sh), but 1 met",
        ),
        (
            2,
            {"ISOBATCH_WORLD_SIZE": "3"},
            "3 ranks were asked for by ISOBATCH_WORLD_SIZE (from launch.sh), but 2 met",
        ),
        (
            2,
            {"ISOBATCH_WORLD_SIZE": "1"},
            "1 ranks were asked for by ISOBATCH_WORLD_SIZE (from launch.sh), but 2 met",
        ),
    ],
)
def test_another_number_of_ranks_than_asked_for(
    run_ranks: Any,
    tmp_path: Path,
    world_size: int,
    environment: dict[str, str | None],
    expected: str,
) -> None:
    for said in run_ranks(world_size, build_in, environment, argv(tmp_path)):
        assert said.startswith(expected)
        assert f"NPROC={expected[0]} ./launch.sh" in said


def ended(environment: dict[str, str], arguments: list[str]) -> tuple[int, str]:
    """(exit code, stderr) of a rank that is started in this environment."""
    os.environ.update(environment)
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = run_main(arguments)
    # refused before the ranks met: they meet now, so that their number is counted
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    dist.barrier()
    return code, said.getvalue()


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(
    ("environment", "parts"),
    [
        (
            {"ACCELERATE_MIXED_PRECISION": "bf16"},
            ("ACCELERATE_MIXED_PRECISION=bf16", "precision=fp64", "mixed_precision: 'no'"),
        ),
        (
            {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"},
            ("ACCELERATE_DYNAMO_BACKEND=INDUCTOR", "model.compile=true"),
        ),
        (
            {"ACCELERATE_USE_FSDP": "true"},
            ("the launcher was told ACCELERATE_USE_FSDP=true: without fsdp_version",),
        ),
        (
            {"ISOBATCH_WORLD_SIZE": "3"},
            ("3 ranks were asked for by ISOBATCH_WORLD_SIZE", "NPROC=3 ./launch.sh"),
        ),
    ],
)
def test_what_the_launcher_was_told_ends_in_a_sentence(
    run_ranks: Any,
    tmp_path: Path,
    world_size: int,
    environment: dict[str, str],
    parts: tuple[str, ...],
) -> None:
    ranks = run_ranks(world_size, ended, environment, argv(tmp_path))

    assert [code for code, _ in ranks] == [2] * world_size
    for rank, (_, said) in enumerate(ranks):
        if rank:
            assert said == "", "the first rank of a machine speaks for all of them"
        else:
            assert all(part in said for part in parts)
            assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def of_this_rank(size: int = 37) -> Dataset:
    """Another data set on each rank, as where a file was copied to one machine only."""
    return tiny(size + int(os.environ["RANK"]))


def test_ranks_that_see_other_data_end_in_a_sentence(run_ranks: Any, tmp_path: Path) -> None:
    (first, said), *others = run_ranks(
        3, ended, {}, argv(tmp_path, "data.source=tests.test_main.of_this_rank")
    )

    assert [first, *(code for code, _ in others)] == [2, 2, 2]
    assert "the ranks do not agree on training samples: 37 on rank 0, 38 on rank 1" in said
    assert "Do all machines see the same files" in said
    assert said.count("\n") == 1


GPT = "model={target: gpt, args: {vocabulary: 8, width: 30, heads: 4}}"


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ([GPT], ("width=30 is no multiple of 2 * heads=8", "Set: model.args.width=32")),
        (["model.args.inputs=-6"], ("model.target=mlp cannot be made from model.args", ".py:")),
        (
            ["optimizer={target: adamw, lr: 0.1, args: {betas: [2, 3]}}"],
            ("optimizer.target=adamw", "Invalid beta"),
        ),
    ],
)
def test_arguments_that_a_constructor_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], parts: tuple[str, ...]
) -> None:
    assert run_main(argv(tmp_path, *overrides)) == 2

    said = capsys.readouterr().err
    assert all(part in said for part in parts), said
    assert said.count("\n") == 1


def test_weights_of_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a checkpoint to go on from, and in an evaluation."""
    held_out = "data.eval_fraction=0.2"
    assert run_main(argv(tmp_path, held_out)) == 0
    run = tmp_path / "run"

    other = argv(
        tmp_path, held_out, "name=other", "model.args.hidden=[9]", f"checkpoint.resume={run}"
    )
    assert run_main(other) == 2
    assert "does not fit the model. Set: model.args as they were there" in capsys.readouterr().err
    assert json.loads((tmp_path / "other" / "ended.json").read_text())["code"] == 2
    assert evaluate.main([str(run), "model.args.hidden=[9]", "--trust"]) == 2
    assert "does not fit the model" in capsys.readouterr().err
    (run / "plan.json").unlink()
    assert evaluate.main([str(run), "--trust"]) == 2
    assert "plan.json is not there" in capsys.readouterr().err


def verdict(environment: dict[str, str], arguments: list[str]) -> tuple[int, str]:
    os.environ.update(environment)
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = verify.main(arguments)
    return code, said.getvalue()


def test_verify_asks_the_launcher_for_the_precision_of_the_config(
    run_ranks: Any, tmp_path: Path
) -> None:
    """It looks in float64 first, whatever the config says."""
    told_bf16 = {"ACCELERATE_MIXED_PRECISION": "bf16"}

    assert run_ranks(1, verdict, told_bf16, argv(tmp_path, "precision=bf16"))[0][0] == 0
    code, said = run_ranks(1, verdict, told_bf16, argv(tmp_path, "precision=fp32"))[0]
    assert code == 2
    assert "ACCELERATE_MIXED_PRECISION=bf16: the config says precision=fp32" in said


@pytest.mark.parametrize(
    "name",
    [
        "main",
        "evaluate",
        "prepare",
        "verify",
        "compare",
        "sweep",
        "new",
        "config.__main__",
        "doctor.__main__",
        "plan.__main__",
        "trace",
        "comparison.wandb_page",
    ],
)
def test_every_entry_point_ends_a_user_error_in_the_same_way(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever raises it, and wherever: the body of `main` is replaced here."""
    main_of_entry = importlib.import_module(f"train.{name}").main

    def mistaken(*_: Any) -> int:
        raise UserError("got this. Set: that")

    assert hasattr(main_of_entry, "__wrapped__"), (
        f"{name}.main is not decorated by errors.entry_point"
    )
    index = main_of_entry.__code__.co_freevars.index("main")
    monkeypatch.setattr(main_of_entry.__closure__[index], "cell_contents", mistaken)

    assert main_of_entry([]) == 2
    assert capsys.readouterr().err == "got this. Set: that\n"


def test_errors_that_no_change_of_config_fixes_are_named_here() -> None:
    """Every other exception class of the package is a UserError: a new one is decided about here."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and bases(node) & BASES:
                found.add(node.name)

    assert found == NOT_THE_USERS


def bases(node: ast.ClassDef) -> set[str]:
    return {base.id for base in node.bases if isinstance(base, ast.Name)}


def test_nothing_is_raised_without_a_name() -> None:
    """A bare ValueError would end in a stack trace, whoever could fix it."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Raise)
                and isinstance(node.exc, ast.Call)
                and bare_name(node.exc) in BASES
            ):
                found.append(f"{path.relative_to(PACKAGE)}: {bare_name(node.exc)}")

    # Of a state, which becomes NotSavable; of names, which becomes OtherModel; of a disk, which
    # ends a run as any other failing write; in autograd's own words; and of a forward pass, whose
    # place the preflight names.
    assert sorted(found) == [
        "checkpoint/files.py: ValueError",
        "checkpoint/shards.py: RuntimeError",
        *["disk.py: OSError"] * 2,
        "memory/activations.py: RuntimeError",
        "models/convnet.py: ValueError",
        "models/mlp.py: ValueError",
        "report/journal.py: OSError",
    ]


def bare_name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


BASES = {"Exception", "RuntimeError", "ValueError", "OSError", "RunFailed"}
PACKAGE = Path(accumulate.__file__).parent
NOT_THE_USERS = {
    # Of the readers of files: each becomes a DataError (train/data/read_errors.py).
    *("BadLine", "InFile", "NotAnObject"),
    "UserError",
    "RunFailed",
    # A run that ends in a sentence, and that no change of the config is known to fix:
    "Displaced",
    "EvaluationOutOfMemory",
    "NonFiniteGradient",
    "NotMet",
    "NotSaved",
    "NotVerified",
    "RankFailed",
    "RanksDisagree",
    "SaveFailed",
    "WorkerLost",
    # What is no error, or becomes another one:
    "AlreadyFinished",
    "Damaged",
    "EvaluationStopped",
    "NoCheckpoint",
    "NoProgress",
    "NotComparable",
    "OtherOperations",
    "TargetError",
    "TokenizerError",
    "Unreadable",
}


def train_until_told(
    arguments: list[str], loop: str, told_rank: int, number: int, at: int
) -> tuple[int, int]:
    """(exit code, last step trained) where one rank gets a signal in the middle of step `at`."""
    trained = 0

    def compute_gradient(learner: Learner, window: Window) -> Any:
        nonlocal trained
        trained = window.k
        if window.k == at and learner.accelerator.process_index == told_rank:
            os.kill(os.getpid(), number)
        return (standard if loop == "standard" else accumulate).compute_gradient(learner, window)

    return main(arguments, loop, compute_gradient), trained


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize(
    ("loop", "world_size", "told_rank"), [("standard", 1, 0), ("accumulate", 2, 1)]
)
def test_a_signal_to_one_rank_stops_all_at_the_same_step(
    run_ranks: Any,
    tmp_path: Path,
    loop: str,
    world_size: int,
    told_rank: int,
    number: signal.Signals,
) -> None:
    arguments = argv(tmp_path, "duration={epochs: 100}")

    told = run_ranks(world_size, train_until_told, arguments, loop, told_rank, number, 3)

    assert len({trained for _, trained in told}) == 1
    trained = told[0][1]
    assert 3 <= trained <= 5  # the windows are agreed on one step ahead
    ended = json.loads((tmp_path / "run" / "ended.json").read_text())
    assert ended["step"] == trained == rows(tmp_path)[-1]["train/global_step"]
    assert ended["reason"] == f"stopped by {number.name}"
    assert ended["code"] == 75
    assert [code for code, _ in told] == [75] * world_size


def test_sigterm_to_a_process(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "train.accumulate",
        *argv(tmp_path, "duration={epochs: 1000000}"),
    ]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        journal, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 60
        while not (journal.exists() and journal.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()

    assert process.returncode == 75
    assert said.strip().endswith("stopped by SIGTERM")
    ended = json.loads((tmp_path / "run" / "ended.json").read_text())
    assert (ended["code"], ended["step"]) == (75, rows(tmp_path)[-1]["train/global_step"])
