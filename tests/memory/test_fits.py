"""What fits, as it is printed and as JSON; and that the line to paste is one that trains."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import argv, record, rows
from tests.memory.test_predict import ADAMW, GPT
from train.batch import make_plan
from train.config import load
from train.launching.arguments import parse as parse_launch
from train.launching.choose import Ranks
from train.launching.command import build
from train.launching.launcher_file import find
from train.memory.fits import launch_command, recommended, sizes_to_trace, tabulate, usable_bytes
from train.memory.memory_trace import AS_CONFIGURED, MemoryTrace, save_trace, saved_trace
from train.memory.predict import Peaks
from train.plan import __main__ as plan
from train.plan.stages import in_stages
from train.plan.steps import plan_batch
from train.plan.unequal import with_shares

MIB = 2**20
RUN = (*ADAMW, *GPT, "batch={effective: 12}", "model.args.width=64")


@pytest.fixture(autouse=True)
def _a_cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_page_whose_line_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A memory of which so much is counted on that 6 samples fit on a rank, and 12 do not."""
    # the others: tests/memory/test_predict.py
    monkeypatch.setattr(plan, "VARIANTS", (AS_CONFIGURED,))
    words = argv(tmp_path, *RUN)
    assert plan.main([*words, "--memory=562MiB", "--ranks", "1,2", "--json"]) == 0
    page: dict[str, Any] = json.loads(capsys.readouterr().out)

    usable = int(0.92 * 562 * MIB) - 512 * MIB
    assert page["usable_bytes"] == usable_bytes(562 * MIB) == usable
    numbers = page["model"]["parameters"]
    # embedding, three blocks, the last norm
    assert numbers == 300 * 64 + 3 * (12 * 64 * 64 + 2 * 64) + 64
    # two moments, and a counter for each of 20 tensors
    assert page["model"]["optimizer"] == 8 * numbers + 4 * 20
    alone, two = page["ranks"]
    assert [row["micro"] for row in alone["rows"]] == [1, 2, 4, 6, 12]
    assert [row["accumulation_steps"] for row in alone["rows"]] == [12, 6, 3, 2, 1]
    for row in (*alone["rows"], *two["rows"]):
        assert row["fits"] == (row["peak"] <= usable)
        assert row["source"] == "predicted"
        assert row["peak"] == sum(row["anatomy"].values())
    assert [row["fits"] for row in alone["rows"]] == [True, True, True, True, False]
    assert all(row["fits"] for row in two["rows"])
    # Of two ranks each keeps its gradients, as DDP's buckets, as one does that has several
    # micro-steps.
    assert two["rows"][-1]["peak"] == alone["rows"][3]["peak"]
    assert alone["all_reduce_bytes_per_sample"] == 0
    assert two["all_reduce_bytes_per_sample"] == 4 * numbers / 12

    assert page["recommended"]["micro"] == 6
    launched = shlex.split(page["line"])
    assert launched[:3] == ["NPROC=1", "./launch.sh", "accumulate"]
    trace = record(launched[3:])
    assert len(trace.weights) > 1
    assert {row["batch/micro_size"] for row in rows(tmp_path)} >= {6}


def foresight() -> MemoryTrace:
    """10 bytes a sample, and 100 of gradients where they stay."""
    sizes = range(1, 257)
    peaks = {
        steps: Peaks(traced={n: {"all": 10 * n + 100 * (steps - 1), "samples": 0} for n in sizes})
        for steps in (1, 2)
    }
    return MemoryTrace(target="cuda", sample_bytes=3, peaks={AS_CONFIGURED: peaks})


def test_a_later_stage_of_a_schedule_has_more_micro_steps() -> None:
    """A lone rank holds gradients between the 4 micro-steps of 64 samples that the second stage
    has.
    """
    stages = in_stages(
        make_plan(64, "all", None, world_size=1, dataset_size=640), {0: 64, 640: 256}, None
    )

    (table,) = tabulate(foresight(), stages, [1], 739)

    assert [row.micro for row in table.rows] == [1, 2, 4, 8, 16, 32, 64]
    assert [(row.accumulation_steps, row.peak) for row in table.rows][-2:] == [(8, 420), (4, 740)]
    assert [row.fits for row in table.rows][-2:] == [True, False]
    assert table.host_bytes == 2 * 256 * 3


