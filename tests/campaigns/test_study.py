"""The campaigns that write into docs/results/, without the runs: what they start, pass over, and
say.
"""

import json
import re
import sys
from pathlib import Path

import pytest

from tests.campaigns import accumulation
from tests.campaigns.accumulation import STUDIES, report
from tests.campaigns.launched import Launch, run_all, write_between
from tests.comparison.folders import make_run
from train import metric_names as names
from train.config import load


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_what_is_started(study: accumulation.Study, quick: bool, tmp_path: Path) -> None:
    """The effective batch whole, in a quarter and a sixteenth of it, on one rank and two; every
    config is valid.
    """
    launches = study.launches((0, 1), quick)

    assert len({launch.name for launch in launches}) == len(launches) == 2 * 2 * 3
    assert [launch.loop for launch in launches[:3]] == ["standard", "accumulate", "accumulate"]
    for launch in launches:
        words = launch.command(tmp_path)
        config = load(words[words.index("-m", 3) + 2 :]).config
        assert (config.name, config.seed) == (launch.name, int(launch.name[-1]))
        if launch.loop == "accumulate":
            effective = config.batch.effective or (config.batch.effective_tokens or 0) // (
                config.data.block_size or 1
            )
            assert effective // int(config.batch.micro) in (4, 16)
        assert ("--cpu" in words) is (launch.ranks == 1)
        assert ("--multi_gpu" in words) is (launch.ranks == 2)


def test_what_has_finished_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names_of = {"done": "finished", "stopped": "stopped by SIGINT", "killed": None}
    for name, ended in names_of.items():
        make_run(tmp_path / name, ended=ended)
    started = "import json, sys; json.dump({'reason': 'finished'}, open(sys.argv[1], 'w'))"

    def command(self: Launch, folder: Path) -> list[str]:
        assert not (folder / self.name).exists(), "a run that was stopped is begun again"
        (folder / self.name).mkdir()
        return [sys.executable, "-c", started, str(folder / self.name / "ended.json")]

    monkeypatch.setattr(Launch, "command", command)
    run_all([(Launch("standard", "x.yaml", name, 1), tmp_path) for name in [*names_of, "new"]])

    assert re.findall(r"/(\w+)  (\w+)", capsys.readouterr().out)[0] == ("done", "has")
    assert {
        json.loads((tmp_path / name / "ended.json").read_text())["reason"]
        for name in [*names_of, "new"]
    } == {"finished"}


def test_a_run_that_fails_ends_the_campaign_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Launch, "command", lambda *_: [sys.executable, "-c", "raise SystemExit('no such loop')"]
    )

    with pytest.raises(SystemExit, match="bad: exit code 1\nno such loop"):
        run_all([(Launch("standard", "x.yaml", "bad", 1), tmp_path)])


def test_a_page_keeps_what_stands_outside_of_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text("# Measured\n")
    for text in ("old", "new"):
        write_between(page, "study", text)
        write_between(page, "other", "stays")

    study, other = (
        "<!-- study: begin -->\nnew\n<!-- study: end -->",
        "<!-- other: begin -->\nstays\n<!-- other: end -->",
    )
    assert page.read_text() == f"# Measured\n\n{study}\n\n{other}\n"


def test_what_the_page_says(tmp_path: Path) -> None:
    """Throughput and memory against the standard loop on as many ranks with the same seed."""
    for ranks, micro, steps, speed, memory in (
        (1, 100, 1, 1.0, 0.5),
        (1, 25, 4, 0.5, 0.4),
        (2, 50, 1, 2.0, 0.5),
    ):
        for seed in (0, 1):
            run = make_run(
                tmp_path / "runs" / f"set{micro}-{ranks}-seed{seed}",
                identity={"seed": seed},
                derived={
                    **{"loop": "standard" if steps == 1 else "accumulate", "world_size": ranks},
                    **{"micro_batch": micro, "accumulation_steps": steps},
                },
                extra={names.PEAK_RSS: memory, names.BREAK_EVEN: 3.0},
            )
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            hours = [row | {names.HOURS: row[names.HOURS] / speed / (1 + seed)} for row in rows]
            (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in hours))
            (run / "log.txt").write_text("step 1\naccumulation: about 3 micro-steps\nnext\n")

    text = report(STUDIES[0], tmp_path / "runs", tmp_path / "results" / "page.md")

    assert (
        "| 1 | 25 | 4 | 25 (25 to 25) | 0.50 (0.50 to 0.50) | -102 (-102 to -102) MiB | 0.0e+00 | "
        "3 (3 to 3) |" in text
    )
    assert (
        "1 rank, 4 micro-batches of 25 instead of one of 100: -102 MiB of memory (of 512), 0.50 of "
        "the" in text
    )
    assert text.count("about 3 micro-steps") == 1
    assert "Same mathematics in 6 runs of 3 set-ups" in text
    for picture in re.findall(r"\]\((\.\./pictures/.*?)\)", text):
        assert 0 < (tmp_path / "results" / picture).resolve().stat().st_size < 150_000
