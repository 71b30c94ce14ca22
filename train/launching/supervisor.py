"""Starts the ranks, hands signals on to them, and turns the end into an exit code.

Handlers only write a signal down; the one loop here acts on it. The states:

RUNNING    nobody asked for anything
STARTING   a stop was asked for, and no rank, or not every one, can hear of it yet
STOPPING   the ranks were told: they save, for as long as their time is
LEAVING    Ctrl-C again, some seconds after the first: they have a few seconds
KILLED     their time was over
"""

import enum
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

import psutil

from train.disk import Unreadable, read_json
from train.errors import FAILED, FINISHED, STOPPED, print_error
from train.launching import ENDED, LAUNCHER_PID, LEAVE_SECONDS, MARK, STOP_SIGNALS
from train.launching.command import Command
from train.launching.processes import (
    ignored_signals,
    listens,
    ranks_of,
    remaining,
    send,
    wake_up_pipe,
)
from train.launching.scratch import Scratch, sweep

LEAVING_SECONDS = 10.0  # W&B is told the end
ALL_LISTEN_SECONDS = 5.0  # between the first rank that can hear of a stop and the last
LOOK_SECONDS = 0.1

State = enum.Enum("State", "RUNNING STARTING STOPPING LEAVING KILLED")


class Supervisor:
    def __init__(self, command: Command, grace: int) -> None:
        self._command = command
        self._grace = grace
        # the child: no launcher between
        self._is_rank = "accelerate.commands.launch" not in command.words
        self._attempt = f"{time.time():.0f}-{os.getpid()}"
        sweep()
        self._folder = Scratch()
        self._received: list[int] = []  # by the handlers, not yet acted on
        self._told: list[int] = []  # signals that the ranks have got
        self._asked: int | None = None  # while STARTING
        self._first_interrupt: float | None = None
        self._deadline = float("inf")
        self._all_by = float("inf")
        self._state = State.RUNNING
        self._child: subprocess.Popen[bytes]

    def run(self) -> int:
        """The exit code of launch.sh."""
        pipe = wake_up_pipe()
        ignored = ignored_signals()
        for name in STOP_SIGNALS:
            number = getattr(signal, name)
            if number not in ignored:
                signal.signal(number, self._note)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            self._start()
            self._wait_for_child(pipe)
            self._wait_for_the_rest()
            code = self._code()
            print_last_words(self._ended(), self._child.returncode, self._command.words)
            self._requeue(code)
        finally:
            self._folder.remove()
        return code

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)

    def _start(self) -> None:
        variables = self._command.variables | {
            MARK: self._attempt,
            ENDED: str(self._folder.path / "ended.json"),
            LAUNCHER_PID: str(os.getpid()),
        }
        self._child = subprocess.Popen(
            self._command.words,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            # What the terminal sends reaches us alone, and the ranks by way of us.
            start_new_session=True,
        )

    def _wait_for_child(self, pipe: int) -> None:
        while self._child.poll() is None:
            seconds = None if self._state is State.RUNNING and not self._received else LOOK_SECONDS
            if select.select([pipe], [], [], seconds)[0]:
                os.read(pipe, 4096)
            self._act()

    def _act(self) -> None:
        while self._received:
            self._on_signal(self._received.pop(0))
        if self._state is State.STARTING:
            self._tell_or_end()
        if time.monotonic() > self._deadline:
            self._kill()

    def _on_signal(self, number: int) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self._first_interrupt is None:
            self._first_interrupt = now
        elif number == signal.SIGINT and now - (self._first_interrupt or now) >= LEAVE_SECONDS:
            self._leave(now)
            return
        if self._state is State.RUNNING:
            self._state = State.STARTING
            self._asked = number
            self._deadline = now + self._grace
            self._all_by = now + ALL_LISTEN_SECONDS
        elif self._state is State.STOPPING and number not in self._told:
            self._tell(number)

    def _leave(self, now: float) -> None:
        if self._state is State.STARTING:
            self._deadline = now
            return
        print_error(
            f"launch: SIGINT again: leaving; what still runs is killed in {LEAVING_SECONDS:.0f} s"
        )
        send(signal.SIGINT, self._ranks())
        self._state = State.LEAVING
        self._deadline = min(self._deadline, now + LEAVING_SECONDS)

    def _tell_or_end(self) -> None:
        """Ranks that meet begin to listen at nearly the same time: all are told, or nothing was
        done yet.
        """
        assert self._asked is not None
        ranks = self._ranks()
        hear = [process for process in ranks if listens(process)]
        if hear and (len(hear) == len(ranks) or time.monotonic() > self._all_by):
            self._state = State.STOPPING
            self._tell(self._asked)
        elif not hear:
            name = signal.Signals(self._asked).name
            print_error(f"launch: {name} before training began: nothing to save, all is ended")
            self._told.append(self._asked)
            self._state = State.STOPPING
            self._deadline = time.monotonic() + 5
            # To torchrun too, which would start the ranks again; it ends them itself.
            send(
                signal.SIGTERM,
                [process for process in remaining(self._attempt) if process.pid == self._child.pid],
            )
            send(signal.SIGTERM, ranks)

    def _tell(self, number: int) -> None:
        seconds = self._deadline - time.monotonic()
        name = signal.Signals(number).name
        more = (
            f"; Ctrl-C again after {LEAVE_SECONDS:.0f} s leaves at once"
            if number == signal.SIGINT
            else ""
        )
        print_error(
            f"launch: {name} handed on; waiting {seconds:.0f} s for the ranks to save and end{more}"
        )
        self._told.append(number)
        send(number, self._ranks())

    def _ranks(self) -> list[psutil.Process]:
        return ranks_of(self._attempt, self._child.pid, self._is_rank)

    def _kill(self) -> None:
        left = remaining(self._attempt)
        if left:
            pids = " ".join(str(process.pid) for process in left)
            print_error(f"launch: killed what still ran at the end of its time: {pids}")
            send(signal.SIGKILL, left)
        self._state = State.KILLED
        self._deadline = time.monotonic() + 5

    def _wait_for_the_rest(self) -> None:
        """Ranks may outlive a launcher that was killed. What even KILL does not end is
        left behind.
        """
        if not self._told and self._state is not State.KILLED:
            self._deadline = time.monotonic() + self._grace
            if self._child.returncode < 0:  # nobody told them: give them the chance to save
                send(signal.SIGTERM, self._ranks())
        while remaining(self._attempt):
            while self._received:
                self._on_signal(self._received.pop(0))
            if time.monotonic() > self._deadline:
                if self._state is State.KILLED:
                    return
                self._kill()
            time.sleep(LOOK_SECONDS)

    def _ended(self) -> dict[str, Any]:
        try:
            ended: dict[str, Any] = read_json(self._folder.path / "ended.json")
        except (OSError, Unreadable):
            return {}
        return ended

    def _code(self) -> int:
        """The program writes how it ended into a file and exits 0: a launcher would restart or
        flatten another code.

        Without that file nobody knows more than the launcher.
        """
        # as accelerate's launcher, where there is one
        code = FAILED if self._child.returncode else FINISHED
        told = self._ended().get("code")
        if isinstance(told, int):
            return told if told != 0 or code == 0 or self._told else code
        return 128 + self._told[-1] if self._told else code

    def _requeue(self, code: int) -> None:
        """SLURM announces the end of a job's time by SIGUSR1, to us (--signal=B:USR1@120) or to the
        ranks.

        SIGTERM is scancel, which means it. The machine of rank 0 does it.
        """
        job = _job(os.environ)
        ended = self._ended()
        announced = signal.SIGUSR1 in self._told or "SIGUSR1" in str(ended.get("reason"))
        if code != STOPPED or not job or ended.get("main") is False or not announced:
            return
        if os.environ.get("WANDB_SWEEP_ID"):
            # A trial of `wandb agent`, whose job this is; W&B was told that the trial is preempted.
            print_error(
                "launch: saved; W&B puts the trial back into the queue of its sweep, so SLURM is "
                "not asked to"
            )
            return
        print_error(f"launch: saved; job {job} goes back into the queue")
        try:
            # By a signal: what it asked for ends this whole job, and has found scontrol too.
            failed = subprocess.run(["scontrol", "requeue", job], check=False).returncode > 0
        except OSError:
            failed = True
        if failed:
            print_error(
                "launch: scontrol requeue failed; type: sbatch again, it goes on from there"
            )


def print_last_words(ended: Mapping[str, Any], returncode: int, words: Sequence[str]) -> None:
    """The reason of a rank that failed alone, once more: torchrun's own trace stands below it by
    now.
    """
    # it may be an older one
    is_restarted = any(word.replace("-", "_").startswith("__max_restarts") for word in words)
    if returncode and ended.get("code") == FAILED and not is_restarted:
        print_error(f"launch: {ended['reason']}")


def _job(environment: Mapping[str, str]) -> str:
    """What scontrol takes for this job; empty where this is none.

    The number of one task of an array, the last one, is that of the array too: by it, all tasks
    would be killed and put back into the queue (seen with SLURM 22.05).
    """
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environment.get("SLURM_JOB_ID", "")
