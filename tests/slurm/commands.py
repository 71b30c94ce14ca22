"""srun and scontrol, as a batch script types them: python commands.py srun ...

Sources as in controller.py. What they know of the cluster stands in the file that SLURM_CONF names.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from processes import processes, send  # type: ignore[import-not-found]

KILL_ON_BAD_EXIT = "1"  # slurm.conf(5), KillOnBadExit: a cluster may say so
WAIT_TIME_SECONDS = "1"  # slurm.conf(5), WaitTime: from the first task's end to the end of all
LOOK_SECONDS = 0.05
HANDED_ON = (signal.SIGUSR1, signal.SIGUSR2)
# srun(1); src/srun/libsrun/srun_job.c, _srun_signal_mgr: "forcing job termination"
ABORTING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)

CONF = Path(os.environ["SLURM_CONF"])
JOB = os.environ["SLURM_JOB_ID"]


class Srun:
    """One step: its tasks, one after the other over the nodes."""

    def __init__(self, words: Sequence[str]) -> None:
        command = next(place for place, word in enumerate(words) if not word.startswith("--"))
        self.command = list(words[command:])
        pairs = [word.removeprefix("--").partition("=") for word in words[:command]]
        self.options = {name: value for name, _, value in pairs}
        self.nodes = list(json.loads(CONF.read_text())["nodes"].items())[
            : int(os.environ["SLURM_JOB_NUM_NODES"])
        ]
        self.tasks = int(self.options.get("ntasks", os.environ["SLURM_NTASKS"]))
        self.step = self._next_step()
        self.received: list[int] = []
        self.first_end: float | None = None
        self.killed = False

    def _next_step(self) -> str:
        steps = CONF.parent / "steps.jsonl"
        earlier = (
            [json.loads(line) for line in steps.read_text().splitlines()] if steps.exists() else []
        )
        # A job that was put back into the queue counts from 0 again.
        start = [JOB, os.environ.get("SLURM_RESTART_COUNT", "0")]
        number = sum(told["start"] == start for told in earlier)
        # Since 22.05 not that of sbatch, whose SLURM_CPUS_PER_TASK is passed on all the same:
        # srun(1), --cpus-per-task.
        cpus = self.options.get("cpus-per-task", os.environ.get("SRUN_CPUS_PER_TASK", "1"))
        said = {"start": start, "step": number, "cpus_per_task": int(cpus), "tasks": self.tasks}
        with steps.open("a") as file:
            file.write(json.dumps(said) + "\n")
        return str(number)

    def run(self) -> int:
        for number in (*HANDED_ON, *ABORTING):
            signal.signal(number, self._note)
        started = [self._start(task) for task in range(self.tasks)]
        while None in (codes := [process.poll() for process in started]):
            while self.received:
                self._on_signal(self.received.pop(0))
            self._end_the_others(codes)
            time.sleep(LOOK_SECONDS)
        return max(self._code(task, process.returncode) for task, process in enumerate(started))

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)

    def _start(self, task: int) -> "subprocess.Popen[bytes]":
        node = task % len(self.nodes)
        name, enter = self.nodes[node]
        return subprocess.Popen([*enter, *self.command], env=self._environment(task, node, name))

    def _environment(self, task: int, node: int, name: str) -> dict[str, str]:
        exports = self.options.get("export", os.environ.get("SLURM_EXPORT_ENV", "ALL"))
        everything = dict(os.environ)
        slurm = {key: value for key, value in everything.items() if key.startswith("SLURM")}
        # srun(1), --export: of NONE, and of what sbatch was told so, only SLURM's own are left.
        found = everything if exports == "ALL" else slurm | {"PATH": "/usr/bin:/bin"}
        return found | {
            "SLURM_STEP_ID": self.step,
            "SLURM_STEPID": self.step,
            "SLURM_STEP_NUM_NODES": str(len(self.nodes)),
            "SLURM_STEP_NUM_TASKS": str(self.tasks),
            "SLURM_STEP_TASKS_PER_NODE": f"{self.tasks // len(self.nodes)}(x{len(self.nodes)})",
            "SLURM_STEP_NODELIST": os.environ["SLURM_JOB_NODELIST"],
            "SLURM_NTASKS": str(self.tasks),
            "SLURM_PROCID": str(task),
            "SLURM_NODEID": str(node),
            "SLURM_LOCALID": str(task // len(self.nodes)),
            "SLURMD_NODENAME": name,
        }

    def _on_signal(self, number: int) -> None:
        if number in ABORTING and (CONF.parent / f"ending-{JOB}").exists():
            print("srun: Job step aborted", file=sys.stderr, flush=True)
        elif number in ABORTING:
            self._kill("forcing job termination")
        else:
            send(number, processes(str(CONF), JOB, self.step))

    def _end_the_others(self, codes: Sequence[int | None]) -> None:
        ended = [code for code in codes if code is not None]
        if not ended or self.killed:
            return
        self.first_end = self.first_end or time.monotonic()
        wait = float(self.options.get("wait", WAIT_TIME_SECONDS))
        if any(ended) and self.options.get("kill-on-bad-exit", KILL_ON_BAD_EXIT) != "0":
            self._kill("Job step aborted: a task has failed")
        elif wait and time.monotonic() - self.first_end > wait:
            self._kill(f"First task exited {wait:.0f}s ago")

    def _kill(self, why: str) -> None:
        print(f"srun: {why}", file=sys.stderr, flush=True)
        self.killed = True
        send(signal.SIGKILL, processes(str(CONF), JOB, self.step))

    def _code(self, task: int, code: int) -> int:
        """srun(1), return value: the highest of all tasks."""
        name = self.nodes[task % len(self.nodes)][0]
        if code:
            how = f"Exited with exit code {code}" if code > 0 else signal.strsignal(-code)
            print(f"srun: error: {name}: task {task}: {how}", file=sys.stderr, flush=True)
        return code if code >= 0 else 128 - code


def scontrol(words: Sequence[str]) -> int:
    with (CONF.parent / "scontrol.log").open("a") as log:
        log.write(" ".join(words) + "\n")
    if len(words) != 2 or words[0] != "requeue":
        return 1
    known: dict[str, Any] = json.loads(CONF.read_text())["jobs"]
    asked = [number for number, array in known.items() if _means(words[1], number, array)]
    for number in asked:
        (CONF.parent / f"requeue-{number}").touch()
    # The controller ends this job now, this process included.
    time.sleep(10 * LOOK_SECONDS if asked else 0)
    return 0 if asked else 1


def _means(name: str, number: str, array: dict[str, str]) -> bool:
    """The number of an array is that of its last task too, and means all of them."""
    of_array = array.get("SLURM_ARRAY_JOB_ID")
    return name in (
        number if of_array != number else "",
        of_array,
        f"{of_array}_{array.get('SLURM_ARRAY_TASK_ID')}",
    )


if __name__ == "__main__":
    sys.exit(Srun(sys.argv[2:]).run() if sys.argv[1] == "srun" else scontrol(sys.argv[2:]))