@pytest.mark.parametrize("stated", ["in a file", "on the command line"])
def test_the_line_keeps_a_schedule(tmp_path: Path, stated: str) -> None:
    config, *words = argv(
        tmp_path, "batch.schedule={0: 12, 30: 24}", "optimizer.lr_on_schedule=keep"
    )
    if stated == "in a file":
        own = tmp_path / "own.yaml"
        own.write_text(
            f"extends: {Path(config).absolute()}\nbatch: {{schedule: {{0: 12, 30: 24}}}}\n"
        )
        config, words = str(own), [word for word in words if not word.startswith("batch.")]
    loaded = load([config, *words])
    batch = plan_batch(loaded.config, "accumulate", 1, 37)
    fit = recommended(tabulate(foresight(), batch, [1], None))
    assert fit is not None

    line = shlex.split(launch_command(fit, loaded, "accumulate", batch))

    assert line[:3] == ["NPROC=1", "./launch.sh", "accumulate"]
    typed = load(line[3:]).config
    assert (typed.batch.schedule, typed.batch.micro, typed.batch.effective) == (
        {0: 12, 30: 24},
        12,
        None,
    )


def test_a_rank_with_a_larger_share_is_what_must_fit() -> None:
    batch = with_shares(make_plan(64, "all", None, world_size=2, dataset_size=640), [3, 1], None)

    (table,) = tabulate(foresight(), batch, [2], None)

    assert (
        table.share == max(row.micro for row in table.rows) == max(sizes_to_trace(batch, [2])) == 48
    )
    assert table.rows[-1].peak == 480 + 100


def test_a_list_of_one_number_a_rank_is_for_so_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        plan.main([*argv(tmp_path, "batch.shares=[1]"), "--memory", "24GiB", "--ranks", "1,2"]) == 2
    )

    assert "got --ranks 1,2, but batch.shares" in capsys.readouterr().err


def test_what_was_traced_is_of_these_samples_and_this_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = (load(argv(tmp_path, f"data.image.size={size}")).config for size in (32, 224))
    save_trace(foresight(), small)

    known = saved_trace(small, "cuda")
    assert known is not None
    assert known.peak(8, accumulation_steps=2) == 180
    assert saved_trace(large, "cuda") is None
    monkeypatch.setattr("train.memory.memory_trace.source_hash", lambda config: "edited since")
    assert saved_trace(small, "cuda") is None


def test_what_cannot_be_traced_has_the_part_that_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = "model={target: tests.memory.test_predict.Reading, args: {}}"

    assert (
        plan.main(["standard", *argv(tmp_path, "precision=fp32", model), "--memory", "24GiB"]) == 0
    )

    text = capsys.readouterr().out
    assert "21 parameters: weights and buffers 8.01e-05 MiB" in text
    assert "cannot be traced without memory (DataDependentOutputException" in text
    assert "NPROC" not in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "Set: --memory 24GiB"),
        (["--memory", "12"], "got --memory 12"),
        (["--memory", "0GiB"], "got --memory 0GiB"),
        (["--memory", "24GiB", "--ranks", "0,1"], "Set: --ranks 1,2,4,8"),
    ],
)
def test_what_is_asked_for_in_other_words(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan.main(["my.yaml", *words]) == 2

    assert says in capsys.readouterr().err


def test_launch_hands_it_over() -> None:
    arguments = parse_launch(
        ["standard", "--plan", "--memory", "24GiB", "--ranks=1,2", "my.yaml", "batch.micro=4"]
    )
    command = build(arguments, find(None), Ranks(2, gpus=0, machines=1), 120)

    assert (arguments.config, arguments.needs_ranks) == ("my.yaml", False)
    words = [
        "train.plan",
        "standard",
        "my.yaml",
        "--plan",
        "--memory",
        "24GiB",
        "--ranks=1,2",
        "batch.micro=4",
    ]
    assert command.words[1:] == ["-m", *words]
