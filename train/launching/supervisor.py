"""Starts the ranks, forwards signals to them, and turns their end into an exit code.

Signal handlers only note a signal; the one loop here acts on it. The states:

RUNNING    no stop was requested
STARTING   a stop was requested, and not every rank has its signal handlers yet
STOPPING   the signal was forwarded: the ranks save, within their grace period
LEAVING    Ctrl-C again, some seconds after the first: they have a few seconds
KILLED     the time was over
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

LEAVING_SECONDS = 10.0  # for W&B, which is sent the end of the run
ALL_LISTEN_SECONDS = 5.0  # between the first rank that has its signal handlers and the last
POLL_SECONDS = 0.1

State = enum.Enum("State", "RUNNING STARTING STOPPING LEAVING KILLED")


class Supervisor:
    def __init__(self, command: Command, grace: int) -> None:
        self._command = command
        self._grace = grace
        # One rank is started without accelerate's launcher: the child is the rank.
        self._child_is_rank = "accelerate.commands.launch" not in command.words
        self._attempt = f"{time.time():.0f}-{os.getpid()}"
        sweep()
        self._folder = Scratch()
        self._received: list[int] = []  # by the handlers, not yet acted on
        self._forwarded: list[int] = []  # to the ranks
        self._stop_signal: int | None = None  # while STARTING
        self._first_interrupt: float | None = None
        self._deadline = float("inf")
        self._all_by = float("inf")
        self._state = State.RUNNING
        self._child: subprocess.Popen[bytes]

    def run(self) -> int:
        """The exit code of launch.sh."""
        # The pipe before the handlers: a signal in between would wake nobody. What nohup has made
        # this process ignore stays ignored.
        pipe = wake_up_pipe()
        ignored = ignored_signals()
        for name in STOP_SIGNALS:
            number = getattr(signal, name)
            if number not in ignored:
                signal.signal(number, self._note)
        # A handler that does nothing: with it the end of the child writes into the pipe, and wakes
        # the loop.
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
            # What the terminal sends reaches this process alone, which forwards it to the ranks.
            start_new_session=True,
        )

    def _wait_for_child(self, pipe: int) -> None:
        while self._child.poll() is None:
            # With nothing to wait for but a signal, it sleeps; a state with a deadline is polled.
            seconds = None if self._state is State.RUNNING and not self._received else POLL_SECONDS
            if select.select([pipe], [], [], seconds)[0]:
                os.read(pipe, 4096)
            self._act()

    def _act(self) -> None:
        while self._received:
            self._on_signal(self._received.pop(0))
        if self._state is State.STARTING:
            self._forward_or_end()
        if time.monotonic() > self._deadline:
            self._kill()

    def _on_signal(self, number: int) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self._first_interrupt is None:
            self._first_interrupt = now
        elif number == signal.SIGINT and now - (self._first_interrupt or now) >= LEAVE_SECONDS:
            self._leave(now)
            return
        # The first stop sets the one deadline of all that follows; only Ctrl-C again moves it.
        if self._state is State.RUNNING:
            self._state = State.STARTING
            self._stop_signal = number
            self._deadline = now + self._grace
            self._all_by = now + ALL_LISTEN_SECONDS
        elif self._state is State.STOPPING and number not in self._forwarded:
            self._forward(number)

    def _leave(self, now: float) -> None:
        # No rank has begun anything: all is ended at once.
        if self._state is State.STARTING:
            self._deadline = now
            return
        print_error(
            f"launch: SIGINT again: leaving; what still runs is killed in {LEAVING_SECONDS:.0f} s"
        )
        send(signal.SIGINT, self._ranks())
        self._state = State.LEAVING
        self._deadline = min(self._deadline, now + LEAVING_SECONDS)

    def _forward_or_end(self) -> None:
        """Forward the signal where the ranks handle it; where none does yet, end them.

        Ranks that meet install their handlers at nearly the same time: either all can save, or
        nothing was done yet.
        """
        assert self._stop_signal is not None
        ranks = self._ranks()
        listening = [process for process in ranks if listens(process)]
        all_listen = len(listening) == len(ranks)
        if listening and (all_listen or time.monotonic() > self._all_by):
            self._state = State.STOPPING
            self._forward(self._stop_signal)
        elif not listening:
            # It counts as forwarded, so the exit code is that of the signal.
            name = signal.Signals(self._stop_signal).name
            print_error(f"launch: {name} before training began: nothing to save, all is ended")
            self._forwarded.append(self._stop_signal)
            self._state = State.STOPPING
            self._deadline = time.monotonic() + 5
            # To torchrun first, which would else start the ranks again; it ends them itself.
            launcher = [each for each in remaining(self._attempt) if each.pid == self._child.pid]
            send(signal.SIGTERM, [*launcher, *ranks])

    def _forward(self, number: int) -> None:
        seconds = self._deadline - time.monotonic()
        name = signal.Signals(number).name
        hint = ""
        if number == signal.SIGINT:
            hint = f"; Ctrl-C again after {LEAVE_SECONDS:.0f} s leaves at once"
        print_error(
            f"launch: {name} forwarded; waiting {seconds:.0f} s for the ranks to save and end{hint}"
        )
        self._forwarded.append(number)
        send(number, self._ranks())

    def _ranks(self) -> list[psutil.Process]:
        return ranks_of(self._attempt, self._child.pid, self._child_is_rank)

    def _kill(self) -> None:
        alive = remaining(self._attempt)
        if alive:
            pids = " ".join(str(process.pid) for process in alive)
            print_error(f"launch: killed what still ran at the end of its time: {pids}")
            send(signal.SIGKILL, alive)
        self._state = State.KILLED
        self._deadline = time.monotonic() + 5

    def _wait_for_the_rest(self) -> None:
        """Ranks may outlive a launcher that was killed. What even SIGKILL does not end is left."""
        # Without a stop, too, what outlives the launcher has the usual time to end.
        if not self._forwarded and self._state is not State.KILLED:
            self._deadline = time.monotonic() + self._grace
            if self._child.returncode < 0:  # the launcher was killed: let the ranks save
                send(signal.SIGTERM, self._ranks())
        while remaining(self._attempt):
            while self._received:
                self._on_signal(self._received.pop(0))
            if time.monotonic() > self._deadline:
                if self._state is State.KILLED:
                    return
                self._kill()
            time.sleep(POLL_SECONDS)

    def _ended(self) -> dict[str, Any]:
        try:
            ended: dict[str, Any] = read_json(self._folder.path / "ended.json")
        except (OSError, Unreadable):
            return {}
        return ended

    def _code(self) -> int:
        """That of ended.json, which the ranks write; without that file, the launcher's.

        The ranks themselves exit 0: accelerate's launcher would restart them after any other code,
        or turn it into 1.
        """
        launcher_code = FAILED if self._child.returncode else FINISHED
        written = self._ended().get("code")
        if isinstance(written, int):
            if written == FINISHED and launcher_code and not self._forwarded:
                return launcher_code  # it failed after the ranks had written
            return written
        # As a shell has it.
        if self._forwarded:
            return 128 + self._forwarded[-1]
        return launcher_code

    def _requeue(self, code: int) -> None:
        """Put a SLURM job back into the queue whose time ended.

        SLURM announces that by SIGUSR1, to this process (--signal=B:USR1@120) or to the ranks.
        SIGTERM comes from scancel: no requeue. The machine of rank 0 does it for all.
        """
        job = _job(os.environ)
        ended = self._ended()
        announced = signal.SIGUSR1 in self._forwarded or "SIGUSR1" in str(ended.get("reason"))
        if code != STOPPED or not job or ended.get("main") is False or not announced:
            return
        if os.environ.get("WANDB_SWEEP_ID"):
            # A trial of `wandb agent`, whose job this is; W&B has marked the trial as preempted.
            print_error(
                "launch: saved; W&B puts the trial back into the queue of its sweep, so SLURM is "
                "not asked to"
            )
            return
        print_error(f"launch: saved; job {job} goes back into the queue")
        try:
            # scontrol may end by a signal, since what it requests ends this whole job: no failure.
            failed = subprocess.run(["scontrol", "requeue", job], check=False).returncode > 0
        except OSError:
            failed = True
        if failed:
            print_error(
                "launch: scontrol requeue failed. Run: sbatch again; it resumes from the checkpoint"
            )


def print_last_words(ended: Mapping[str, Any], returncode: int, words: Sequence[str]) -> None:
    """The reason of a rank that failed alone, once more, below torchrun's own trace."""
    # With restarts it may be the reason of an earlier attempt.
    is_restarted = any(word.replace("-", "_").startswith("__max_restarts") for word in words)
    if returncode and ended.get("code") == FAILED and not is_restarted:
        print_error(f"launch: {ended['reason']}")


def _job(environment: Mapping[str, str]) -> str:
    """What scontrol takes for this job; empty where this is none.

    The number of one task of an array, the last one, is that of the array too: by it, all tasks
    would be killed and put back into the queue (seen with SLURM 22.05).
    """
    array = environment.get("SLURM_ARRAY_JOB_ID")
    task = environment.get("SLURM_ARRAY_TASK_ID")
    if array and task:
        return f"{array}_{task}"
    return environment.get("SLURM_JOB_ID", "")
