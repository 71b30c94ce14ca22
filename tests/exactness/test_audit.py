"""The audit of a running step: when, what it finds, and that it leaves no trace."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState

from tests.exactness.audited import (
    SLOW_SECONDS,
    audits,
    counted_elsewhere,
    other_rows,
    trained,
    trained_armed,
    trained_at_threshold,
)
from tests.helpers import argv, rows
from train import metric_names as names
from train.accumulate import compute_gradient
from train.distributed.pulse import Pulse
from train.exactness.audit_schedule import next_audit
from train.main import main

ON = "batch.audit_every_steps=3"
GATED = "model={target: tests.exactness.audited.Gated, args: {kind: %s, opens: %d}}"


def test_audits_are_due_at_1_10_100_and_then_regularly() -> None:
    due = []
    step = 1
    while step < 4000:
        due.append(next_audit(step, 1000))
        step = due[-1] + 1

    assert due == [1, 10, 100, 1000, 2000, 3000, 4000]
    assert next_audit(2, 4) == 4


def digests(folder: Path) -> dict[str, str]:
    """Of all files of the checkpoints and of the final weights; times and memory are not the
    training's.
    """
    by_path = {}
    for path in sorted([*folder.rglob("*.safetensors"), *folder.rglob("optimizer*")]):
        by_path[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return by_path


CASES = {
    "plain": ("batch.micro=2",),
    "one micro-batch": ("batch.micro=8",),
    "single samples": ("batch.micro=1",),
    "state": (GATED % ("averaged", 10**9), "batch.micro=2"),
    "queue": (GATED % ("queued", 10**9), "batch.micro=2"),
    "adamw fp32": ("batch.micro=3", "precision=fp32", "optimizer={target: adamw, lr: 0.01}"),
}


@pytest.mark.parametrize("case", CASES)
def test_an_exact_run_is_verified_and_nothing_of_it_changes(case: str, tmp_path: Path) -> None:
    overrides = (
        *CASES[case],
        "duration={steps: 7}",
        "checkpoint.every_steps=3",
        "checkpoint.keep=9",
    )

    weights, _ = trained(argv(tmp_path, *overrides, "name=without"))
    audited, _ = trained(argv(tmp_path, *overrides, "name=with", ON))

    audit_rows = audits(tmp_path, "with")
    assert list(audit_rows) == [1, 3, 6]
    assert all(row[names.VERIFIED] == 1 for row in audit_rows.values())
    assert [row[names.VERIFIED_STEP] for row in audit_rows.values()] == [1, 3, 6]
    assert all(row[names.AUDIT_SECONDS] > 0 for row in audit_rows.values())
    assert np.array_equal(weights, audited)
    assert other_rows(tmp_path, "without") == other_rows(tmp_path, "with")
    assert digests(tmp_path / "without") == digests(tmp_path / "with") != {}


@pytest.mark.parametrize("kind", ["centred", "queued", "averaged"])
def test_what_opens_late_is_found(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """4 micro-batches a step; the trial before the first one has seen nothing."""
    opens = 40 if kind != "queued" else 60
    overrides = (GATED % (kind, opens), "batch.micro=2", "precision=fp32", "duration={steps: 25}")

    trained(argv(tmp_path, *overrides, "batch.audit_every_steps=4"))

    audit_rows = audits(tmp_path)
    stdout = capsys.readouterr().out
    assert audit_rows[1][names.VERIFIED] == audit_rows[4][names.VERIFIED] == 1
    late = audit_rows[20]
    assert late[names.VERIFIED] == 0
    assert late[names.SPLIT_ERROR] > 1e-4
    assert late[names.VERIFIED_STEP] < 20
    assert "step 20: the gradient depends on how the batch is cut" in stdout


def test_required_stops_before_the_update(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = (
        GATED % ("centred", 40),
        "batch.micro=2",
        "duration={steps: 25}",
        "batch.audit_every_steps=4",
    )

    code = main(argv(tmp_path, *overrides, "batch.exact=required"), "accumulate", compute_gradient)

    audit_rows = audits(tmp_path)
    assert code == 1
    assert audit_rows[max(audit_rows)][names.VERIFIED] == 0
    assert other_rows(tmp_path)[-1]["train/global_step"] == max(audit_rows) - 1
    assert "No update was made" in capsys.readouterr().err


def test_what_draws_is_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = (
        GATED % ("dropped", 40),
        "batch.micro=2",
        "duration={steps: 25}",
        "batch.audit_every_steps=4",
    )

    audited, _ = trained(argv(tmp_path, *overrides, "name=with"))
    weights, _ = trained(argv(tmp_path, *overrides, "name=without", "batch.audit_every_steps=0"))

    stdout = capsys.readouterr().out
    assert list(audits(tmp_path, "with")) == [1, 4, 8, 10]
    assert stdout.count("could not be audited: it draws random numbers") == 1
    assert np.array_equal(weights, audited)


ROUNDING = (
    "data.source=tests.exactness.audited.known",
    "model={target: tests.exactness.audited.Known}",
    "task=tests.helpers.Regression",
    "precision=fp32",
)
"""Its gradient at the start is rounding and nothing else."""


def test_what_is_rounding_alone_is_no_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The targets are the model's own outputs, in float64: its gradient in float32 is rounding and
    nothing else.
    """
    trained(argv(tmp_path, *ROUNDING, "batch.micro=4", "duration={steps: 1}", ON))

    row = audits(tmp_path)[1]
    assert row[names.VERIFIED] == 0
    assert row[names.SPLIT_ERROR] > 1e-3
    assert "step 1: the gradient differs by rounding alone" in capsys.readouterr().out


