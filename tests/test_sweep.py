"""Sweeps: each file is what `wandb sweep` takes, each of its runs can be trained, and a grid needs
no server.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from train import sweep
from train.config import load, run_name
from train.report.wandb_settings import DEFAULT_PROJECT
from train.sweep import SweepError, main, read_sweep

ROOT = Path(__file__).parents[1]
SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
GOOD: dict[str, Any] = {
    "program": "train/accumulate.py",
    "method": "grid",
    "parameters": {
        "batch.micro": {"values": [50, 25]},
        "seed": {"values": [0, 1]},
        "optimizer.lr": {"value": 1e-8},
    },
    "command": [
        "accelerate",
        "launch",
        "-m",
        "train.accumulate",
        "configs/digits.yaml",
        "${args_no_hyphens}",
    ],
}


def write(folder: Path, **changes: Any) -> str:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(GOOD | changes, sort_keys=False))
    return str(path)


@pytest.fixture(name="launched")
def fake_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """In place of launch.sh: writes its arguments down, and exits with the seed where that is 2, 75
    or 130.
    """
    script, log = tmp_path / "launch.sh", tmp_path / "launched"
    script.write_text(
        f'#!/bin/sh\necho "$@" >>{log}\n'
        "for a; do case $a in seed=2 | seed=75 | seed=130) exit ${a#seed=} ;; esac; done\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(sweep, "LAUNCH", (str(script),))
    return lambda: log.read_text().splitlines()


def test_there_are_sweeps() -> None:
    assert [path.stem for path in SWEEPS] == ["accumulation", "effective_batch", "seeds"]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_each_run_of_each_sweep_is_a_config(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    read = read_sweep(path)

    loaded = [load([read.config, *trial]) for trial in read.trials]

    assert len({run_name(each) for each in loaded}) == len(loaded) > 1
    assert (read.loop, read.config) == ("accumulate", "configs/digits.yaml")


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_each_sweep_is_what_wandb_takes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent of wandb fills in the command; the same key=value come out as without it."""
    monkeypatch.chdir(ROOT)
    code = (
        "import json, sys; from wandb.sdk.launch.sweeps.utils import create_sweep_command_args as "
        "fill; print(json.dumps(fill({'args': json.loads(sys.argv[1])})['args_no_hyphens']))"
    )
    said = yaml.safe_load(path.read_text())
    parameters = said["parameters"].items()
    first = {
        key: {"value": spec["values"][0] if "values" in spec else spec["value"]}
        for key, spec in parameters
    }

    filled = subprocess.run(
        [sys.executable, "-c", code, json.dumps(first)], check=True, capture_output=True, text=True
    ).stdout

    assert json.loads(filled) == list(read_sweep(path).trials[0])
    assert (ROOT / said["program"]).is_file()
    assert (said["command"][0], said["command"][-1]) == ("./launch.sh", "${args_no_hyphens}")
    assert said["project"] == DEFAULT_PROJECT


def test_a_grid_without_a_server(
    tmp_path: Path, launched: Callable[[], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([write(tmp_path), "output_dir=out", "log.every_steps=5"]) == 0

    common = "accumulate configs/digits.yaml"
    more = "optimizer.lr=1.0e-08 output_dir=out log.every_steps=5"
    assert launched() == [
        f"{common} batch.micro={m} seed={s} {more}" for m in (50, 25) for s in (0, 1)
    ]
    assert "4 of 4 finished" in capsys.readouterr().out


def test_a_run_that_fails_does_not_stop_the_others(
    tmp_path: Path, launched: Callable[[], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([write(tmp_path, parameters={"seed": {"values": [2, 0]}})]) == 1

    assert len(launched()) == 2
    told = capsys.readouterr().out
    assert "exit code 2" in told
    assert "1 of 2 finished" in told


def test_a_signal_stops_the_sweep(tmp_path: Path, launched: Callable[[], list[str]]) -> None:
    assert main([write(tmp_path, parameters={"seed": {"values": [130, 0]}})]) == 130
    assert len(launched()) == 1


@pytest.mark.parametrize(
    ("number", "send"),
    [(signal.SIGINT, os.killpg), (signal.SIGINT, os.kill), (signal.SIGTERM, os.kill)],
)
def test_a_stop_waits_until_the_trial_is_saved(
    tmp_path: Path, number: int, send: Callable[[int, int], None]
) -> None:
    """Ctrl-C (the whole group is told), a SIGINT and a SIGTERM to the sweep alone: launch.sh hears
    of it once.
    """
    script, log = tmp_path / "launch.sh", tmp_path / "log"
    script.write_text(
        f"#!/bin/bash\ntrap 'echo told >>{log}; for i in 1 2 3 4; do sleep 0.5; done; echo saved "
        f">>{log}; exit 75' INT TERM\necho started >>{log}\nsleep 10 &>/dev/null &\nwait\n"
    )
    script.chmod(0o755)
    code = (
        "import sys; from train import sweep; sweep.LAUNCH = (sys.argv[1],); "
        "sys.exit(sweep.main(sys.argv[2:]))"
    )
    command = [sys.executable, "-c", code, str(script), write(tmp_path)]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, **piped) as process:
        deadline = time.monotonic() + 30
        while not log.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        send(process.pid, number)
        out, err = process.communicate(timeout=30)

    assert (process.returncode, err) == (75, "")
    assert log.read_text().split() == ["started", "told", "saved"]
    assert "sweep: stopped in 1 of 4; the same command resumes it" in out


def test_a_saved_stop_is_one_of_the_sweep(
    tmp_path: Path, launched: Callable[[], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([write(tmp_path, parameters={"seed": {"values": [0, 75, 1]}})]) == 75

    assert len(launched()) == 2
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == "sweep: stopped in 2 of 3; the same command resumes it"
    )


def test_either_command_names_loop_and_config(tmp_path: Path) -> None:
    ours = read_sweep(
        Path(
            write(tmp_path, command=["./launch.sh", "standard", "my/a.yaml", "${args_no_hyphens}"])
        )
    )
    theirs = read_sweep(
        Path(write(tmp_path, command=["accelerate", "launch", "-m", "train.standard", "my/a.yaml"]))
    )

    assert (ours.loop, ours.config) == (theirs.loop, theirs.config) == ("standard", "my/a.yaml")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": "bayes"}, "only a grid can be run"),
        ({"parameters": {}}, "holds no parameters"),
        ({"parameters": {"seed": {"min": 0, "max": 3}}}, "a grid needs `values:"),
        ({"parameters": {"seed": [0, 1]}}, "a grid needs `values:"),
        ({"command": ["python", "mine.py"]}, "its command does not hold"),
        ({"command": None}, "its command does not hold"),
    ],
)
def test_what_is_no_grid_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(SweepError, match=reason):
        read_sweep(Path(write(tmp_path, **changes)))


def test_bad_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err
    assert main([str(tmp_path / "missing.yaml")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_the_id_of_a_trial_joins_the_name_of_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, named = (
        load(["configs/digits.yaml", "seed=1"]),
        load(["configs/digits.yaml", "name=mine"]),
    )
    monkeypatch.setenv("WANDB_RUN_ID", "trial/7")
    assert run_name(named) == "mine"  # an id alone is no sweep

    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    assert (run_name(plain), run_name(named)) == ("digits-seed1-trial_7", "mine-trial_7")
