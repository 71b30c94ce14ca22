"""Out of memory in a step: done again in smaller micro-batches, to the bit as a run that has the
smaller size.
"""

import contextlib
import io
import json
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import train.distributed.ranks
import train.leaving
from tests.data.test_in_turn import in_turn
from tests.helpers import argv, record, rows
from train import config, load
from train.accumulate import compute_gradient
from train.batch.window import Batch, Window
from train.loop import fit
from train.main import main
from train.run import build
from train.step import ComputeGradient, Learner
from train.tasks.classification import Classification

GIVEN = (
    *(
        "task=tests.gradients.test_shrink.Hungry",
        "model.target=tests.gradients.test_shrink.Stateful",
        "model.args={}",
    ),
    *(
        "data.args.size=40",
        "batch.effective=16",
        "batch.micro=4",
        "batch.exact=ignore",
        "optimizer.target=adamw",
    ),
    *(
        "optimizer.lr=0.01",
        "precision=fp32",
        "checkpoint={resume: auto, every_steps: 1}",
        "duration.steps=5",
    ),
)
LINEAR = "model.args={in_features: 6, out_features: 3}"
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
FAULTS = [
    pytest.param("forward", 1, id="forward of the first micro-batch"),
    pytest.param("forward", -1, id="forward of the last"),
    pytest.param("backward", 1, id="backward of the first"),
    pytest.param("backward", -1, id="backward of the last"),
]


class Stateful(nn.Module):
    """Draws masks, and keeps statistics of what it has seen: both must be put back before a step is
    done again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)


class Hungry(Classification):
    """Runs out of memory in one micro-batch of a step, once; `micro_step`: from 1, or -1 for the
    last.
    """

    step = micro_step = seen = 0
    where = ""

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        loss = super().loss_sum(model, batch)
        Hungry.seen += 1
        if Hungry.where and Hungry.seen == Hungry.micro_step:
            if Hungry.where == "forward":
                fill()
            loss.register_hook(fill)
        return loss


class Late(Hungry):
    """It does not say which columns its weights are counted from."""

    def loss_weight(self, batch: Batch) -> float:
        return float((batch["labels"] >= 0).sum())


def fill(*_: Any) -> None:
    Hungry.where = ""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def failing(step: int, where: str, micro_step: int, rank: int | None = None) -> ComputeGradient:
    """`rank`: None for all."""
    done = False

    def compute(learner: Learner, window: Window) -> Tensor:
        nonlocal done
        if not done and window.k == step and rank in (None, int(os.environ.get("RANK", "0"))):
            done = True
            last = len(window.micro_batches)
            Hungry.seen, Hungry.where, Hungry.micro_step = (
                0,
                where,
                last if micro_step < 0 else micro_step,
            )
        return compute_gradient(learner, window)

    return compute


def train_twice(whole: list[str], parts: list[list[str]], *fault: Any) -> list[int]:
    """A run in which a step runs out of memory; one that is begun again with the smaller size."""
    return [
        train_to_the_end(whole, failing(*fault)),
        *(train_to_the_end(each, compute_gradient) for each in parts),
    ]


def train_to_the_end(arguments: list[str], compute: ComputeGradient) -> int:
    """The number of steps that the run has then; the ranks stay together."""
    run = build(config.load(arguments), "accumulate")
    fit(run, run.watch(compute))
    run.finish()
    run.close("finished", 0)
    return run.report.progress.step


def given(folder: Path, *words: str) -> list[str]:
    return argv(folder, *GIVEN, "schedule.name=constant", *words)


def arguments(folder: Path, *words: str) -> tuple[list[str], list[list[str]]]:
    """Step 2 fails, with micro-batches of 4."""
    whole, parts = given(folder, *words, "name=whole"), given(folder, *words, "name=parts")
    return whole, [[*parts, "duration.steps=1"], [*parts, "batch.micro=2"]]


def check_equal(folder: Path) -> None:
    """To the bit: weights, and statistics of what was seen."""
    ours, expected = (load(folder / name, trust=True).state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(ours[name], value) for name, value in expected.items())
    sizes, counts = (
        [row[key] for row in rows(folder, key, "whole")]
        for key in ("batch/micro_size", "batch/accumulation_steps")
    )
    assert sizes[0] == 4
    assert set(sizes[1:]) == {2}
    assert counts[1] == 2 * counts[0]


@pytest.mark.parametrize(("where", "micro_step"), FAULTS)
def test_the_step_is_that_of_a_run_with_the_smaller_size(
    tmp_path: Path, where: str, micro_step: int
) -> None:
    assert train_twice(*arguments(tmp_path), 2, where, micro_step) == [5, 1, 5]
    check_equal(tmp_path)


@pytest.mark.parametrize(("where", "micro_step"), FAULTS)
def test_ranks_do_it_again_together(
    run_ranks: Any, tmp_path: Path, where: str, micro_step: int
) -> None:
    """Where one of them alone runs out of memory."""
    reduction = "explicit" if (where, micro_step) == ("forward", -1) else "auto"
    both = arguments(tmp_path, f"runtime.reduction={reduction}")

    assert run_ranks(2, train_twice, *both, 2, where, micro_step, 1) == [[5, 1, 5]] * 2
    check_equal(tmp_path)


def train_twice_in_turn(*given: Any) -> list[int]:
    in_turn()
    return train_twice(*given)


def test_ranks_that_count_a_steps_weight_at_its_end_do_it_again_together(
    run_ranks: Any, tmp_path: Path
) -> None:
    """One fails before its last micro-batch, the other has computed all: both say next whether they
    failed.
    """
    both = arguments(tmp_path, "task=tests.gradients.test_shrink.Late")

    assert run_ranks(2, train_twice_in_turn, *both, 2, "forward", 1, 1) == [[5, 1, 5]] * 2
    check_equal(tmp_path)


def several(runs: list[list[str]]) -> list[Any]:
    return [record(each).weights for each in runs]


def test_a_late_reduction_gives_the_same_bits(run_ranks: Any, tmp_path: Path) -> None:
    """On three ranks, where the order of additions shows; narrow buckets, so that there are some."""
    both = [
        argv(
            tmp_path,
            "data.args.size=40",
            "batch.effective=16",
            "batch.micro=2",
            "precision=fp32",
            *words,
        )
        for words in (["batch.on_oom=stop", "name=a"], ["batch.on_oom=shrink", "name=b"])
    ]
    for stop, shrink in run_ranks(3, several, both):
        assert len(stop) == 4
        assert all(map(np.array_equal, stop, shrink))


def end(arguments: list[str], divided: bool, *fault: Any) -> tuple[int, str]:
    """The exit code, and the output."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        code = end_silently(arguments, divided, *fault)
    return code, out.getvalue()


