"""A grid of runs without a server: python -m train.sweep SWEEP.yaml [key=value ...]

SWEEP.yaml is what `wandb sweep` takes, method grid. Each combination is a launch of its own, one
after the other. A run that has finished says so and is skipped, so the same command resumes a sweep
that was stopped.
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
from train.installation import CONFIGS, IS_CLONE, ROOT, command, find_shipped
from train.terminal import write_lines

# In a clone by ./launch.sh, which finds or makes the environment.
LAUNCH = (str(ROOT / "launch.sh"),) if IS_CLONE else (sys.executable, "-m", "train.launch")
LOOPS = ("standard", "accumulate")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT)
"""What stops a sweep: all that train.launch handles."""
POLL_SECONDS = 0.1
USAGE = (
    f"usage: {command('sweep')} SWEEP.yaml [key=value ...], such as "
    "configs/sweeps/accumulation.yaml"
)


class SweepError(UserError):
    """The file is no sweep that can be run here; the message says what to do."""


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
    sweep = read_sweep(find_shipped(Path(files[0])))
    overrides = [argument for argument in argv if "=" in argument]
    # Before the first trial: a signal in between would end the sweep without a word.
    with _received_signals() as received:
        return _run_all(sweep, overrides, received)


def _run_all(sweep: Sweep, overrides: Sequence[str], received: Sequence[int]) -> int:
    failures: list[str] = []
    count = len(sweep.trials)
    for number, trial in enumerate(sweep.trials, start=1):
        launch = [*LAUNCH, sweep.loop, sweep.config, *trial, *overrides]
        _print(f"sweep: {number} of {count}: {shlex.join(trial)}")
        code = _run(launch, received)
        # What stopped the trial was meant for the sweep.
        if received or code == STOPPED or code >= 128 or code < 0:
            _print(f"sweep: stopped in {number} of {count}; the same command resumes it")
            return _code_of_stop(code)
        if code:
            # It goes on with the others: one that fails says nothing about the rest.
            failures.append(f"sweep: exit code {code}: {shlex.join(launch)}")
    _print(*failures, f"sweep: {count - len(failures)} of {count} finished")
    return FAILED if failures else FINISHED


def _code_of_stop(code: int) -> int:
    """The exit code of a sweep whose trial ended with `code` when it was stopped."""
    if code == FINISHED:
        return STOPPED
    if code < 0:  # killed by a signal: as a shell reports it
        return 128 - code
    return code


def _print(*lines: str) -> None:
    """A terminal that is closed meanwhile must not end the sweep before its trial."""
    write_lines("\n".join(lines), sys.stdout)


def _run(launch: Sequence[str], received: Sequence[int]) -> int:
    """One trial, to which each signal is forwarded once.

    It has a session of its own, so that a terminal signals the sweep alone. Like a terminal, this
    signals the whole group: launch.sh may still wait for pip.
    """
    trial = subprocess.Popen(launch, start_new_session=True)
    forwarded = 0
    while trial.poll() is None:
        # By a count: a second Ctrl-C is forwarded as well.
        for number in received[forwarded:]:
            forwarded += 1
            with suppress(OSError):  # it has just ended
                os.killpg(trial.pid, number)
        time.sleep(POLL_SECONDS)
    return trial.returncode


@contextmanager
def _received_signals() -> Iterator[list[int]]:
    """Those that arrive meanwhile; none of them ends this process, which waits for its trial."""
    # Handlers only write a signal down: the loop in _run acts on it.
    received: list[int] = []
    before = {}
    for number in SIGNALS:
        before[number] = signal.signal(number, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_sweep(path: Path) -> Sweep:
    """Raises SweepError."""
    content = _read_yaml(path)
    parameters = content.get("parameters") if isinstance(content, dict) else None
    if not isinstance(parameters, dict) or not parameters:
        raise SweepError(
            f"sweep: {path} holds no parameters\n"
            "  why:  a sweep is `parameters: {key: {values: [...]}}`"
        )
    if content.get("method") != "grid":
        raise SweepError(
            f"sweep: {path}: method is {content.get('method')!r}\n"
            "  why:  without a server only a grid can be run: all of its combinations\n"
            f"  run:  wandb sweep {path}   (or write method: grid)"
        )
    # From the command that `wandb agent` would run, so that one file serves both.
    loop, config = _target(content.get("command"), path)
    axes = []
    for key, spec in parameters.items():
        axes.append([f"{key}={_as_yaml(value)}" for value in _values(key, spec)])
    return Sweep(loop, config, tuple(itertools.product(*axes)))


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise SweepError(
            f"sweep: {path} cannot be read as YAML: {error}\n  run:  ls {CONFIGS / 'sweeps'}"
        ) from error


def _target(words: Any, path: Path) -> tuple[str, str]:
    """Loop and config that `./launch.sh LOOP CONFIG` names, or `... -m train.LOOP CONFIG`."""
    texts = [str(word) for word in words] if isinstance(words, list) else []
    for word, config in itertools.pairwise(texts):
        loop = word.removeprefix("train.")
        if loop in LOOPS:
            return loop, config
    raise SweepError(
        f"sweep: {path}: its command does not hold `./launch.sh, accumulate, CONFIG`\n"
        f"  got:  {texts}"
    )


def _values(key: str, spec: Any) -> list[Any]:
    if isinstance(spec, Mapping) and isinstance(spec.get("values"), list) and spec["values"]:
        return list(spec["values"])
    if isinstance(spec, Mapping) and "value" in spec:
        return [spec["value"]]
    raise SweepError(
        f"sweep: parameter {key}: got {spec!r}\n"
        "  why:  a grid needs `values: [...]` or `value: ...`"
    )


def _as_yaml(value: Any) -> str:
    """As YAML: OmegaConf reads it back as the same value."""
    # In one line: width keeps PyYAML from breaking it.
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
