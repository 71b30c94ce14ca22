"""Rows of a job on several machines: network namespaces, on each of which launch.sh is typed."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.campaigns.faults import compare
from tests.campaigns.faults.launching import ROOT
from tests.campaigns.faults.row import Row, command, folder
from tests.hosts import Host, hosts

LIMIT_SECONDS = 240
STATIC = ("--num_machines", "2")
# torch waits 30 s for more machines, and 15 s until one that is silent is lost.
QUICK = "last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=10"
ELASTIC = ("--nnodes", "1:2", "--max_restarts", "5", "--rdzv_conf", QUICK)


@dataclass(frozen=True)
class Launched:
    """One command, typed on several machines."""

    here: Path
    processes: Sequence[subprocess.Popen[str]]

    def wait(self) -> list[int]:
        end = time.monotonic() + LIMIT_SECONDS
        try:
            return [process.wait(max(0.1, end - time.monotonic())) for process in self.processes]
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"it hangs\n{self.told()}") from error

    def told(self, machine: int | None = None) -> str:
        files = sorted(
            self.here.glob("machine-*.txt")
            if machine is None
            else self.here.glob(f"machine-{machine}.txt")
        )
        return "\n".join(f"== {file.name}\n{file.read_text()}" for file in files)

    def wait_for_step(self, step: int, run: str = "run") -> None:
        end = time.monotonic() + LIMIT_SECONDS
        rows = self.here / run / "metrics.jsonl"
        while not (rows.exists() and f'"train/global_step": {step}' in rows.read_text()):
            assert self.processes[0].poll() is None, self.told()
            assert time.monotonic() < end, self.told()
            time.sleep(0.05)


def launch(
    here: Path,
    on: Sequence[Host],
    words: Sequence[str],
    flags: Sequence[str],
    first: int = 0,
    **variables: str,
) -> Launched:
    """The same command on each of `on`, which are the machines `first`, `first` + 1, ... of the
    job.
    """
    environment = {
        **os.environ,
        "VIRTUAL_ENV": sys.prefix,
        "ACCELERATE_USE_CPU": "true",
        "HF_HUB_OFFLINE": "1",
    }
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    environment |= variables
    started = []
    for machine, host in enumerate(on, first):
        meeting = ["--main_process_ip", "node1", "--machine_rank", str(machine), *flags]
        line = [str(ROOT / "launch.sh"), *words, "--", *meeting]
        with (here / f"machine-{machine}.txt").open("a") as out:
            started.append(host.start(line, cwd=ROOT, env=environment, stdout=out, stderr=out))
    return Launched(here, started)


def losses(run: Path) -> dict[int, float]:
    return {
        row["train/global_step"]: row["train/loss"]
        for row in compare.rows(run)
        if "train/loss" in row
    }


def check_same_curve(here: Path, apart: Path, tolerance: float = 1e-10) -> float:
    """The largest relative difference of the losses of two runs."""
    ours, theirs = losses(here / "run"), losses(apart / "run")
    assert ours.keys() == theirs.keys(), f"{len(ours)} steps, {len(theirs)} there"
    largest = max(abs(ours[k] - theirs[k]) / abs(theirs[k]) for k in ours)
    assert largest <= tolerance, f"the curves are {largest:.1e} apart"
    return largest


def long_run(here: Path, *overrides: str) -> list[str]:
    """Some seconds of steps, in float64: other numbers of ranks have the same curve to 1e-10."""
    long = (
        "precision=fp64",
        "duration.steps=1200",
        "checkpoint.every_steps=50",
        "checkpoint.keep=2",
        "data.args={size: 3700}",
    )
    return command(here, *long, *overrides)


@contextmanager
def beside_one_machine(
    here: Path, number: int, *overrides: str
) -> Iterator[tuple[list[Host], Path]]:
    """Hosts, and the folder of the same run on one machine, on one rank."""
    apart = folder(here, "one-machine")
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    words = [sys.executable, "-m", "train.accumulate", *long_run(apart, *overrides)]
    done = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with hosts(number) as made:
        yield made, apart


def host_lost(here: Path, full: bool) -> str:
    """All of one machine is killed; the other says so, and the same command goes on."""
    told = []
    with beside_one_machine(here, 2) as (pair, apart):
        for lost in (1, 0) if full else (1,):
            own = folder(here, f"lost-{lost}")
            job = launch(own, pair, long_run(own), STATIC)
            job.wait_for_step(120)
            pair[lost].kill()
            begun = time.monotonic()
            codes = job.wait()
            said = job.told(1 - lost)
            assert codes[1 - lost] == 1, f"{codes}\n{said}"
            assert f"machine {lost} (node{lost + 1})" in said, said
            assert "Run the same command again" in said, said
            seconds = time.monotonic() - begun
            job = launch(own, pair, long_run(own), STATIC)
            assert job.wait() == [0, 0], job.told()
            assert "resumed" in job.told(0)
            difference = check_same_curve(own, apart)
            told.append(
                f"machine {lost} lost: named, exit code 1 after {seconds:.0f} s, then the curve to "
                f"{difference:.0e}"
            )
    return "; ".join(told)


def bridge_cut(here: Path, full: bool) -> str:
    """The cable out for a while, and in again; in the full form then out for ever, too."""
    seconds = 5.0
    with beside_one_machine(here, 2) as (pair, apart):
        own = folder(here, "cut")
        job = launch(own, pair, long_run(own), STATIC)
        job.wait_for_step(120)
        pair[1].cut()
        time.sleep(0.5)
        then = max(losses(own / "run"))
        time.sleep(seconds - 0.5)
        assert max(losses(own / "run")) <= then + 1, "it was not cut"
        pair[1].restore()
        assert job.wait() == [0, 0], job.told()
        assert "lost" not in job.told()
        difference = check_same_curve(own, apart)
        told = (
            f"{seconds:.0f} s: stood still, then went on to the curve of one machine, to "
            f"{difference:.0e}"
        )
        if not full:
            return told
        own = folder(here, "for-ever")
        job = launch(own, pair, long_run(own, "runtime.timeout_seconds=10"), STATIC)
        job.wait_for_step(120)
        pair[1].cut()
        begun = time.monotonic()
        codes = job.wait()
        assert codes == [1, 1], job.told()
        assert "no progress for 10 s" in job.told(0), job.told(0)
        assert "no progress for 10 s" in job.told(1), job.told(1)
        pair[1].restore()
    return (
        f"{told}; for ever: both ended after {time.monotonic() - begun:.0f} s "
        "(runtime.timeout_seconds=10)"
    )


def two_jobs(here: Path, full: bool) -> str:
    """On one pair of machines at the same time; then with one port, and a second machine that goes
    to the wrong job.
    """
    with beside_one_machine(here, 2) as (pair, apart):
        jobs = []
        for name in ("one", "two"):
            own = folder(here, name)
            jobs.append(launch(own, pair, long_run(own), STATIC))
        for job in jobs:
            assert job.wait() == [0, 0], job.told()
            check_same_curve(job.here, apart)
        ports = [re.findall(r"ports (\d+) and", job.told(0))[0] for job in jobs]
        assert ports[0] != ports[1], ports

        own, stranger, taken = folder(here, "own"), folder(here, "stranger"), folder(here, "taken")
        port = (*STATIC, "--main_process_port", "29500")
        job = launch(own, pair[:1], long_run(own), port)
        wrong = launch(stranger, pair[1:], long_run(stranger), port, first=1)
        assert wrong.wait() == [2], wrong.told()
        assert len(re.findall(r"tiny-\w{8}", wrong.told().split("got:")[1])) == 2, wrong.told()
        second = launch(taken, pair[:1], long_run(taken), port)
        assert second.wait() == [2], second.told()
        assert (
            "port 29500 of this machine cannot be had" in second.told()
            or "port 29501" in second.told()
        )
        right = launch(own, pair[1:], long_run(own), port, first=1)
        assert (job.wait(), right.wait()) == ([0], [0]), job.told()
        check_same_curve(own, apart)
        assert not (stranger / "run").exists()
    return (
        f"both had the curve of one machine (ports {', '.join(ports)}); on one port: exit code 2, "
        "both jobs named"
    )


def elastic(here: Path, full: bool) -> str:
    """Two machines, one of which is lost and, in the full form, comes back."""
    with beside_one_machine(here, 2, "duration.steps=6000" if full else "duration.steps=1200") as (
        pair,
        apart,
    ):
        own = folder(here, "elastic")
        words = long_run(own, "duration.steps=6000" if full else "duration.steps=1200")
        job = launch(own, pair, words, ELASTIC)
        job.wait_for_step(120)
        ranks = [_ranks(own)]
        pair[1].kill()
        if full:
            job.wait_for_step(max(losses(own / "run")) + 200)
            ranks.append(_ranks(own))
            back = launch(own, pair[1:], words, ELASTIC, first=1)
            assert back.wait() == [0], back.told()
        codes = job.wait()
        assert codes[0] == 0, job.told()
        ranks.append(_ranks(own))
        assert "machine 1 (node2)" in job.told(0), job.told(0)
        assert ranks == ([2, 1, 2] if full else [2, 1]), ranks
        told = " -> ".join(map(str, ranks))
        difference = check_same_curve(own, apart)
        return f"{told} ranks by themselves, the curve of one machine to {difference:.0e}"


def _ranks(own: Path) -> int:
    return int(json.loads((own / "run" / "plan.json").read_text())["batch"]["world_size"])


def four(here: Path, full: bool) -> str:
    with beside_one_machine(here, 4) as (made, apart):
        own = folder(here, "four")
        job = launch(
            own,
            made,
            long_run(own),
            ("--num_machines", "4", *(["--num_processes", "8"] if full else [])),
        )
        assert job.wait() == [0] * 4, job.told()
        assert _ranks(own) == (8 if full else 4)
        return (
            f"{_ranks(own)} ranks, the curve of one machine to {check_same_curve(own, apart):.0e}"
        )


_BY = "network namespaces on a bridge, launch.sh on each"

ROWS = (
    Row(
        "51",
        "a machine is lost",
        f"{_BY}; all processes of one killed",
        "named; the same command goes on",
        host_lost,
        slow=True,
    ),
    Row(
        "52",
        "the network is cut",
        f"{_BY}; 5 s, and for ever",
        "goes on; ends on both sides",
        bridge_cut,
        slow=True,
    ),
    Row(
        "53",
        "two jobs on one pair of machines",
        f"{_BY}; also on one port",
        "both train; a stranger is refused",
        two_jobs,
        slow=True,
    ),
    Row(
        "54",
        "elastic: machines are lost and come back",
        f"{_BY}; --nnodes 1:2",
        "same batch, same curve",
        elastic,
        slow=True,
    ),
    Row("55", "four machines", _BY, "same curve as one", four, slow=True),
)