def end_silently(arguments: list[str], divided: bool, *fault: Any) -> int:
    if divided:
        os.environ.update(FSDP2)
    train.leaving.WAIT_SECONDS = 1.0
    train.distributed.ranks.YIELD_SECONDS = 0.5
    try:
        return main(arguments, "accumulate", failing(*fault) if fault else compute_gradient)
    except SystemExit as left:
        return int(str(left.code))


@pytest.mark.parametrize("divided", [False, True], ids=["DDP, a size that was proven", "FSDP2"])
def test_where_ranks_cannot_agree_the_next_start_takes_the_smaller_size(
    run_ranks: Any, tmp_path: Path, divided: bool
) -> None:
    typed = argv(
        tmp_path, *GIVEN, "model.target=mlp", "model.args={inputs: 6, hidden: [8], outputs: 3}"
    )

    (code, _), (code_of_failed, output) = run_ranks(2, end, typed, divided, 4, "backward", -1, 1)

    assert (code, code_of_failed) == (1, 1)
    assert "nothing else: it resumes in micro-batches of 2" in output
    left = json.loads((tmp_path / "run" / "micro.json").read_text())
    assert left == {"planned": 4, "world_size": 2, "micro": 2, "step": 4}
    (code, output), (other, _) = run_ranks(2, end, typed, divided)
    assert (code, other) == (0, 0)
    assert "not 4: step 4 ran out of memory" in output
    assert [row["batch/micro_size"] for row in rows(tmp_path)] == [4, 4, 4, 2, 2]
    assert end([*typed, "name=expected", "batch.micro=2"], False)[0] == 0
    ours, theirs = (
        [row["train/loss"] for row in rows(tmp_path, name=name)] for name in ("run", "expected")
    )
    assert np.allclose(ours, theirs, rtol=1e-6)


