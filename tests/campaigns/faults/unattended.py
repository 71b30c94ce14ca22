"""Rows about a run whose terminal is closed, or whose launchers are killed outright: nobody is left
to tell it.
"""

import json
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.campaigns.faults.launching import ROOT, STEPS, ours
from tests.campaigns.faults.row import Row, folder

WAYS = ("closed", "twice", "tee", "quit")
LAUNCH = os.environ.get("FAULTS_LAUNCH", str(ROOT / "launch.sh"))


def _log_in(slave: int) -> None:
    """A terminal of its own, with the signals of a login: what runs in the background may ignore
    Ctrl-C.
    """
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.login_tty(slave)


class Unattended:
    """launch.sh in a terminal of its own, whose other end we hold."""

    def __init__(self, here: Path, ranks: int, shell: str = 'exec "$0" "$@"') -> None:
        self.here = here
        self.master, slave = pty.openpty()
        words = [
            LAUNCH,
            "configs/digits.yaml",
            *STEPS,
            f"output_dir={here}",
            "duration.steps=1000000",
        ]
        words.append("log.every_steps=20")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        own = {"PATH": path, "VIRTUAL_ENV": sys.prefix, "TMPDIR": str(here), "NPROC": str(ranks)}
        self.process = subprocess.Popen(
            ["bash", "-c", f"{shell}", *words],
            cwd=ROOT,
            env={**os.environ, **own, "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            preexec_fn=lambda: _log_in(slave),
        )
        os.close(slave)
        os.set_blocking(self.master, False)

    def trains(self, at_most: float) -> None:
        """Returns at a random moment after the first row, `at_most` so many seconds after it."""
        end = time.monotonic() + 120
        while not (self.here / "run" / "metrics.jsonl").exists():
            self.read()
            assert time.monotonic() < end, "it does not start"
            assert self.process.poll() is None, self.said
            time.sleep(0.05)
        time.sleep(random.uniform(0, at_most))

    said = ""

    def read(self) -> None:
        """Or the terminal would be full."""
        try:
            self.said += os.read(self.master, 1 << 16).decode(errors="replace")
        except OSError:
            return

    def ended(self, seconds: float) -> float:
        """Until nothing of it is left; AssertionError where something stays. Then whether it was
        saved.
        """
        begun = time.monotonic()
        while (left := ours(self.here)) and time.monotonic() - begun < seconds:
            if self.master >= 0:
                self.read()
            self.process.poll()
            time.sleep(0.1)
        took = time.monotonic() - begun
        names = [" ".join(process.cmdline())[:80] for process in left]
        for process in left:
            process.kill()
        assert not left, f"orphans after {took:.0f} s: {names}"
        told = json.loads((self.here / "run" / "ended.json").read_text())
        assert told["code"] == 75, told
        return took

    def close(self) -> None:
        if self.master >= 0:
            os.close(self.master)
        self.master = -1


def untold(here: Path, full: bool) -> str:
    """Each of the ways, so many times: the stop is saved, and launch.sh exits with 75."""
    random.seed(131)
    ways = WAYS if full else ("tee", "closed")
    trials = 200 if full else 2
    worst = 0.0
    for number in range(trials):
        way = ways[number % len(ways)]
        own = folder(here, f"{way}-{number}")
        shell = '"$0" "$@" 2>&1 | tee log' if way == "tee" else 'exec "$0" "$@"'
        # Each way on one rank and on two.
        ranks = 1 + number // len(ways) % 2
        run = Unattended(own, ranks, shell=shell.replace("log", str(own / "log")))
        run.trains(at_most=2 if full else 0.5)
        if way == "closed":
            run.close()
        elif way == "quit":
            os.write(run.master, b"\x1c")
        else:
            os.write(run.master, b"\x03")
            time.sleep(random.uniform(0.05, 0.4))
        if way == "twice":
            os.write(run.master, b"\x03")
        worst = max(worst, run.ended(30))
        code = run.process.wait(5)
        assert way == "tee" or code == 75, f"{way}: {code}\n{run.said}"
        run.close()
        shutil.rmtree(own)
    told = f"{trials} times ({', '.join(ways)}) on {'1 and 2 ranks' if full else '1 rank'}"
    return f"{told}, untold ranks: 0, orphans: 0; worst {worst:.1f} s to the end"


def launchers_killed(here: Path, full: bool) -> str:
    random.seed(132)
    told = []
    trials = 50 if full else 1
    for victim in ("supervisor", "accelerate", "both") if full else ("both",):
        worst = 0.0
        for number in range(trials):
            own = folder(here, f"{victim}-{number}")
            run = Unattended(own, ranks=2)
            run.trains(at_most=2 if full else 0.5)
            (agent,) = [
                each.pid for each in ours(own) if "accelerate.commands.launch" in each.cmdline()
            ]
            for pid in {"supervisor": [run.process.pid], "accelerate": [agent]}.get(
                victim, [run.process.pid, agent]
            ):
                os.kill(pid, signal.SIGKILL)
            worst = max(worst, run.ended(15))
            assert worst < 10, f"{victim}: {worst:.1f} s"
            run.close()
            shutil.rmtree(own)
        told.append(f"{victim} {trials} times, worst {worst:.1f} s")
    return f"{', '.join(told)}; saved each time, orphans: 0"


ROWS = (
    Row(
        "34",
        "terminal closed, Ctrl-C twice within 0.4 s, Ctrl-C with `| tee`, Ctrl-\\",
        "launch.sh in a real pseudo-terminal, at random moments of training",
        "told and saved each time (75); no orphan",
        untold,
        slow=True,
    ),
    Row(
        "35",
        "kill -9 of the launchers",
        "train.launch, accelerate's launcher, both; 2 ranks",
        "the ranks notice, save and end within 10 s",
        launchers_killed,
        slow=True,
    ),
)