def test_a_unit_at_its_threshold_is_no_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found in a small convolutional network: in float32 the cuts differ by more than most
    roundings of its weights make, in float64 by nothing.
    """
    model = "model={target: tests.exactness.audited.AtThreshold, args: {}}"

    trained_at_threshold(
        argv(tmp_path, model, "precision=fp32", "batch.micro=4", "duration={steps: 1}", ON)
    )

    stdout = capsys.readouterr().out
    assert audits(tmp_path)[1][names.SPLIT_ERROR] > 1e-3
    assert "differs by rounding alone" in stdout
    assert "computed wrong" not in stdout


def test_the_watchdog_sees_that_an_audit_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float64 may be slower than the step by far: each micro-batch of it shows, and each gradient."""
    beats = 0

    def beat(_: Pulse) -> None:
        nonlocal beats
        beats += 1

    monkeypatch.setattr(Pulse, "beat", beat)
    overrides = (*ROUNDING, "batch.micro=4", "duration={steps: 1}")
    trained(argv(tmp_path, *overrides, "name=without", "batch.audit_every_steps=0"))
    beats_of_step = beats
    beats = 0

    trained(argv(tmp_path, *overrides, "name=with", ON))

    gradients = 5
    in_float64 = 2
    micro_batches = 2
    assert beats - beats_of_step >= gradients + in_float64 * micro_batches


def test_a_wrong_kernel_is_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = (
        "model={target: tests.exactness.audited.WithKernel}",
        "precision=fp32",
        "batch.micro=4",
        "task=classification",
    )
    trained_armed(argv(tmp_path, *overrides, "duration={steps: 1}", ON))

    assert audits(tmp_path)[1][names.VERIFIED] == 0
    assert "does a kernel compute something else for other sizes?" in capsys.readouterr().out


@pytest.mark.parametrize(
    "overrides",
    [
        ("precision=bf16",),
        ("precision=bf16", "model.dtype=bf16"),
        ("precision=fp32", "memory.activation_checkpointing=layers*", "model.compile=aot_eager"),
    ],
)
def test_other_ways_to_compute_are_audited(overrides: tuple[str, ...], tmp_path: Path) -> None:
    AcceleratorState._reset_state()  # it knows one precision per process
    model = GATED % ("none", 0)

    weights, _ = trained(
        argv(tmp_path, model, *overrides, "duration={steps: 3}", "batch.micro=4", "name=without")
    )
    audited, _ = trained(
        argv(tmp_path, model, *overrides, "duration={steps: 3}", "batch.micro=4", "name=with", ON)
    )

    assert [row[names.VERIFIED] for row in audits(tmp_path, "with").values()] == [1, 1]
    assert np.array_equal(weights, audited)
    AcceleratorState._reset_state()


def test_counts_that_are_no_attributes_are_put_back(tmp_path: Path) -> None:
    """In a global, in an attribute of the class, and in a closure."""
    overrides = (
        "model={target: tests.exactness.audited.Elsewhere}",
        "batch.micro=2",
        "duration={steps: 7}",
    )

    with_audit = counted_elsewhere(argv(tmp_path, *overrides, "name=with", ON))
    without = counted_elsewhere(argv(tmp_path, *overrides, "name=without"))

    assert len(audits(tmp_path, "with")) == 3
    assert with_audit == without


@pytest.mark.parametrize(("kind", "audits_expected"), [("Unwritable", [1, 3]), ("Sealed", [])])
def test_what_cannot_be_written_to_ends_no_run(
    kind: str, audits_expected: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Constants need no putting back; a class that refuses it is not audited, and that is said."""
    model = f"model={{target: tests.exactness.audited.{kind}, args: {{}}}}"

    trained(argv(tmp_path, model, "batch.micro=2", "duration={steps: 4}", ON))

    stdout = capsys.readouterr().out
    assert list(audits(tmp_path)) == audits_expected
    assert ("cannot be put back" in stdout) == (not audits_expected)
    assert "finished: 4 steps" in stdout


def test_what_opens_late_by_a_global_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = "model={target: tests.exactness.audited.Elsewhere, args: {couples: true}}"

    counted_elsewhere(
        argv(tmp_path, model, "batch.micro=2", "duration={steps: 30}", ON, "precision=fp32")
    )

    stdout = capsys.readouterr().out
    assert audits(tmp_path)[1][names.VERIFIED] == 1
    assert "step 30: the gradient depends on how the batch is cut" in stdout
    assert "gives a sample something else when it is with others" in stdout


def test_neither_its_time_nor_its_memory_is_the_trainings(tmp_path: Path) -> None:
    """Eight samples one by one, slow and large, beside steps that take two at a time."""
    model = "model={target: tests.exactness.audited.SlowForOne, args: {}}"
    overrides = (
        model,
        "batch.micro=2",
        "data.args.size=48",
        "duration={steps: 6}",
        "noise_scale.every_steps=0",
    )

    trained_armed(argv(tmp_path, *overrides, ON))

    audit_rows = audits(tmp_path)
    assert list(audit_rows) == [1, 3, 6]
    assert all(row[names.AUDIT_SECONDS] >= 8 * SLOW_SECONDS for row in audit_rows.values())
    of_steps = rows(tmp_path)
    assert len(of_steps) == 6
    for row in of_steps:
        timed = {
            key: value
            for key, value in row.items()
            if key.startswith("time/") and key.endswith("_seconds")
        }
        assert timed
        # also on a busy machine, where a step takes 0.1 s
        assert max(timed.values()) < 5 * SLOW_SECONDS, timed
        assert row["throughput/samples_per_second"] > 8 / (5 * SLOW_SECONDS)
    memory = [row["memory/peak_rss_gib"] for row in of_steps]
    assert max(memory) - min(memory) < 0.2, "the 0.25 GiB that an audit takes for a moment"
