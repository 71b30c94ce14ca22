"""What a comparison says of runs is true of their rows."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.comparison.folders import loss_at, make_run
from train import metric_names as names
from train.comparison.as_json import as_json
from train.comparison.compare import compare
from train.comparison.comparison import Comparison
from train.comparison.read import load_runs

GPU = {"memory/peak_allocated_gib": 2.0, "memory/peak_reserved_gib": 3.0}


def compared(*folders: Path, target: float | None = None) -> Comparison:
    found = load_runs([str(folder) for folder in folders])
    return compare(found.runs, found.skipped, target)


def test_same_mathematics_names_the_largest_difference_and_the_rows(tmp_path: Path) -> None:
    whole = make_run(tmp_path / "whole")
    split = make_run(
        tmp_path / "split",
        derived={"micro_batch": 25, "accumulation_steps": 4},
        loss=lambda s: loss_at(s) + (3e-5 if s == 7000 else 1e-7),
        extra={"memory/peak_rss_gib": 0.4},
    )

    result = compared(whole, split)

    assert result.same_mathematics
    (train, evaluation) = result.distances
    assert (train.metric, train.rows, train.at_samples, train.seeds) == (
        "train/loss",
        30,
        7000,
        (0,),
    )
    assert train.largest == pytest.approx(3e-5)
    assert (evaluation.metric, evaluation.rows) == ("eval/loss", 6)
    assert "Same mathematics in 2 runs of 2 set-ups" in result.verdict
    assert "train/loss differs by at most 3e-05 (30 common rows, 1 seed)" in result.verdict
    assert "peak memory (process RSS) -20.0 %, throughput +0.0 %" in result.verdict
    assert [key.name for key in result.keys] == ["accumulation_steps", "micro_batch"]
    assert {key.kind for key in result.keys} == {"execution"}


def test_seeds_are_one_set_up_with_mean_and_spread(tmp_path: Path) -> None:
    for seed in range(3):
        make_run(
            tmp_path / f"digits-seed{seed}",
            identity={"seed": seed},
            loss=lambda s, seed=seed: loss_at(s) + seed,
        )

    result = compared(tmp_path)

    (group,) = result.groups
    assert (group.label, group.seeds) == ("digits", [0, 1, 2])
    value = result.outcomes[0].metrics["eval/loss"]
    assert value.mean == pytest.approx(loss_at(30_000) + 1)
    assert value.deviation == pytest.approx(1.0)
    assert not result.distances
    assert "no two runs share a seed" in result.verdict


def test_other_mathematics_are_compared_at_equal_samples(tmp_path: Path) -> None:
    small = make_run(tmp_path / "small")
    large = make_run(
        tmp_path / "large",
        identity={"batch.effective": 200, "code": "c1"},
        last=20_000,
        loss=lambda s: 2 * loss_at(s),
    )

    result = compared(small, large)

    assert not result.same_mathematics
    assert {(key.name, key.kind) for key in result.keys} == {
        ("batch.effective", "mathematics"),
        ("code", "mathematics"),
    }
    assert [outcome.samples for outcome in result.outcomes] == [20_000, 20_000]
    assert "Other mathematics (batch.effective, code differ)" in result.verdict
    assert (
        "at 20,000 samples eval/loss is 0.04762 (small) against 0.09524 (large)" in result.verdict
    )


def test_several_recipes_each_executed_in_two_ways(tmp_path: Path) -> None:
    for batch, apart in ((100, 0.0), (200, 1e-7)):
        other: dict[str, Any] = {"identity": {"batch.effective": batch}}
        make_run(tmp_path / f"batch{batch}-whole", loss=lambda s, b=batch: b * loss_at(s), **other)
        make_run(
            tmp_path / f"batch{batch}-split",
            loss=lambda s, b=batch, a=apart: b * loss_at(s) + a,
            derived={"micro_batch": 10},
            **other,
        )

    result = compared(tmp_path)

    assert "Other mathematics (batch.effective differs)" in result.verdict
    assert (
        "Where mathematics and seed are the same, train/loss differs by at most 1e-07 (60 common "
        "rows" in result.verdict
    )


def test_other_intervals_are_compared_where_samples_agree(tmp_path: Path) -> None:
    often = make_run(tmp_path / "often", every=1000)
    seldom = make_run(
        tmp_path / "seldom",
        every=1500,
        derived={"micro_batch": 50},
        config="log: {every_steps: 15}",
    )

    result = compared(often, seldom)

    assert result.distances[0].rows == 10
    assert result.distances[0].largest == 0
    assert any("log.every_steps" in note for note in result.notes)


def test_one_that_is_not_exact_is_named_in_the_verdict(tmp_path: Path) -> None:
    good = make_run(tmp_path / "good")
    bad = make_run(
        tmp_path / "bad",
        derived={"exact": "false", "exact_reasons": "dropout draws anew", "micro_batch": 50},
    )

    result = compared(good, bad)

    assert "NOT exact by its own word: bad" in result.verdict
    assert "bad is not exact: dropout draws anew" in result.notes


def test_other_machines_are_named(tmp_path: Path) -> None:
    here = make_run(tmp_path / "here")
    there = make_run(tmp_path / "there", environment={"host": "there"}, derived={"micro_batch": 50})

    result = compared(here, there)

    assert "(on different machines)" in result.verdict
    assert "times and throughput are of different machines: here, cpu; there, cpu" in result.notes


def test_memory_of_two_kinds_is_not_compared(tmp_path: Path) -> None:
    cpu = make_run(tmp_path / "cpu")
    gpu = make_run(tmp_path / "gpu", derived={"device": "H100"}, extra=GPU)

    result = compared(cpu, gpu)

    assert "memory" not in result.verdict
    assert any(
        "memory is not of one kind (GPU allocated; process RSS)" in note for note in result.notes
    )


def test_uncommitted_changes_are_noted(tmp_path: Path) -> None:
    clean = make_run(tmp_path / "clean")
    dirty = make_run(
        tmp_path / "dirty",
        environment={"git": {"commit": "1", "dirty": True}},
        derived={"micro_batch": 50},
    )

    result = compared(clean, dirty)

    assert {key.name: key.values for key in result.keys}["git.dirty"] == ("false", "true")
    assert any(note.startswith("uncommitted changes in the code of dirty") for note in result.notes)


def test_a_loss_that_is_finite_in_one_run_only_is_no_agreement(tmp_path: Path) -> None:
    fine = make_run(tmp_path / "fine")
    broken = make_run(
        tmp_path / "broken",
        derived={"micro_batch": 50},
        loss=lambda s: None if s == 9000 else loss_at(s),
    )

    assert compared(fine, broken).distances[0].largest == math.inf


def test_hours_to_the_target(tmp_path: Path) -> None:
    fast = make_run(tmp_path / "fast", loss=lambda s: loss_at(s) / 2)
    slow = make_run(tmp_path / "slow", identity={"optimizer.lr": 0.001})

    default, given = compared(fast, slow).target, compared(fast, slow, target=0.05).target

    assert default is not None
    assert (default.loss, default.reached) == (loss_at(30_000), (1, 1))
    assert default.hours[1] is not None
    # a loss that equals the target has reached it
    assert default.hours[1].mean * 3600 == pytest.approx(30)
    assert given is not None
    assert given.reached == (1, 1)
    assert [hours.mean * 3600 for hours in given.hours if hours] == pytest.approx([10, 20])

    never = compared(fast, slow, target=0.02).target
    assert never is not None
    assert (never.reached, never.hours[1]) == ((1, 0), None)


def test_costs_leave_out_the_first_row_and_what_is_not_measured(tmp_path: Path) -> None:
    phases = {
        "time/data_seconds": 0.02,
        "time/forward_backward_seconds": 0.07,
        "time/sync_seconds": 0.02,
    }
    run = make_run(
        tmp_path / "run",
        last=10_000,
        extra=phases | {"time/optimizer_seconds": 0.01, "memory/new_gib": 7.0},
    )
    path = run / "metrics.jsonl"
    path.write_text(
        path.read_text().replace('"time/step_seconds": 0.1', '"time/step_seconds": 99', 1)
    )

    ((cost,),) = compared(run).costs

    assert (cost.step_seconds, cost.step_p50_seconds) == pytest.approx((0.1, 0.1))
    assert cost.step_p95_seconds is None  # 9 rows
    assert cost.samples_per_second == pytest.approx(1000)
    assert cost.shares == pytest.approx(
        {"data": 0.2, "forward + backward": 0.5, "gradient sync": 0.2, "optimizer": 0.1}
    )
    assert cost.peaks_gib == {"memory/peak_rss_gib": 0.5, "memory/new_gib": 7.0}


@pytest.mark.parametrize("tails", [1, 5])
def test_time_shares_are_of_full_steps(tmp_path: Path, tails: int) -> None:
    """However many of the rows fall on the ragged last steps of epochs, which have less to compute."""
    run = make_run(tmp_path / "run", last=10_000, derived={"steps_per_epoch": 15})
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for index, row in enumerate(rows):
        ragged = index % 6 < tails
        times = {names.DATA_SECONDS: 0.01, names.FORWARD_BACKWARD_SECONDS: 0.01 if ragged else 0.09}
        row |= times | {names.EFFECTIVE_SIZE: 38.0 if ragged else 100.0}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    result = compared(run)

    assert result.costs[0][0].phase_seconds == pytest.approx(
        {"data": 0.01, "forward + backward": 0.09}
    )
    assert any("shares are of the full steps that got a row" in note for note in result.notes)


def test_where_an_epoch_is_one_step_it_is_a_full_one(tmp_path: Path) -> None:
    extra = {names.DATA_SECONDS: 0.01, names.EFFECTIVE_SIZE: 38.0}

    assert compared(make_run(tmp_path / "tails", extra=extra)).costs[0][0].shares == {}
    alone = make_run(tmp_path / "alone", extra=extra, derived={"steps_per_epoch": 1})
    assert compared(alone).costs[0][0].shares == {"data": 1}


def test_a_run_that_diverged_is_the_worst_of_many(tmp_path: Path) -> None:
    losses = {"a": 0.5, "b": math.nan, "c": 0.3, "d": 0.4}
    folders = [
        make_run(tmp_path / name, identity={"optimizer.lr": lr}, loss=lambda s, loss=loss: loss)
        for lr, (name, loss) in enumerate(losses.items(), start=1)
    ]

    assert "from 0.3 (c) to not finite (b)" in compared(*folders).verdict


def test_a_host_that_nobody_knows_is_no_other_machine(tmp_path: Path) -> None:
    known = make_run(tmp_path / "known")
    unknown = make_run(
        tmp_path / "unknown", derived={"micro_batch": 25}, environment={"host": None}
    )
    elsewhere = make_run(
        tmp_path / "elsewhere", derived={"micro_batch": 50}, environment={"host": "there"}
    )

    assert "different machines" not in compared(known, unknown).verdict
    assert "different machines" in compared(known, elsewhere).verdict


def test_a_loss_of_zero_has_been_reached(tmp_path: Path) -> None:
    result = compared(make_run(tmp_path / "run", loss=lambda s: 0.0), target=0.0)

    assert result.target is not None
    assert result.target.reached == (1,)


def test_means_are_over_the_seeds_that_all_set_ups_have(tmp_path: Path) -> None:
    """Seed 2 was lucky, and only one set-up has it."""
    for seed, bonus in enumerate((0.0, 0.1, -5.0)):
        make_run(
            tmp_path / f"a-seed{seed}",
            identity={"seed": seed},
            loss=lambda s, b=bonus: loss_at(s) + b,
        )
    for seed in (0, 1, 3):
        other = {"seed": seed, "optimizer.lr": 0.1}
        make_run(
            tmp_path / f"b-seed{seed}", identity=other, extra={"memory/peak_rss_gib": float(seed)}
        )

    result = compared(tmp_path)

    assert [group.seeds for group in result.groups] == [[0, 1], [0, 1]]
    ours, theirs = (outcome.metrics["eval/loss"] for outcome in result.outcomes)
    assert ours.mean == pytest.approx(loss_at(30_000) + 0.05)
    assert theirs.mean == pytest.approx(loss_at(30_000))
    peaks = result.cost(1, lambda cost: cost.peak_gib)
    assert peaks
    assert peaks.values == (0.0, 1.0)
    assert [Path(each.where).name for each in result.skipped] == ["a-seed2", "b-seed3"]
    assert sum("some have no run of seed" in note for note in result.notes) == 2
    assert result.verdict.count("2 seeds each") == 1


def test_set_ups_without_a_common_seed_are_noted(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", identity={"seed": 0})
    other = make_run(tmp_path / "other", identity={"seed": 1, "optimizer.lr": 0.1})

    result = compared(one, other)

    assert len(result.groups) == 2
    assert any(note.startswith("no seed is in all set-ups") for note in result.notes)


def cpu(activations_gib: float, **more: float) -> dict[str, float]:
    return {"memory/activations_gib": activations_gib, **more}


def test_the_first_sentence_says_one_thing(tmp_path: Path) -> None:
    """The same curve, what the smaller memory is, and what it cost; whichever of the two is named
    first.
    """
    split: dict[str, Any] = {"derived": {"micro_batch": 25}, "extra": cpu(1 / 1024)}
    folders = [
        make_run(tmp_path / "whole", extra=cpu(4 / 1024)),
        make_run(tmp_path / "split", **split),
    ]
    slow_down(folders[1])

    for result in (compared(*folders), compared(*reversed(folders))):
        sentence = (
            "Same curve: train/loss differs by at most 0; split takes 1 MiB of activations "
            "instead of 4 MiB in whole"
        )
        assert result.headline == f"{sentence}, at 50 % less throughput."
        assert result.verdict.startswith(result.headline)
        assert len(result.headline) <= 3 * 110  # characters of a line on a page of 1280 px


def slow_down(folder: Path) -> None:
    """Each row comes after twice the time."""
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["progress/hours"] *= 2
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_curves_that_part_under_the_same_mathematics_are_not_the_same(tmp_path: Path) -> None:
    whole = make_run(tmp_path / "whole")
    split = make_run(
        tmp_path / "split", derived={"micro_batch": 25}, loss=lambda s: loss_at(s) * (1 + s / 1e6)
    )

    assert compared(whole, split).headline.startswith(
        "Same mathematics, but not the same curve: train/loss differs by up to 0.00097, at 30,000 "
        "samples; "
    )


@pytest.mark.parametrize(("apart", "is_same"), [(2.7e-4, True), (2.7e-3, False)])
def test_rounding_is_measured_by_the_height_of_the_curve(
    tmp_path: Path, apart: float, is_same: bool
) -> None:
    """Digits, overfitted over 450 steps in fp32: micro-batches of 15 and of 100 were 2.7e-4 apart
    at a loss of 1e-3.
    """

    def overfitted(samples: int) -> float:
        return 2.3 * 0.5 ** (samples / 2000) + 1e-4

    def rounded(samples: int) -> float:
        return overfitted(samples) + (apart if samples > 15_000 else 0.0)

    whole = make_run(tmp_path / "whole", loss=overfitted)
    split = make_run(tmp_path / "split", loss=rounded, derived={"micro_batch": 15})

    assert compared(whole, split).headline.startswith("Same curve") == is_same


@pytest.mark.parametrize(
    ("precision", "apart", "is_same"),
    [
        ("fp64", 1e-8, False),
        ("fp64", 1e-11, True),
        ("fp32", 1e-8, True),
        ("fp32", 0.01, False),
        ("bf16", 0.01, True),
    ],
)
def test_how_far_rounding_may_reach_depends_on_the_precision(
    tmp_path: Path, precision: str, apart: float, is_same: bool
) -> None:
    identity = {"precision": precision}
    whole = make_run(tmp_path / "whole", identity=identity)
    far: dict[str, Any] = {
        "loss": lambda s: loss_at(s) * (1 + apart),
        "derived": {"micro_batch": 25},
    }

    headline = compared(whole, make_run(tmp_path / "split", identity=identity, **far)).headline

    assert headline.startswith("Same curve") == is_same


def test_a_run_that_waited_for_a_processor_was_timed_under_other_load(tmp_path: Path) -> None:
    quiet = make_run(tmp_path / "quiet", extra=cpu(4 / 1024, **{names.CPU_WAIT: 0.01}))
    loaded: dict[str, Any] = {
        "derived": {"micro_batch": 25},
        "extra": cpu(1 / 1024, **{names.CPU_WAIT: 0.3}),
    }
    busy = make_run(tmp_path / "busy", **loaded)

    result = compared(quiet, busy)

    assert result.headline.endswith("at the same throughput (timed under other load).")
    (note,) = [note for note in result.notes if note.startswith("timed under other load")]
    assert "busy waited for a processor 30 % of its time" in note
    assert "quiet" not in note


def test_a_difference_inside_the_noise_of_a_process_is_none(tmp_path: Path) -> None:
    """The peak of the second goes up and down by 8 MiB from row to row; the first is 4 MiB below
    its highest.
    """
    steady = make_run(tmp_path / "steady", extra={names.PEAK_RSS: 0.5})
    noisy = make_run(tmp_path / "noisy", derived={"micro_batch": 25})
    path = noisy / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for index, row in enumerate(rows):
        row[names.PEAK_RSS] = 0.5 + (4 / 1024 if index % 2 else -4 / 1024)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    result = compared(steady, noisy)

    assert (
        "peak memory (process RSS) is the same within the noise of the measurement, 8 MiB"
        in result.headline
    )
    assert (
        "the memory of a process varies from row to row by up to 8 MiB: less is no difference"
        in result.notes
    )


def test_activations_of_a_gpu_are_not_compared_with_those_of_a_cpu(tmp_path: Path) -> None:
    here = make_run(tmp_path / "cpu", extra=cpu(1.0))
    there = make_run(tmp_path / "gpu", derived={"device": "H100"}, extra=GPU | cpu(0.5))

    assert "activations" not in compared(here, there).verdict


def test_the_keys_of_json_stay(tmp_path: Path) -> None:
    """Scripts of users read them, whatever the fields of our classes are called."""
    folders = [make_run(tmp_path / "one"), make_run(tmp_path / "two", derived={"micro_batch": 25})]

    data = as_json(compared(*folders))

    assert set(data) == {
        *("headline", "verdict", "same_mathematics", "agreements", "target", "set_ups"),
        *("differing_keys", "left_out", "notes"),
    }
    assert set(data["agreements"][0]) == {
        *("metric", "largest", "height", "at_samples", "rows", "seeds"),
    }
    set_up = data["set_ups"][1]
    assert set(set_up) == {"label", "recipe_hash", "seeds", "outcome", "hours_to_target", "runs"}
    assert set(set_up["outcome"]) == {
        *("samples", "steps", "metrics", "noise_scale", "noise_scale_range", "break_even"),
        *("break_even_range", "apart"),
    }
    assert set_up["outcome"]["apart"]["train/loss"] == data["agreements"][0]
