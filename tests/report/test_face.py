"""The run folder and the screen, from real runs."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from tests.helpers import rows
from train import metric_names as names
from train.accumulate import compute_gradient
from train.batch.window import Window
from train.checkpoint import Checkpoints
from train.main import main
from train.metrics.cpu_wait import waited_seconds
from train.plan.run_plan import RunPlan
from train.report.best import Best, UnknownDirection
from train.report.progress import Interval, Progress, duration
from train.report.screen import Screen

CPU_KEYS = {
    names.LOSS,
    names.LOSS_MEAN,
    names.GRAD_NORM,
    names.LEARNING_RATE,
    names.GLOBAL_STEP,
    names.EPOCH,
    names.SKIPPED_STEPS,
    names.EMPTY_STEPS,
    names.SAMPLES_SEEN,
    names.HOURS,
    names.EFFECTIVE_SIZE,
    names.MICRO_SIZE,
    names.ACCUMULATION_STEPS,
    names.WORLD_SIZE,
    names.WEIGHTS,
    names.GRADIENTS,
    names.OPTIMIZER_STATE,
    names.PEAK_RSS,
    names.ACTIVATIONS,
    names.SAMPLES_PER_SECOND,
    names.STEP_SECONDS,
    names.DATA_SECONDS,
    names.FORWARD_BACKWARD_SECONDS,
    names.OPTIMIZER_SECONDS,
    names.REST_SECONDS,
} | ({names.CPU_WAIT} if waited_seconds() is not None else set())


def start(output_dir: Path, *overrides: str) -> int:
    argv = ["configs/digits.yaml", f"output_dir={output_dir}", "name=run", "log.every_steps=1"]
    return main(
        [*argv, "wandb.mode=disabled", "batch.audit_every_steps=0", *overrides],
        "accumulate",
        compute_gradient,
    )


def train_on_ranks(output_dir: str) -> int:
    return start(Path(output_dir), "duration.epochs=1", "batch.micro=16")


@pytest.mark.parametrize("world_size", [1, 2])
def test_run_folder_and_rows(run_ranks: Any, tmp_path: Path, world_size: int) -> None:
    codes = run_ranks(world_size, train_on_ranks, str(tmp_path))

    assert codes == [0] * world_size
    kept = {
        path.relative_to(tmp_path / "run").as_posix()
        for path in (tmp_path / "run").rglob("*")
        if path.is_file()
    }
    checkpoint = {
        path.rpartition("/")[2] for path in kept if path.startswith("checkpoints/step-00000015/")
    }
    assert checkpoint == {
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "trainer.json",
    }
    kept = {path for path in kept if not path.startswith("checkpoints/")}
    wanted = {
        "config.yaml",
        "plan.json",
        "run.json",
        "environment.json",
        "ended.json",
        "log.txt",
        "metrics.jsonl",
    }
    wanted |= {"best/model.safetensors", "best/best.json"}
    assert (
        wanted | {"final/model.safetensors"}
        <= kept
        <= wanted | {"final/model.safetensors", "git.patch"}
    )
    steps = rows(tmp_path, names.LOSS)
    assert [row[names.GLOBAL_STEP] for row in steps] == list(range(1, 16))
    for row in steps:
        assert set(row) == CPU_KEYS | (
            {names.SMALLEST_PEAK, names.SYNC_SECONDS} if world_size > 1 else set()
        )
        assert row[names.WORLD_SIZE] == world_size
        assert 0 < row.get(names.SYNC_SECONDS, 1e-9) <= row[names.FORWARD_BACKWARD_SECONDS]
        assert row[names.PEAK_RSS] > 0.05
    # measured: the tail shows as a dip
    assert [row[names.EFFECTIVE_SIZE] for row in steps] == [100] * 14 + [38]
    assert [row[names.ACCUMULATION_STEPS] for row in steps] == (
        [7] * 14 + [3] if world_size == 1 else [4] * 14 + [2]
    )
    assert [row[names.SAMPLES_SEEN] for row in steps] == [*range(100, 1401, 100), 1438]
    (evaluation,) = rows(tmp_path, names.EVAL_LOSS)
    assert evaluation[names.EVAL_SAMPLES] == 359
    ended = json.loads((tmp_path / "run" / "ended.json").read_text())
    assert (ended["reason"], ended["code"], ended["step"]) == ("finished", 0, 15)
    assert "finished: 15 steps" in (tmp_path / "run" / "log.txt").read_text()


def test_load_gives_the_model_back_and_evaluate_the_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from train.evaluate import main as evaluate

    start(tmp_path, "duration.epochs=1", "precision=fp64")
    logged = rows(tmp_path, names.EVAL_LOSS)[-1]
    capsys.readouterr()

    assert evaluate([str(tmp_path / "run")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {key: value for key, value in logged.items() if key.startswith("eval/")}
    model = train.load(tmp_path / "run")
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_evaluate_refuses_what_is_no_finished_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from train.evaluate import main as evaluate

    assert evaluate([str(tmp_path / "nothing")]) == 2
    assert "is no run folder, or its run has not finished" in capsys.readouterr().err


def test_evaluate_tells_of_a_lost_worker(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from train import evaluate
    from train.data import WorkerLost

    def lost(*_: object, **options: object) -> None:
        raise WorkerLost("loading samples: DataLoader worker (pid 7) is killed")

    monkeypatch.setattr(evaluate, "evaluate", lost)
    assert evaluate.main(["runs/digits"]) == 1
    assert capsys.readouterr().err == "loading samples: DataLoader worker (pid 7) is killed\n"


def test_at_start_further_sets_and_best(tmp_path: Path) -> None:
    start(
        tmp_path,
        "duration.epochs=2",
        "evaluate.at_start=true",
        "evaluate.sets.again=train",
        "evaluate.every_samples=1000",
        "evaluate.every_steps=null",
    )

    evaluations = rows(tmp_path, names.EVAL_LOSS)
    # before the first step, at the steps that complete 1,000 and 2,000 samples, after the last
    assert [row[names.GLOBAL_STEP] for row in evaluations] == [0, 10, 21, 30]
    assert all(row["eval/again/samples"] == 1797 for row in evaluations)
    lines = [
        line for line in (tmp_path / "run" / "log.txt").read_text().splitlines() if "eval " in line
    ]
    assert len(lines) == 4
    assert all(
        re.search(
            r"accuracy [\d.]+  on 359 samples  again/loss [\d.]+  again/accuracy [\d.]+$", line
        )
        for line in lines
    )
    assert evaluations[0][names.EVAL_LOSS] == pytest.approx(2.3, abs=0.1)


def test_crash_leaves_a_readable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from train.tasks.classification import Classification

    calls = 0
    honest = Classification.loss_sum

    def explode(task: Any, model: Any, batch: Any) -> Any:
        nonlocal calls
        # a step, not the trial before the first
        calls += len(batch["labels"]) > 8 and torch.is_grad_enabled()
        if calls == 3:
            raise ZeroDivisionError("on purpose")
        return honest(task, model, batch)

    monkeypatch.setattr(Classification, "loss_sum", explode)
    with pytest.raises(ZeroDivisionError):
        start(tmp_path)

    ended = json.loads((tmp_path / "run" / "ended.json").read_text())
    assert ended["reason"].startswith("ZeroDivisionError: on purpose. Step 2 is saved")
    assert (ended["code"], ended["step"]) == (1, 2)
    assert len(rows(tmp_path, names.LOSS)) == 2


def test_a_save_tells_how_long_training_stood_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The saves at steps 2 and 4 take 1 and 0.5 s more; no step counts that as its own."""
    save = Checkpoints.save
    spent: list[float] = []

    def slow(*args: Any, **options: Any) -> None:
        start = time.perf_counter()
        time.sleep(1 / (len(spent) + 1))
        save(*args, **options)
        spent.append(time.perf_counter() - start)

    monkeypatch.setattr(Checkpoints, "save", slow)
    start(tmp_path, "duration={steps: 4}", "checkpoint.every_steps=2")

    saves = rows(tmp_path, names.SAVE_SECONDS)
    assert [row[names.GLOBAL_STEP] for row in saves] == [2, 4]
    for row, seconds in zip(saves, spent, strict=True):
        assert seconds <= row[names.SAVE_SECONDS] < seconds + 0.4
    after = rows(tmp_path, names.LOSS)[2]
    outside = after[names.DATA_SECONDS] + after[names.REST_SECONDS]
    assert outside < 0.8
    gradient_and_update = after[names.FORWARD_BACKWARD_SECONDS] + after[names.OPTIMIZER_SECONDS]
    assert after[names.STEP_SECONDS] < outside + gradient_and_update + 0.8
    assert (tmp_path / "run" / "log.txt").read_text().count("  saved in ") == 2


