"""The screen on a terminal: 80x24, resized, dumb, without letters, closed; whatever is printed
beside the live line.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.terminal import Terminal
from train import metric_names as names
from train.report.best import Best
from train.report.folder import RunFolder
from train.report.journal import Journal
from train.report.outlets import _tracking_lines
from train.report.screen import Screen
from train.report.state import RunState
from train.report.tables import MOST_ON_SCREEN, Tables
from train.report.tracker import Tracker

ROOT = Path(__file__).parents[2]
NASTY = "\x1b[2J\x1b[31mred \x07\r\n" + "x" * 100_000


def row(step: int) -> dict[str, float]:
    return {
        names.GLOBAL_STEP: step,
        names.LOSS: 1.25,
        names.LEARNING_RATE: 1e-3,
        names.EFFECTIVE_SIZE: 100,
        names.SAMPLES_PER_SECOND: 1234.5,
        names.STEP_SECONDS: 0.5,
        names.SKIPPED_STEPS: 0,
        names.PEAK_RSS: 0.75,
    }


def wait_for_file(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.02)


def show(folder: str, stop_at: int = 10**6) -> None:
    """Two messages, a live line, resized when FOLDER/go is there, a print of the user's own, the
    end.
    """
    with (Path(folder) / "log.txt").open("w", encoding="utf-8") as log:
        screen = Screen(200, log, 80.0)
        screen.say("plan      100 samples ±0", f"sample    {NASTY}")
        screen.best("accuracy 0.91 (best 0.95 at step 7)")
        screen.log(row(8))
        wait_for_file(f"{folder}/go")
        another = "from train.terminal import write_lines; write_lines('of another process')"
        subprocess.run([sys.executable, "-c", another], check=True, cwd=ROOT)
        print("mine [/b] :smile:")
        print("a warning", file=sys.stderr)
        screen.log(row(9))
        wait_for_file(f"{folder}/end")
        screen.log(row(10))
        screen.end("finished: 200 steps")
        (Path(folder) / "survived").write_text("")


def test_the_live_line_at_80_and_at_40_columns(tmp_path: Path) -> None:
    with Terminal(show, str(tmp_path)) as terminal:
        seen = terminal.wait_for(lambda seen: "step   8/200" in seen.lines[-1])
        assert len(seen.shown[-1]) < 80
        assert "  loss 1.2500  accuracy 0.91 (best 0.95 at step 7)  1,234/s" in seen.shown[-1]

        terminal.resize(40)
        terminal.wait_for(lambda seen: seen.shown[-1] == "step   8/200  loss 1.2500  1,234/s")
        (tmp_path / "go").touch()
        terminal.wait_for(lambda seen: "step   9/200" in seen.lines[-1])
        terminal.resize(80)
        terminal.wait_for(lambda seen: len(seen.shown[-1]) > 40)
        (tmp_path / "end").touch()
        seen = terminal.read_all()

    assert seen.unknown == []
    assert not seen.hidden
    assert seen.shown[0] == "plan      100 samples ±0"
    assert seen.shown[1].startswith("sample    \\x1b[2J\\x1b[31mred \\x07")
    after = [line for line in seen.shown[2:] if not line.startswith("xx")]
    assert after[0].endswith("(100,000 characters)") or "... (" in "".join(seen.shown)
    assert after[-5:] == [
        "of another process",
        "mine [/b] :smile:",
        "a warning",
        "finished: 200 steps",
        "",
    ]
    assert not any("step " in line for line in seen.shown), (
        "the live line is gone, and left nothing behind"
    )
    assert terminal.process.exitcode == 0
    log = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.partition("  loss")[0] for line in log if line.startswith("step")] == [
        f"step {step:>3}/200" for step in (8, 9, 10)
    ]


@pytest.mark.parametrize(
    "environ", [{"TERM": "dumb"}, {"TERM": "xterm", "PYTHONIOENCODING": "ascii", "NO_COLOR": "1"}]
)
def test_a_terminal_that_can_do_less(tmp_path: Path, environ: dict[str, Any]) -> None:
    (tmp_path / "go").touch()
    (tmp_path / "end").touch()
    with Terminal(show, str(tmp_path), **environ) as terminal:
        seen = terminal.read_all()

    assert terminal.process.exitcode == 0, seen.shown
    assert (seen.unknown, seen.hidden) == ([], False)
    assert seen.shown[0] == "plan      100 samples " + (
        "±0" if environ["TERM"] == "dumb" else "\\xb10"
    )
    steps = [line for line in seen.shown if line.startswith("step")]
    assert len(steps) == (3 if environ["TERM"] == "dumb" else 0)
    assert seen.shown[-2:] == ["finished: 200 steps", ""]


def test_a_terminal_that_is_closed_ends_nothing(tmp_path: Path) -> None:
    with Terminal(ignoring_hangup, str(tmp_path)) as terminal:
        terminal.wait_for(lambda seen: "step   8/200" in seen.lines[-1])
        terminal.close()
        (tmp_path / "go").touch()
        (tmp_path / "end").touch()
        terminal.process.join(20)

    assert (tmp_path / "survived").exists()
    assert (tmp_path / "log.txt").read_text().splitlines()[-1] == "finished: 200 steps"


def ignoring_hangup(folder: str) -> None:
    """A run saves and ends at SIGHUP; here it goes on, to show that the screen would let it."""
    import signal

    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with (Path(folder) / "log.txt").open("w", encoding="utf-8") as log:
        screen = Screen(200, log, 80.0)
        screen.log(row(8))
        wait_for_file(f"{folder}/go")
        for step in range(9, 40):
            screen.log(row(step))
            screen.say(f"step {step} was logged")
            time.sleep(0.02)
        screen.end("finished: 200 steps")
    (Path(folder) / "survived").write_text("")


def test_what_goes_to_a_file_stays_there(tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    (tmp_path / "end").touch()
    with Terminal(show_with_errors_elsewhere, str(tmp_path)) as terminal:
        seen = terminal.read_all()

    assert "a warning" not in seen.shown
    assert (tmp_path / "err").read_text() == "a warning\n"


def show_with_errors_elsewhere(folder: str) -> None:
    with (Path(folder) / "err").open("w") as sys.stderr:
        show(folder)


def test_samples_that_are_no_texts_do_not_fill_the_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short: Any = {"prompt": "\udc80", "output": 3}
    samples: Any = [{"prompt": b"\xff\x00", "output": NASTY, "label": None}, *[short] * 999]
    with (tmp_path / "log.txt").open("w", encoding="utf-8") as log:
        folder = RunFolder(path=tmp_path)
        Tables(folder, Screen(200, log, 80.0), Tracker()).show({names.GLOBAL_STEP: 8}, samples)

    shown = capsys.readouterr().out.split("\n")
    assert len(shown) == MOST_ON_SCREEN + 2
    assert shown[0].startswith("sample    \\xff\\x00 | \\x1b[2J\\x1b[31mred \\x07 xxx")
    assert shown[1] == "sample    \\udc80 | 3"
    assert shown[-2] == f"sample    ... {1000 - MOST_ON_SCREEN} more in samples.jsonl"
    assert max(map(len, shown)) < 400
    kept = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert len(kept) == 1000
    assert kept[0]["output"] == NASTY
    assert kept[1] == {names.GLOBAL_STEP: 8, "prompt": "\\udc80", "output": "3"}


def test_rows_that_wandb_gets_twice_are_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        "".join(json.dumps({names.GLOBAL_STEP: step}) + "\n" for step in (19, 20, 21, 30))
        + '{"half'
    )
    journal = Journal(path, last_step=20)
    journal.finish(0)
    again = Journal(path, last_step=20)
    again.finish(0)
    state = RunState(Best.of(None), run_id="abc")
    state.progress.step = 20
    tracker = Tracker()

    assert journal.last_removed == 30
    assert again.last_removed == 0
    assert _tracking_lines(tracker, state, 30) == ["W&B       not tracked: wandb.mode=disabled"]
    tracker.run_id = "abc"
    twice = (
        "          has rows of steps 21 to 30 from before, and gets them again; metrics.jsonl "
        "has each once"
    )
    assert _tracking_lines(tracker, state, 30)[1:] == [twice]
    assert _tracking_lines(tracker, state, 0)[1:] == []
    tracker.run_id = "another"
    assert _tracking_lines(tracker, state, 30)[1:] == []
