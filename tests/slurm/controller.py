"""SLURM, as far as a batch script meets it: sbatch, srun, scontrol and scancel for one user,
without a queue.

    slurm = Slurm(tmp_path / "slurm", {"node1": [], "node2": []})
    (job,) = slurm.sbatch("--nodes=2", "scripts/slurm.sbatch", "my.yaml", cwd=clone,
    env=environment) slurm.near_time_limit(job)                  # as --signal says
    assert slurm.wait(job) == "COMPLETED"       # started again as often as it was put back into the
    queue

Whatever has no source beside it was seen with SLURM 22.05.8 (Debian's; two slurmd on one machine,
KillWait=10). Where clusters differ, this one is set so that a script which leaves it to the cluster
fails: KillOnBadExit, WaitTime. Not here: queues, priorities, limits of memory, accounting. A
requeued job starts at once (there: after 120 s).
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.slurm.processes import processes, send

COMMANDS = Path(__file__).with_name("commands.py")
LOOK_SECONDS = 0.05


@dataclass
class Job:
    id: int
    options: dict[str, str]
    words: list[str]  # behind the script
    script: Path  # SLURM's own copy
    folder: Path  # from which it was submitted
    environment: dict[str, str]
    array: dict[str, str] = field(default_factory=dict)  # the variables of a task of an array
    restarts: int = 0
    state: str = "PENDING"
    process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """As scontrol takes it."""
        array = self.array.get("SLURM_ARRAY_JOB_ID")
        return f"{array}_{self.array['SLURM_ARRAY_TASK_ID']}" if array else str(self.id)

    @property
    def output(self) -> Path:
        """sbatch(1), filename pattern."""
        pattern = self.options.get("output", "slurm-%A_%a.out" if self.array else "slurm-%j.out")
        values = {
            "j": str(self.id),
            "A": self.array.get("SLURM_ARRAY_JOB_ID", str(self.id)),
            "a": self.array.get("SLURM_ARRAY_TASK_ID", "4294967294"),
            "x": self.options.get("job-name", self.script.name),
        }
        return self.folder / re.sub("%([jAax])", lambda found: values[found[1]], pattern)


class Slurm:
    def __init__(
        self, folder: Path, nodes: Mapping[str, Sequence[str]], kill_wait: float = 30
    ) -> None:
        """`nodes`: for each, the words before a command that let it run there."""
        self.folder = folder
        self.nodes = {name: list(enter) for name, enter in nodes.items()}
        self.kill_wait = kill_wait
        self.jobs: list[Job] = []
        self._next_id = 77
        (folder / "bin").mkdir(parents=True)
        self._conf = folder / "slurm.json"
        self._conf.write_text(json.dumps({"nodes": self.nodes}))
        for name in ("srun", "scontrol"):
            command = folder / "bin" / name
            command.write_text(f'#!/bin/sh\nexec {sys.executable} -I {COMMANDS} {name} "$@"\n')
            command.chmod(0o755)

    def __enter__(self) -> "Slurm":
        return self

    def __exit__(self, *_: object) -> None:
        for job in self.jobs:
            send(signal.SIGKILL, processes(str(self._conf), str(job.id)))
            if job.process:
                job.process.wait()

    # What a person types

    def sbatch(self, *typed: str, cwd: Path, env: Mapping[str, str]) -> list[Job]:
        """The job, or the tasks of an array."""
        script = next(place for place, word in enumerate(typed) if not word.startswith("-"))
        text = (cwd / typed[script]).read_text()
        # sbatch(1): options of the command line come before those of the script.
        options = _options(_directives(text)) | _options(typed[:script])
        tasks = _task_numbers(options["array"]) if "array" in options else [None]
        first = self._next_id
        made = []
        for place, task in enumerate(tasks):
            # The array's own number is that of its last task.
            number = first if place == len(tasks) - 1 else first + 1 + place
            spool = self.folder / f"job{number:05}" / "slurm_script"
            spool.parent.mkdir()
            spool.write_text(text)
            job = Job(number, options, list(typed[script + 1 :]), spool, cwd, dict(env))
            if task is not None:
                job.array = _array_variables(first, task, tasks)
            made.append(job)
        self._next_id += len(tasks)
        self.jobs += made
        self._write_down()
        for job in made:
            self._start(job)
        return made

    def scancel(self, job: Job, number: str = "", batch: bool = False) -> None:
        """scancel(1): with a signal, to the steps alone; --batch: to the batch shell alone."""
        if not number:
            job.state = "CANCELLED"
            self._terminate(job)
        elif batch and job.process:
            job.process.send_signal(signal.Signals[f"SIG{number}"])
        else:
            self._to_steps(job, signal.Signals[f"SIG{number}"])

    # What happens

    def near_time_limit(self, job: Job) -> None:
        """sbatch(1), --signal: with B: the batch shell alone, else all steps and not the batch
        shell.
        """
        to, _, when = job.options["signal"].rpartition(":")
        number = signal.Signals[f"SIG{when.partition('@')[0]}"]
        if to == "B" and job.process:
            job.process.send_signal(number)
        else:
            self._to_steps(job, number)

    def preempt(self, job: Job) -> None:
        """PreemptMode=REQUEUE, GraceTime=0."""
        self._requeue(job)

    def wait(self, job: Job, seconds: float = 120) -> str:
        """Until it has ended and was not put back into the queue: its state."""
        end = time.monotonic() + seconds
        while job.state in ("PENDING", "RUNNING"):
            self.look()
            assert time.monotonic() < end, (
                f"job {job.name} after {seconds} s:\n{job.output.read_text()[-3000:]}"
            )
            time.sleep(LOOK_SECONDS)
        return job.state

    def look(self) -> None:
        """What a controller does all the time; here whenever somebody waits."""
        for job in self.jobs:
            asked = self.folder / f"requeue-{job.id}"
            if asked.exists():
                asked.unlink()
                self._requeue(job)
            elif job.state == "RUNNING" and job.process and job.process.poll() is not None:
                # What a batch script leaves behind ends with it.
                send(signal.SIGKILL, processes(str(self._conf), str(job.id)))
                job.state = "FAILED" if job.process.returncode else "COMPLETED"

    def _to_steps(self, job: Job, number: int) -> None:
        send(number, processes(str(self._conf), str(job.id), steps_only=True))

    def _requeue(self, job: Job) -> None:
        """scontrol(1), sbatch(1) --requeue: the script starts from its beginning, under the same
        number.
        """
        self._terminate(job)
        job.restarts += 1
        self._start(job)

    def _terminate(self, job: Job) -> None:
        """All processes of batch shell and steps, in whatever session: CONT and TERM, KILL after
        KillWait.
        """
        # srun hears of it first: the TERM that reaches it too then kills nothing.
        ending = self.folder / f"ending-{job.id}"
        ending.touch()
        for number in (signal.SIGCONT, signal.SIGTERM):
            send(number, processes(str(self._conf), str(job.id)))
        end = time.monotonic() + self.kill_wait
        while processes(str(self._conf), str(job.id)) and time.monotonic() < end:
            if job.process:
                job.process.poll()
            time.sleep(LOOK_SECONDS)
        send(signal.SIGKILL, processes(str(self._conf), str(job.id)))
        if job.process:
            job.process.wait()
        ending.unlink()

    def _start(self, job: Job) -> None:
        append = job.options.get("open-mode") == "append"
        first = next(iter(self.nodes))
        with job.output.open("ab" if append else "wb") as output:
            job.process = subprocess.Popen(
                [*self.nodes[first], "bash", str(job.script), *job.words],
                cwd=job.folder,
                env=self._batch_environment(job),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        job.state = "RUNNING"

    def _batch_environment(self, job: Job) -> dict[str, str]:
        """As `env` printed it in a batch script: it has the numbers of a first task, but no step."""
        nodes = int(job.options.get("nodes", "1"))
        per_node = int(job.options.get("ntasks-per-node", "1"))
        cpus = job.options.get("cpus-per-task")
        names = list(self.nodes)[:nodes]
        path = f"{self.folder / 'bin'}{os.pathsep}{job.environment['PATH']}"
        # sbatch(1), --export=NONE: nothing of the user's but what a login makes; and srun does
        # likewise.
        alone = job.options.get("export") == "NONE"
        found = (
            {"HOME": str(Path.home()), "SLURM_EXPORT_ENV": "NONE"}
            if alone
            else dict(job.environment)
        )
        found |= {"PATH": path, "SLURM_CONF": str(self._conf)}
        found |= {"SLURM_JOB_ID": str(job.id), "SLURM_JOBID": str(job.id)}
        found |= {"SLURM_JOB_NUM_NODES": str(nodes), "SLURM_NNODES": str(nodes)}
        found |= {"SLURM_JOB_NODELIST": _nodelist(names), "SLURM_NODELIST": _nodelist(names)}
        found |= {
            "SLURM_SUBMIT_DIR": str(job.folder),
            "SLURM_JOB_NAME": job.options.get("job-name", "slurm_script"),
        }
        found |= {
            "SLURM_NODEID": "0",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
            "SLURMD_NODENAME": names[0],
        }
        found |= {"SLURM_NTASKS": str(nodes * per_node), "SLURM_NTASKS_PER_NODE": str(per_node)}
        found |= {"SLURM_CPUS_PER_TASK": cpus} if cpus else {}
        gpus = job.options.get("gpus-per-node")
        found |= {"SLURM_GPUS_PER_NODE": gpus} if gpus else {}
        found |= {"SLURM_RESTART_COUNT": str(job.restarts)} if job.restarts else {}
        return found | job.array

    def _write_down(self) -> None:
        """For scontrol, which is another process."""
        known = {job.id: job.array for job in self.jobs}
        self._conf.write_text(json.dumps({"nodes": self.nodes, "jobs": known}))


def _directives(text: str) -> list[str]:
    """sbatch(1): up to the first command of the script."""
    words = []
    for line in text.splitlines():
        if line.startswith("#SBATCH "):
            words += line.removeprefix("#SBATCH ").split()
        elif line and not line.startswith("#"):
            break
    return words


def _options(words: Sequence[str]) -> dict[str, str]:
    """--name=value and --name alone; neither `--name value` nor `-n`."""
    pairs = (word.removeprefix("--").partition("=") for word in words)
    return {name: value for name, _, value in pairs}


def _task_numbers(text: str) -> list[int]:
    """sbatch(1), --array: `0-4`, `16,32,64`, `0-9%2`."""
    found: list[int] = []
    for part in text.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def _array_variables(array: int, task: int, tasks: Sequence[int | None]) -> dict[str, str]:
    return {
        "SLURM_ARRAY_JOB_ID": str(array),
        "SLURM_ARRAY_TASK_ID": str(task),
        "SLURM_ARRAY_TASK_COUNT": str(len(tasks)),
    }


def _nodelist(names: Sequence[str]) -> str:
    """`node[1-2]` where that is shorter."""
    stem = names[0].rstrip("0123456789")
    numbers = [name.removeprefix(stem) for name in names]
    if len(names) == 1 or not all(number.isdecimal() for number in numbers):
        return ",".join(names)
    return f"{stem}[{numbers[0]}-{numbers[-1]}]"