def test_overfit_repeats_the_first_windows(tmp_path: Path) -> None:
    start(tmp_path, "data.overfit=2", "duration.steps=60", "optimizer.lr=0.003")

    losses = [row[names.LOSS] for row in rows(tmp_path, names.LOSS)]
    assert losses[-1] < 0.05 * losses[0]


def test_profile(tmp_path: Path) -> None:
    start(tmp_path, "profile.steps=[2,3]", "duration.steps=4")

    trace = json.loads((tmp_path / "run" / "profile" / "trace.json").read_text())
    names_in_trace = [event.get("name", "") for event in trace["traceEvents"]]
    assert sum("AdamW.step" in name for name in names_in_trace) == 2


def test_smoke_keeps_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(tmp_path.iterdir())

    assert start(tmp_path, "--smoke") == 0
    output = capsys.readouterr().out
    assert "saved and loaded again" in output
    folder = re.search(r"outputs +(\S+)", output)
    assert folder
    assert not Path(folder[1]).exists()
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("wanted", "more_is_better"),
    [
        ("eval/accuracy", True),
        (None, False),
        ("eval/french/loss", False),
        ("max eval/mine", True),
        ("min eval/x", False),
    ],
)
def test_best_direction(wanted: str | None, more_is_better: bool) -> None:
    best = Best.of(wanted)
    for step, value in enumerate([0.5, 0.7, 0.2], start=1):
        best.see({names.GLOBAL_STEP: step, best.metric: value})

    assert (best.value, best.step, best.last) == (
        (0.7, 2, 0.2) if more_is_better else (0.2, 3, 0.2)
    )


