"""W&B, wrapped: the rows of rank 0 go there too, and whatever happens to them there never reaches
the training.

metrics.jsonl is the record of truth. All calls of a running W&B are made in a thread of its own:
one that raises, waits for a dead server or hangs (seen: `run.log`, for ever, where wandb-core is
stuck) costs one warning, not a training run.
"""

import os
import queue
import shlex
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from train import metric_names
from train.config.schema import Wandb
from train.errors import STOPPED
from train.redaction import clean, learn
from train.report.environment import private
from train.report.login import TrackerError, check_login, chosen_mode
from train.report.wandb_log import becomes_whole
from train.report.wandb_run import open_run
from train.report.wandb_settings import CLOSED, labels, unused
from train.terminal import on_lines, write_lines

LONGEST_QUEUE, GRACE_SECONDS = 10_000, 3.0
"""Rows that may wait for W&B; how much later than it promised it may end."""
LONGEST_TITLE = 63
"""Of an alert."""


class Tracker:
    """One run in W&B. Without a run (disabled, other ranks, a failed start) its methods
    do nothing.
    """

    start_seconds = 30.0
    finish_seconds = 60.0

    def __init__(self, how_to_see: str = "not tracked: wandb.mode=disabled") -> None:
        self.url: str | None = None
        self.run_id: str | None = None
        self._how_to_see = how_to_see
        self._run: Any = None
        self._where = ""
        self._file = Path()
        self.unused = ""  # the variables of W&B that have no effect here
        self._jobs: queue.Queue[Callable[[], object] | None] = queue.Queue(LONGEST_QUEUE)
        self._thread: threading.Thread | None = None
        self._warned = self._failed = False

    @classmethod
    def start(
        cls,
        config: Wandb,
        *,
        run_name: str,
        default_group: str,
        job_type: str,
        folder: Path,
        run_config: Mapping[str, Any],
        run_id: str | None = None,
    ) -> "Tracker":
        """To be called on rank 0 only; files go to folder/wandb. `run_config` is sent as the run's
        config.

        `run_id`: of a run to go on with.
        A W&B that cannot be reached costs a warning: the run is then tracked offline.
        Raises TrackerError as check_login does.
        """
        check_login(config)
        mode = chosen_mode(config)
        if mode == "disabled":
            return cls()
        tracker = cls("not tracked: W&B could not be started")
        learn(run_config)
        told = dict(run_config)
        if config.privacy and "environment" in told:
            told["environment"] = private(told["environment"])
        said = {
            **labels(config, run_name=run_name, group=default_group, job_type=job_type),
            "run_id": run_id,
            "resume": "allow" if run_id else None,
            "host": "" if config.privacy else None,
            "init_timeout": cls.start_seconds,
            "finish_timeout": cls.finish_seconds,
        }
        settings = {key: value for key, value in clean(said).items() if value is not None}
        tracker._open(mode, settings | {"root_dir": str(folder.absolute())}, clean(told))
        return tracker

    def _open(self, mode: str, settings: dict[str, Any], run_config: dict[str, Any]) -> None:
        failures = []
        for attempt in dict.fromkeys((mode, "offline")):
            try:
                self._run = open_run(settings | {"mode": attempt}, run_config)
                self.unused = unused({**CLOSED, **settings, "mode": attempt}, os.environ)
                break
            except TrackerError:
                raise
            except Exception as error:
                failures.append(f"could not start {attempt} ({first_line(error)})")
        if failures:
            self.warn(
                f"{', '.join(failures)}; "
                f"{'tracking offline' if self._run else 'this run is not tracked'}"
            )
        if not self._run:
            return
        self.run_id, self.url = self._run.id, self._run.url
        folder = Path(os.path.relpath(Path(self._run.dir).parent))
        self._file = folder.absolute() / f"run-{self.run_id}.wandb"
        self._where = f"wandb sync {_all_starts(folder, self._run.id)}"
        threading.excepthook = partial(self._on_thread_error, threading.excepthook)
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Nothing more reaches W&B."""
        return self._failed

    @property
    def how_to_see(self) -> str:
        """Where to look, or what to type first."""
        if not self._run:
            return self._how_to_see
        if self._failed:
            return f"incomplete: {self._where}"
        return self.url or self._where

    def log(self, row: Mapping[str, float]) -> None:
        """Send a row; it must hold progress/samples_seen, the x-axis of all. Returns at once."""
        self.do(lambda run, row: run.log(row), dict(row))

    def alert(self, title: str, text: str, level: str) -> None:
        """`level`: INFO, WARN or ERROR."""
        told = clean({"title": title[:LONGEST_TITLE], "text": text, "level": level})
        self.do(lambda run, told: run.alert(**told), told)

    def summarise(self, scalars: Mapping[str, float | str]) -> None:
        """Columns of the table of runs, beside the last value of each metric."""
        texts = {name: value for name, value in scalars.items() if isinstance(value, str)}
        told = {**scalars, **clean(texts)}
        self.do(lambda run, told: run.summary.update(told), told)

    def forget_end(self) -> None:
        """What an earlier start has said of its end: a run that goes on has not ended."""

        def forget(run: Any, prefix: str) -> None:
            ends = [name for name in dict(run.summary) if name.startswith(prefix)]
            for name in ends:
                del run.summary[name]

        self.do(forget, metric_names.ENDED)

    def finish(self, exit_code: int) -> None:
        """Wait, not for ever, until everything has arrived. Later calls do nothing."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        try:
            if not self._failed:
                self._put(partial(self._finish, exit_code))
                self._put(None)
            thread.join(self.finish_seconds + GRACE_SECONDS)
            if thread.is_alive():
                self._fail(f"did not end within {self.finish_seconds:.0f} s")
        finally:
            if thread.is_alive() or self._failed:
                _abandon()

    def do(self, call: Callable[[Any, Any], object], argument: Any) -> None:
        if self._thread and not self._failed:
            self._put(partial(call, self._run, argument))

    def _put(self, job: Callable[[], object] | None) -> None:
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            self._fail("takes no more rows")

    def _finish(self, exit_code: int) -> None:
        """In the thread, as its last job."""
        if exit_code == STOPPED:  # before a code that is not 0: preempted, not failed
            self._run.mark_preempting()
        self._run.finish(exit_code=exit_code)
        # A full disk costs nothing online: the rows have arrived all the same (seen: 600 of 600).
        if self.url is None and not becomes_whole(self._file, GRACE_SECONDS):
            lost = (
                f"{self._file} ends before the run does, as on a full disk: W&B lacks the last rows"
            )
            self.warn(f"{lost}, and metrics.jsonl has all. To send what it has: {self._where}")

    def _work(self) -> None:
        """The thread: the jobs one after the other, up to the first that fails."""
        try:
            while job := self._jobs.get():
                job()
        except Exception as error:
            is_over = "is finished" in str(error)
            self._fail(
                "other code has ended this run (wandb.finish)" if is_over else first_line(error)
            )

    def _on_thread_error(self, otherwise: Callable[[Any], object], error: Any) -> None:
        """wandb's own threads end with a traceback each when wandb-core is gone; one warning says
        it all.
        """
        modules = [
            frame.f_globals.get("__name__", "")
            for frame, _ in traceback.walk_tb(error.exc_traceback)
        ]
        if any(module.startswith("wandb.") for module in modules):
            self._fail(first_line(error.exc_value))
        else:
            otherwise(error)

    def _fail(self, why: str) -> None:
        self._failed = True
        self.warn(
            f"{why}. The training goes on, and metrics.jsonl has all rows; to send what W&B has: "
            f"{self._where}"
        )

    def warn(self, text: str) -> None:
        """Once for a run: what follows is mostly the same trouble."""
        if not self._warned:
            self._warned = True
            self.tell(text)

    def tell(self, text: str) -> None:
        write_lines(on_lines(clean(f"W&B: {text}")))


def _all_starts(folder: Path, run_id: str) -> str:
    """For a shell: this folder of an offline run, and those of its earlier starts, in
    their order.
    """
    name = f"offline-run-*-{shlex.quote(run_id)}*"  # a second start of one second ends in -1
    if len(list(folder.parent.glob(name))) < 2:
        return shlex.quote(str(folder))
    return f"{shlex.quote(str(folder.parent))}/{name}"


def _abandon() -> None:
    """Let go of wandb-core: the interpreter would wait for it at its end, and a `| tee` for the
    output it inherited.
    """
    import wandb

    # An error in it ends in _on_thread_error.
    thread = threading.Thread(target=wandb.teardown, daemon=True)
    thread.start()
    thread.join(GRACE_SECONDS)
    if thread.is_alive():
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                if child.name().startswith("wandb-core"):
                    child.kill()
        thread.join(GRACE_SECONDS)


def first_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