def test_it_ends_where_one_sample_is_too_much(tmp_path: Path) -> None:
    tried = []

    def always(learner: Learner, window: Window) -> Tensor:
        tried.append(max(window.micro_batches.sizes))
        raise torch.OutOfMemoryError("CUDA out of memory")

    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        assert (
            main(
                argv(tmp_path, *GIVEN, "model.target=torch.nn.Linear", LINEAR), "accumulate", always
            )
            == 1
        )

    assert tried == [4, 2, 1]
    assert "in a micro-batch of 1 (" in err.getvalue()
    assert "batch.micro=" not in err.getvalue()
    assert out.getvalue().count("ran out of memory (CUDA out of memory): it is done again") == 2


def test_the_size_is_kept_for_the_plan_that_ran_out_of_memory_alone(tmp_path: Path) -> None:
    typed = argv(tmp_path, *GIVEN)
    record(typed, compute_gradient=failing(2, "forward", 1))
    for words, micro in (
        (["duration.steps=6"], 2),
        (["duration.steps=7", "batch.micro=8"], 8),
        (["duration.steps=8", "batch.on_oom=stop"], 4),
    ):
        record([*typed, *words])
        assert rows(tmp_path)[-1]["batch/micro_size"] == micro
    for text in (
        "{",
        "[1]",
        '{"planned": 4}',
        '{"planned": 4, "world_size": 1, "micro": 0, "step": 1}',
    ):
        (tmp_path / "run" / "micro.json").write_text(text)
        record([*typed, "duration.steps=9", "checkpoint.resume=never"])
        assert rows(tmp_path)[-1]["batch/micro_size"] == 4


@pytest.mark.parametrize(
    "words", [["batch.on_oom=stop"], ["batch.micro=1", "model.target=torch.nn.Linear", LINEAR]]
)
def test_where_nothing_can_shrink_the_error_is_the_users(tmp_path: Path, words: list[str]) -> None:
    code, output = end(argv(tmp_path, *GIVEN, *words), False, 2, "forward", 1)
    assert code == 1
    assert "done again" not in output


class Teacher(nn.Module):
    """A model whose frozen half follows the trained one in each forward pass."""

    through_data = False

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.teacher = nn.Linear(6, 3), nn.Linear(6, 3)
        self.teacher.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            for own, other in zip(self.teacher.parameters(), self.layer.parameters(), strict=True):
                (own.data if self.through_data else own).lerp_(other, 0.1)
        return self.layer(inputs)


class TeacherThroughData(Teacher):
    through_data = True


class HalfFrozen(Teacher):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs) + self.teacher(inputs)


@pytest.mark.parametrize(
    ("kind", "again"), [("Teacher", 0), ("TeacherThroughData", 0), ("HalfFrozen", 1)]
)
def test_a_teacher_that_moves_cannot_be_put_back(tmp_path: Path, kind: str, again: int) -> None:
    typed = argv(tmp_path, *GIVEN, f"model.target=tests.gradients.test_shrink.{kind}")
    assert end(typed, False, 4, "forward", 2)[0] == 1 - again