def test_best_of_an_unknown_metric() -> None:
    with pytest.raises(UnknownDirection, match=r"evaluate\.best='max eval/mine'"):
        Best.of("eval/mine")


def test_interval_in_samples() -> None:
    """Due at the step that completes a multiple, however large the step."""
    due, progress = [], Progress()
    for k, samples in enumerate([40, 40, 40, 200, 10], start=1):
        window = Window(
            k=k,
            epoch=0,
            micro_batches=(),
            samples=samples,
            weights={"loss": 1.0},
            last_of_epoch=False,
        )
        progress.advance(window, samples_per_epoch=1000)
        due.append(Interval(samples=100).due(progress, window))

    assert due == [False, False, True, True, False]


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.23, "4.2 s"), (187, "3:07 min"), (18131, "5:02:11 h")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_lines_fit_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in a SLURM log of a run that is long, large and fast."""
    row = dict.fromkeys(CPU_KEYS, 0.0) | {
        names.GLOBAL_STEP: 123456,
        names.LOSS: 12.3456,
        names.LOSS_MEAN: 12.3456,
        names.LEARNING_RATE: 1.23e-4,
        names.EFFECTIVE_SIZE: 4096,
        names.SAMPLES_PER_SECOND: 123456.7,
        names.PEAK_RSS: 75.25,
    }
    with (tmp_path / "log.txt").open("w") as log:
        Screen(500_000, log, 80.0).log(row)

    (line,) = capsys.readouterr().out.splitlines()
    assert len(line) <= 80, line
    assert "  loss 12.3456 (12.3456)  lr" in line
    assert (tmp_path / "log.txt").read_text() == line + "\n"


def test_plan_is_complete(tmp_path: Path) -> None:
    start(tmp_path, "duration.steps=1")

    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert set(RunPlan.__dataclass_fields__) | {"derived"} == set(plan)
    derived = plan["derived"]
    assert derived["parameters"] == 85002
    assert derived["device"] == "cpu"
    assert (derived["effective_batch"], derived["world_size"], derived["tail_samples"]) == (
        100,
        1,
        38,
    )
    assert len(derived["curve_hash"]) == len(derived["recipe_hash"]) == 16


@pytest.mark.parametrize(("steps", "warned"), [(3, True), (4, False)])
def test_a_warm_up_that_outlasts_the_run_is_warned_of(
    tmp_path: Path, steps: int, warned: bool
) -> None:
    warmup = ("schedule.name=cosine", "schedule.warmup_steps=4", "optimizer.lr=0.4")
    assert start(tmp_path, f"duration.steps={steps}", "optimizer.max_grad_norm=1", *warmup) == 0

    warning = (
        "4 steps of warm-up in a run of 3: the rate never reaches its peak, the last step is "
        "taken at 0.3"
    )
    assert (warning in (tmp_path / "run" / "log.txt").read_text()) is warned
