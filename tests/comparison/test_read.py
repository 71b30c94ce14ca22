"""Folders as they are found on a disk: whole, damaged, partial, or no runs at all."""

from pathlib import Path

import pytest

from tests.comparison.folders import make_run
from train.comparison.read import CannotRead, load_runs
from train.comparison.rows import split_config


def names(*arguments: Path) -> list[str]:
    return [run.name for run in load_runs([str(argument) for argument in arguments]).runs]


def test_a_parent_stands_for_all_runs_below_in_the_order_of_their_start(tmp_path: Path) -> None:
    for number, name in enumerate(["b", "deep/er/a", "c"]):
        make_run(
            tmp_path / name, environment={"started_at": f"2026-01-0{number + 1}T00:00:00+00:00"}
        )

    (tmp_path / "b" / "checkpoints").mkdir()
    # what lies in a run folder is part of that run
    (tmp_path / "b" / "checkpoints" / "plan.json").write_text("{}")

    found = load_runs([str(tmp_path)])

    assert ([run.name for run in found.runs], found.skipped) == (["b", "a", "c"], [])


def test_a_run_named_twice_counts_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "one")
    make_run(tmp_path / "runs" / "two")

    assert names(run, tmp_path / "runs", tmp_path) == ["one", "two"]


@pytest.mark.parametrize(
    ("file", "text", "why"),
    [
        ("plan.json", "{", "its plan.json is damaged"),
        ("plan.json", "[]", "its plan.json is damaged"),
        ("plan.json", '{"identity": {}}', "its plan.json is damaged: derived is missing"),
        ("plan.json", None, "its plan.json cannot be read"),
        ("metrics.jsonl", "", "its metrics.jsonl holds no row"),
        ("metrics.jsonl", "nonsense\n", "its metrics.jsonl holds no row"),
        ("metrics.jsonl", None, "its metrics.jsonl cannot be read"),
    ],
)
def test_a_damaged_run_is_named_and_left_out(
    tmp_path: Path, file: str, text: str | None, why: str
) -> None:
    make_run(tmp_path / "good")
    path = make_run(tmp_path / "bad") / file
    if text is None:
        path.unlink()
    else:
        path.write_text(text)

    found = load_runs([str(tmp_path)])

    assert [run.name for run in found.runs] == ["good"]
    (left_out,) = found.skipped
    assert Path(left_out.where).name == "bad"
    assert left_out.why.startswith(why)


def test_a_run_that_was_killed_keeps_its_whole_rows(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", ended=None)
    path = folder / "metrics.jsonl"
    path.write_text(
        path.read_text()[:-40] + "\n[1]\n" + '{"train/loss": 1}\n{"progress/samples_seen": null}\n'
    )
    (folder / "environment.json").unlink()
    (folder / "config.yaml").write_text("a: [")

    (run,) = load_runs([str(folder)]).runs

    assert (run.ended, len(run.train_rows)) == (None, 29)
    assert "4 damaged lines of metrics.jsonl skipped" in run.remarks
    assert any(remark.startswith("its host and versions are unknown") for remark in run.remarks)
    assert any(remark.startswith("its config.yaml cannot be read") for remark in run.remarks)


def test_a_row_written_again_after_a_restart_counts_once(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", last=1000)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"progress/samples_seen": 1000, "train/loss": 7, "train/learning_rate": 1}\n')

    (run,) = load_runs([str(folder)]).runs

    assert run.curve("train/loss") == {1000: 7.0}


def test_what_is_no_run_is_refused_with_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for argument, reason in (("empty", "is no run folder"), ("missing", "there is no folder")):
        with pytest.raises(CannotRead, match=reason) as error:
            load_runs([str(tmp_path / argument)])
        assert all(word in str(error.value) for word in ("got:", "why:", "Run:"))


def test_nothing_but_damaged_runs_is_refused(tmp_path: Path) -> None:
    (make_run(tmp_path / "bad") / "plan.json").write_text("")

    with pytest.raises(
        CannotRead, match=r"no run can be compared\n.*bad: its plan\.json is damaged"
    ):
        load_runs([str(tmp_path)])


@pytest.mark.parametrize("key", ["schedule", "schedule_tokens"])
def test_a_schedule_of_the_batch_comes_from_the_plan_alone(key: str) -> None:
    config = {"batch": {key: {0: 64, 120: 128}, "micro": 8}, "seed": 1}

    assert split_config(config) == ({"seed": 1}, {"batch.micro": 8})