def test_the_standard_loop_has_one_micro_batch(tmp_path: Path) -> None:
    words = [*GIVEN, "batch.micro=all"]

    def full(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("no room")

    assert main(argv(tmp_path, *words), "standard", full) == 1
    assert not (tmp_path / "run" / "micro.json").exists()


def test_a_second_start_shrinks_further_and_a_third_knows_it(tmp_path: Path) -> None:
    typed = [
        *argv(tmp_path, *GIVEN, "model.target=torch.nn.Linear", LINEAR),
        "schedule.name=constant",
    ]
    for steps, micro in ((5, 2), (6, 1)):
        more = f"duration.steps={steps}"
        assert end([*typed, more], False, steps, "forward", 1)[0] == 0
        assert json.loads((tmp_path / "run" / "micro.json").read_text())["micro"] == micro
    code, output = end([*typed, "duration.steps=7"], False)
    assert (code, rows(tmp_path)[-1]["batch/micro_size"]) == (0, 1)
    assert "micro-batches of at most 1, not 4: step 6 ran out of memory" in output


def test_before_the_first_checkpoint_what_is_typed_starts_over_in_the_smaller_size(
    run_ranks: Any, tmp_path: Path
) -> None:
    typed = argv(
        tmp_path, *GIVEN, "model.target=torch.nn.Linear", LINEAR, "checkpoint.every_steps=100"
    )

    (_, _), (code, output) = run_ranks(2, end, typed, False, 4, "forward", 1, 1)

    assert code == 1
    assert "        checkpoint.resume=never   (it starts over in micro-batches of 2)" in output
    assert run_ranks(2, end, [*typed, "checkpoint.resume=never"], False)[0][0] == 0
    assert {row["batch/micro_size"] for row in rows(tmp_path)} == {2}
    assert run_ranks(2, end, [*typed, "duration.steps=7"], False)[0][0] == 0
    assert rows(tmp_path)[-1]["batch/micro_size"] == 2


@pytest.mark.parametrize(
    ("size", "sizes"),
    [(37, {4, 3}), (40, {4, 2})],
    ids=["a tail of 5 in twos leaves one alone", "a tail of 8"],
)
def test_a_size_that_the_model_cannot_take_is_passed_over(
    tmp_path: Path, size: int, sizes: set[int]
) -> None:
    """BatchNorm has no statistics of one sample."""
    typed = argv(tmp_path, *GIVEN, f"data.args.size={size}", "duration.steps=6")
    assert end(typed, False, 1, "forward", 1)[0] == 0
    assert {row["batch/micro_size"] for row in rows(tmp_path)} == sizes - {4}
    assert end([*typed, "duration.steps=8"], False)[0] == 0


def test_where_no_size_suits_the_model_the_run_ends_in_the_sentence(tmp_path: Path) -> None:
    code, output = end(argv(tmp_path, *GIVEN, "batch.micro=2"), False, 2, "forward", 1)
    assert code == 1
    assert "ran out of memory in step 2, in a micro-batch of 2" in output
    assert "Traceback" not in output


def test_the_standard_loop_does_not_shrink_by_what_another_loop_has_left(tmp_path: Path) -> None:
    words = [*GIVEN, "batch.micro=all"]
    assert end(argv(tmp_path, *words), False, 2, "forward", 1)[0] == 0
    assert json.loads((tmp_path / "run" / "micro.json").read_text())["planned"] == 16

    from train.standard import compute_gradient as standard

    assert main([*argv(tmp_path, *words), "duration.steps=7"], "standard", standard) == 0
    assert rows(tmp_path)[-1]["batch/micro_size"] == 16


def held_while_again(arguments: list[str]) -> list[bool]:
    """Whether what did not fit is still there when the step is done again."""
    seen: list[Any] = []
    held = []

    def compute(learner: Learner, window: Window) -> Tensor:
        if window.k == 2 and not seen:
            activation = torch.ones(1000)
            seen.append(weakref.ref(activation))
            raise torch.OutOfMemoryError(f"no room beside {activation.numel()} numbers")
        if window.k == 2:
            held.append(seen[0]() is not None)
        return compute_gradient(learner, window)

    record(arguments, compute_gradient=compute)
    return held


@pytest.mark.parametrize(("ranks", "reduction"), [(1, "auto"), (2, "auto"), (2, "explicit")])
def test_what_did_not_fit_is_gone_before_the_step_is_done_again(
    run_ranks: Any, tmp_path: Path, ranks: int, reduction: str
) -> None:
    typed = argv(tmp_path, *GIVEN, f"runtime.reduction={reduction}")
    assert run_ranks(ranks, held_while_again, typed) == [[False]] * ranks


def test_buffers_are_not_put_back_to_before_a_step_that_is_complete(tmp_path: Path) -> None:
    """A step without labels computes no gradient, and is counted all the same."""
    run = build(config.load(argv(tmp_path, *GIVEN)), "accumulate")
    buffers = run.learner.module.layers[1].running_mean
    computed = run.watch(compute_gradient)
    windows = iter(run.windows)
    window = next(windows)
    run.after_step(window, computed(run.learner, window), torch.ones(1))
    run.complete_step.step = 2
    after = buffers.clone()

    assert run.complete_step.put_back() == 2
    assert torch.equal(buffers, after)
    assert after.any()
    run.close("finished", 0)
