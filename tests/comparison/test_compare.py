"""scripts/compare.py as it is typed: what it prints, writes, and exits with."""

import base64
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.comparison.folders import loss_at, make_run
from train import metric_names as names
from train.accumulate import compute_gradient
from train.compare import main
from train.comparison.compare import compare
from train.comparison.memory_plot import memory_throughput
from train.comparison.read import load_runs
from train.main import main as train_main

ROOT = Path(__file__).parents[2]
PNG = b"\x89PNG\r\n"


def pair(tmp_path: Path, apart: float = 0.0, **of_second: Any) -> list[str]:
    first = make_run(tmp_path / "first")
    second = make_run(
        tmp_path / "second",
        derived={"micro_batch": 25},
        loss=lambda s: loss_at(s) + apart,
        **of_second,
    )
    return [str(first), str(second)]


def test_two_real_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = [
        "configs/digits.yaml",
        f"output_dir={tmp_path}",
        "wandb.mode=disabled",
        "precision=fp64",
    ]
    common += ["duration.steps=20", "log.every_steps=2", "evaluate.every_steps=5"]
    for more in (["name=whole"], ["name=split", "batch.micro=30"]):
        assert train_main([*common, *more], "accumulate", compute_gradient) == 0
    capsys.readouterr()

    code = main(
        [str(tmp_path / "whole"), str(tmp_path / "split"), "--json", "--assert-equal", "1e-10"]
    )

    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert code == 0, printed.err
    assert result["same_mathematics"]
    assert [(agreed["metric"], agreed["rows"]) for agreed in result["agreements"]] == [
        ("train/loss", 10),
        ("eval/loss", 4),
    ]
    assert {key["key"] for key in result["differing_keys"]} == {"accumulation_steps", "micro_batch"}
    rows = [
        json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    ]
    hours = [row[names.HOURS] for row in rows]
    assert hours == sorted(hours), "an evaluation tells the training time so far"


@pytest.mark.parametrize(
    ("apart", "tolerance", "code"), [(0, 0, 0), (1e-7, 1e-6, 0), (1e-5, 1e-6, 1)]
)
def test_assert_equal(
    tmp_path: Path, apart: float, tolerance: float, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*pair(tmp_path, apart), "--assert-equal", str(tolerance)]) == code

    printed = capsys.readouterr().err
    assert printed.startswith(
        f"equal within {tolerance:g}: train/loss" if code == 0 else "not equal within 1e-06:"
    )


def test_assert_equal_is_not_met_by_what_was_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other_seed = pair(tmp_path / "seeds", identity={"seed": 1})
    killed = pair(tmp_path / "killed", ended=None)
    other_rows = pair(tmp_path / "rows", every=1700, last=5100)
    damaged = pair(tmp_path / "damaged")
    (make_run(tmp_path / "bad") / "plan.json").unlink()

    for arguments, reason in (
        (other_seed, "second (seed 1) has no partner"),
        (killed, "second has not ended, or was killed"),
        (other_rows, "second (seed 0) has no partner"),
        ([*damaged, str(tmp_path / "bad")], "bad was skipped: its plan.json cannot be read"),
        (damaged[:1], "first (seed 0) has no partner"),
    ):
        assert main([*arguments, "--assert-equal", "1"]) == 1
        assert reason in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--json"], ["--out"]])
