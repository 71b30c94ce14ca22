"""A grid of runs without a server: python -m train.sweep SWEEP.yaml [key=value ...]

SWEEP.yaml is what `wandb sweep` takes, method grid. Each combination is a ./launch.sh of its own,
one after the other. A run that has finished says so and is passed over, so the same command goes on
where it was stopped.
"""

import itertools
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from train.errors import BAD_CONFIG, FAILED, FINISHED, STOPPED, UserError, entry_point
from train.terminal import write_lines

LAUNCH = Path(__file__).parents[1] / "launch.sh"
LOOPS = ("standard", "accumulate")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT)
"""What stops a sweep: all that launch.sh knows."""
USAGE = "usage: sweep_local.py SWEEP.yaml [key=value ...], such as configs/sweeps/accumulation.yaml"


class SweepError(UserError):
    """The file is no sweep that can be run here; the message says what to type."""


@dataclass(frozen=True)
class Sweep:
    loop: str
    config: str
    trials: tuple[tuple[str, ...], ...]
    """The key=value of each combination, the last parameter moving fastest."""


@entry_point
def main(argv: Sequence[str]) -> int:
    files = [argument for argument in argv if "=" not in argument]
    if len(files) != 1 or files[0].startswith("-"):
        print(USAGE, file=sys.stderr)
        return FINISHED if files[:1] in (["-h"], ["--help"]) else BAD_CONFIG
    sweep = read_sweep(Path(files[0]))
    overrides = [argument for argument in argv if "=" in argument]
    with _signals() as told:
        return _run_all(sweep, overrides, told)


def _run_all(sweep: Sweep, overrides: Sequence[str], told: Sequence[int]) -> int:
    failed = []
    for number, trial in enumerate(sweep.trials, start=1):
        command = [str(LAUNCH), sweep.loop, sweep.config, *trial, *overrides]
        _say(f"sweep: {number} of {len(sweep.trials)}: {shlex.join(trial)}")
        code = _run(command, told)
        # what stopped the trial was meant for the sweep
        if told or code == STOPPED or code >= 128 or code < 0:
            _say(
                f"sweep: stopped in {number} of {len(sweep.trials)}; type the same command to go on"
            )
            if code == FINISHED:
                return STOPPED
            return code if code > 0 else 128 - code
        if code:
            failed.append(f"sweep: exit code {code}: {shlex.join(command)}")
    _say(*failed, f"sweep: {len(sweep.trials) - len(failed)} of {len(sweep.trials)} finished")
    return FAILED if failed else FINISHED


def _say(*lines: str) -> None:
    """A terminal that is closed meanwhile must not end the sweep before its trial."""
    write_lines("\n".join(lines), sys.stdout)


def _run(command: Sequence[str], told: Sequence[int]) -> int:
    """One trial, which hears of every signal once: it has a session of its own, so the terminal
    tells the sweep alone.

    As a terminal does, this tells the group: launch.sh may still wait for pip.
    """
    trial = subprocess.Popen(command, start_new_session=True)
    handed_on = 0
    while trial.poll() is None:
        for number in told[handed_on:]:
            handed_on += 1
            with suppress(OSError):  # it has just ended
                os.killpg(trial.pid, number)
        time.sleep(0.1)
    return trial.returncode


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Those that arrive meanwhile; none of them ends this process, which waits for its trial."""
    told: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: told.append(number)) for number in SIGNALS
    }
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_sweep(path: Path) -> Sweep:
    """Raises SweepError."""
    if not LAUNCH.exists():
        raise SweepError(
            f"sweep: there is no {LAUNCH}\n  why:  it belongs to a clone; type this in one"
        )
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise SweepError(
            f"sweep: {path} cannot be read as YAML: {error}\n  type: ls configs/sweeps"
        ) from error
    if (
        not isinstance(said, dict)
        or not isinstance(said.get("parameters"), dict)
        or not said["parameters"]
    ):
        raise SweepError(
            f"sweep: {path} holds no parameters\n  why:  a sweep is `parameters: {{key: {{values: "
            "[...]}}`"
        )
    if said.get("method") != "grid":
        raise SweepError(
            f"sweep: {path}: method is {said.get('method')!r}\n"
            "  why:  without a server only a grid can be run: all of its combinations\n"
            f"  type: wandb sweep {path}   (or write method: grid)"
        )
    loop, config = _target(said.get("command"), path)
    axes = [
        [f"{key}={_text(value)}" for value in _values(key, spec)]
        for key, spec in said["parameters"].items()
    ]
    return Sweep(loop, config, tuple(itertools.product(*axes)))


def _target(command: Any, path: Path) -> tuple[str, str]:
    """The loop and the config that `./launch.sh LOOP CONFIG` names, or `accelerate launch ... -m
    train.LOOP CONFIG`.
    """
    words = [str(word) for word in command] if isinstance(command, list) else []
    for word, config in itertools.pairwise(words):
        loop = word.removeprefix("train.")
        if loop in LOOPS:
            return loop, config
    raise SweepError(
        f"sweep: {path}: its command does not hold `./launch.sh, accumulate, CONFIG`\n  got:  "
        f"{words}"
    )


def _values(key: str, spec: Any) -> list[Any]:
    if isinstance(spec, Mapping) and isinstance(spec.get("values"), list) and spec["values"]:
        return list(spec["values"])
    if isinstance(spec, Mapping) and "value" in spec:
        return [spec["value"]]
    raise SweepError(
        f"sweep: parameter {key}: got {spec!r}\n  why:  a grid needs `values: [...]` or `value: "
        "...`"
    )


def _text(value: Any) -> str:
    """As YAML: OmegaConf reads it back as the same value."""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10_000)
        .removesuffix("\n")
        .removesuffix("\n...")
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