def test_a_reader_that_went_away_is_no_error(tmp_path: Path, more: list[str]) -> None:
    page = tmp_path / "out" / "compare.html"
    if more == ["--out"]:
        more = ["--out", str(page.parent)]
    read, write = os.pipe()
    os.close(read)
    try:
        script = [sys.executable, str(ROOT / "scripts" / "compare.py"), *pair(tmp_path), *more]
        done = subprocess.run(script, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(write)

    assert done.returncode == 0
    assert page.exists() == bool(done.stderr) == ("--out" in more)
    assert not done.stderr or done.stderr.startswith(f"wrote {page} ")


def test_a_run_that_only_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It was stopped before a row was due."""
    first, second = pair(tmp_path, ended="stopped by SIGTERM")
    row = {
        names.GLOBAL_STEP: 7,
        names.SAMPLES_SEEN: 700,
        names.HOURS: 0.01,
        names.SAVE_SECONDS: 0.5,
    }
    (Path(second) / "metrics.jsonl").write_text(json.dumps(row) + "\n")

    assert main([second]) == 0
    alone = capsys.readouterr().out
    assert main([first, second]) == 0
    printed = capsys.readouterr().out

    assert re.search(
        r"Outcome at the end of each\n +set-up +samples +steps\n +second +700 +7\n", alone
    )
    assert "second has no row of training" in alone
    assert re.search(r"\n +first +30,000 +300 ", printed)
    assert re.search(r"\n +second +700 +7 ", printed)


def test_points_are_joined_by_batch_and_ranks(tmp_path: Path) -> None:
    """A line from one rank to two would be no curve of anything."""
    for micro, ranks in ((100, 1), (25, 1), (50, 2), (25, 2)):
        make_run(
            tmp_path / f"micro{micro}-{ranks}", derived={"micro_batch": micro, "world_size": ranks}
        )
    found = load_runs([str(tmp_path)])

    drawing = memory_throughput(compare(found.runs))

    assert drawing
    assert "and ranks" in drawing.caption
    assert {"batch 100, 1 rank", "batch 100, 2 ranks"} < {
        text.get_text() for text in drawing.figure.legends[0].get_texts()
    }


def test_a_run_without_a_micro_batch_of_its_own_joins_no_line(tmp_path: Path) -> None:
    for name, micro in (("one", 50), ("by-length", None)):
        make_run(tmp_path / name, derived={"micro_batch": micro})

    drawing = memory_throughput(compare(load_runs([str(tmp_path)]).runs))

    assert drawing
    assert "Lines" not in drawing.caption


def test_many_set_ups_are_counted_in_the_title(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / f"micro{micro}", derived={"micro_batch": micro})
        for micro in (10, 20, 30, 40)
    ]

    for count, title in (
        (3, "Comparison of micro10, micro20, micro30"),
        (4, "Comparison of 4 set-ups"),
    ):
        assert main([*map(str, runs[:count]), "--out", str(tmp_path / "out")]) == 0
        assert f"<h1>{title}</h1>" in (tmp_path / "out" / "compare.html").read_text()


def test_bad_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "missing")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "RUN" in capsys.readouterr().err


def test_text_has_the_parts_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = {names.NOISE_SCALE: 321.0, names.BREAK_EVEN: 2.71, names.MFU: 0.425}
    main(pair(tmp_path, extra=known, environment={"git": {"commit": "2", "dirty": True}}))

    text = capsys.readouterr().out
    titles = [
        "Same curve",
        "Set-up",
        "Outcome at equal samples",
        "Cost in time",
        "Memory",
        "Keys",
        "Notes",
    ]
    places = [text.index(f"\n{title}" if index else title) for index, title in enumerate(titles)]
    assert places == sorted(places)
    assert re.search(r"noise scale +fastest micro-steps\n +first .* -$", text, re.MULTILINE)
    assert re.search(r"second .* 321 +2\.710$", text, re.MULTILINE)
    assert re.search(r"MFU \(%\) .*\n +first .* - .*\n +second .* 42\.5\d* ", text)
    assert re.search(r"git\.dirty +execution +false +true", text)
    assert "Share of a step's time" not in text  # none was measured


class Links(HTMLParser):
    """What a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [
            value or ""
            for name, value in attrs
            if name in ("src", "href", "srcset", "data", "action")
        ]
        if tag not in ("meta", "img", "!doctype"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("x", ["samples", "steps", "hours"])
def test_pictures_and_a_page_that_needs_nothing_else(tmp_path: Path, x: str) -> None:
    gpu = {
        "memory/peak_allocated_gib": 2.0,
        "memory/peak_reserved_gib": 3.0,
        "memory/optimizer_peak_gib": 1.0,
    }
    phases = {
        "time/data_seconds": 0.02,
        "time/forward_backward_seconds": 0.07,
        "time/optimizer_seconds": 0.01,
    }
    for seed in (0, 1):
        make_run(tmp_path / "runs" / f"a<b-{seed}", identity={"seed": seed}, extra=gpu | phases)
        make_run(
            tmp_path / "runs" / f"c-{seed}",
            identity={"seed": seed},
            derived={"world_size": 2},
            extra=gpu | phases,
        )

    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--x", x]) == 0

    pictures = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.png")}
    assert set(pictures) == {"loss.png", "evaluation.png", "memory_throughput.png", "costs.png"}
    text = (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    links = Links()
    links.feed(text)
    assert not links.open
    assert all(link.startswith("data:image/png;base64,") for link in links.found)
    assert [base64.b64decode(link.partition(",")[2]) for link in links.found] == [
        pictures[name]
        for name in ("loss.png", "evaluation.png", "memory_throughput.png", "costs.png")
    ]
    assert all(picture.startswith(PNG) for picture in pictures.values())
    assert "a&lt;b" in text
    assert "a<b" not in text
    assert "url(" not in text
    assert "@import" not in text


@pytest.mark.parametrize(
    "second",
    [
        {"loss": lambda s: None},  # nothing finite
        {"loss": lambda s: -loss_at(s), "identity": {"optimizer.lr": 1.0}},  # no log scale
        {"last": 1000},  # one row, no evaluation
        {"derived": {"parameters_gib": None, "device": None, "micro_batch": None}},
    ],
)
def test_pictures_of_odd_runs(tmp_path: Path, second: dict[str, Any]) -> None:
    arguments = [str(make_run(tmp_path / "first")), str(make_run(tmp_path / "second", **second))]

    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "compare.html").exists()


def test_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    assert main([*pair(tmp_path), "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert "no pictures without matplotlib" in printed.err
    assert "first" in printed.out, "the text needs no matplotlib"
    assert main(pair(tmp_path / "again")) == 0


def test_the_script_imports_neither_torch_nor_matplotlib_nor_wandb(tmp_path: Path) -> None:
    code = (
        "import sys; from train.compare import main; main(sys.argv[1:]); "
        "assert not {'torch', 'matplotlib', 'wandb', 'pandas', 'datasets'} & set(sys.modules), "
        "'slow to start'"
    )
    subprocess.run(
        [sys.executable, "-c", code, *pair(tmp_path)], check=True, cwd=ROOT, capture_output=True
    )

    script = [sys.executable, ROOT / "scripts" / "compare.py", *pair(tmp_path / "elsewhere")]
    done = subprocess.run(script, check=False, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Same curve: train/loss")
