"""W&B, wrapped: the rows of rank 0 go there too, and whatever happens to them there never reaches
the training.

metrics.jsonl is the record of truth. All calls of a running W&B are made in a separate thread:
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
from train.report.login import TrackerError, tracking_mode
from train.report.wandb_log import becomes_complete
from train.report.wandb_run import open_run
from train.report.wandb_settings import FIXED, labels, unused_variables
from train.terminal import on_lines, write_lines

LONGEST_QUEUE = 10_000
"""Rows that may wait for W&B."""
GRACE_SECONDS = 3.0
"""How much later than its own limit W&B may end."""
LONGEST_TITLE = 63
"""Characters of an alert's title."""

Call = Callable[[Any, Any], object]
"""call(run, argument), in the thread of W&B."""


class Tracker:
    """One run in W&B. Without a run (disabled, other ranks, a failed start) its methods
    do nothing.
    """

    start_seconds = 30.0
    finish_seconds = 60.0

    def __init__(self, how_to_see: str = "not tracked: wandb.mode=disabled") -> None:
        self.url: str | None = None
        self.run_id: str | None = None
        self.unused_variables = ""
        """A line on the WANDB_* variables that have no effect here."""
        self._how_to_see = how_to_see
        self._run: Any = None
        self._sync_command = ""
        self._file = Path()
        # Bounded: a W&B that takes nothing for hours must not fill the memory of the run.
        self._jobs: queue.Queue[Callable[[], object] | None] = queue.Queue(LONGEST_QUEUE)
        self._thread: threading.Thread | None = None
        self._warned = False
        self._failed = False

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
        """To be called on rank 0 only; files go to folder/wandb. `run_id`: of a run to resume.

        `run_config` is sent as the run's config. A W&B that cannot be reached costs a warning: the
        run is then tracked offline. Raises TrackerError as open_run does.
        """
        mode = tracking_mode(config)
        if mode == "disabled":
            return cls()
        tracker = cls("not tracked: W&B could not be started")
        # All secrets of the config are known before anything of it is sent.
        learn(run_config)
        sent_config = dict(run_config)
        if config.privacy and "environment" in sent_config:
            sent_config["environment"] = private(sent_config["environment"])
        settings = {
            **labels(config, run_name=run_name, group=default_group, job_type=job_type),
            "run_id": run_id,
            "resume": "allow" if run_id else None,
            "host": "" if config.privacy else None,
            "init_timeout": cls.start_seconds,
            "finish_timeout": cls.finish_seconds,
        }
        settings = {key: value for key, value in clean(settings).items() if value is not None}
        # Not redacted: a folder whose path looked like a secret would become another folder.
        settings["root_dir"] = str(folder.absolute())
        tracker._open(mode, settings, clean(sent_config))
        return tracker

    def _open(self, mode: str, settings: dict[str, Any], run_config: dict[str, Any]) -> None:
        """Open the run, offline where `mode` fails, and start the thread that talks to it."""
        failures = []
        # Offline after a failure: rows can still be sent by `wandb sync`.
        for attempt in dict.fromkeys((mode, "offline")):
            try:
                self._run = open_run(settings | {"mode": attempt}, run_config)
                used = {**FIXED, **settings, "mode": attempt}
                self.unused_variables = unused_variables(used, os.environ)
                break
            # The user's own code holds the run: offline would not help.
            except TrackerError:
                raise
            except Exception as error:
                failures.append(f"could not start {attempt} ({first_line(error)})")
        if failures:
            outcome = "tracking offline" if self._run else "this run is not tracked"
            self.warn_once(f"{', '.join(failures)}; {outcome}")
        if not self._run:
            return
        self.run_id = self._run.id
        self.url = self._run.url
        # Relative, as `wandb sync` is run from where the training was started.
        folder = Path(os.path.relpath(Path(self._run.dir).parent))
        self._file = folder.absolute() / f"run-{self.run_id}.wandb"
        self._sync_command = f"wandb sync {_folders_of_all_starts(folder, self._run.id)}"
        threading.excepthook = partial(self._on_thread_error, threading.excepthook)
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Nothing more reaches W&B."""
        return self._failed

    @property
    def how_to_see(self) -> str:
        """Where to look, or the command to run first."""
        if not self._run:
            return self._how_to_see
        if self._failed:
            return f"incomplete: {self._sync_command}"
        return self.url or self._sync_command

    def log(self, row: Mapping[str, float]) -> None:
        """Send a row; it must hold progress/samples_seen, the x-axis of all. Returns at once."""
        # A copy: the caller's row may change before the thread comes to it.
        self.do(lambda run, row: run.log(row), dict(row))

    def alert(self, title: str, text: str, level: str) -> None:
        """`level`: INFO, WARN or ERROR."""
        alert = clean({"title": title[:LONGEST_TITLE], "text": text, "level": level})
        self.do(lambda run, alert: run.alert(**alert), alert)

    def summarise(self, scalars: Mapping[str, float | str]) -> None:
        """Columns of the table of runs, beside the last value of each metric."""
        texts = {name: value for name, value in scalars.items() if isinstance(value, str)}
        columns = {**scalars, **clean(texts)}
        self.do(lambda run, columns: run.summary.update(columns), columns)

    def forget_end(self) -> None:
        """Remove the columns on the end of an earlier start: a run that resumes has not ended."""

        def forget(run: Any, prefix: str) -> None:
            ends = [name for name in dict(run.summary) if name.startswith(prefix)]
            for name in ends:
                del run.summary[name]

        self.do(forget, metric_names.ENDED)

    def finish(self, exit_code: int) -> None:
        """Wait, not for ever, until everything has arrived. Later calls do nothing."""
        # Taken first, so that a second call finds nothing to wait for.
        thread = self._thread
        self._thread = None
        if thread is None:
            return
        try:
            if not self._failed:
                self._put(partial(self._finish, exit_code))
                self._put(None)
            # W&B has a limit of its own (finish_timeout); the grace is for a thread that it holds
            # all the same.
            thread.join(self.finish_seconds + GRACE_SECONDS)
            if thread.is_alive():
                self._fail(f"did not end within {self.finish_seconds:.0f} s")
        finally:
            if thread.is_alive() or self._failed:
                _tear_down()

    def do(self, call: Call, argument: Any) -> None:
        """`call(run, argument)`, in the thread, after all that was asked for before."""
        if self._thread and not self._failed:
            self._put(partial(call, self._run, argument))

    def _put(self, job: Callable[[], object] | None) -> None:
        try:
            # Never waits: a training step must not depend on W&B.
            self._jobs.put_nowait(job)
        except queue.Full:
            self._fail("takes no more rows")

    def _finish(self, exit_code: int) -> None:
        """In the thread, as its last job."""
        # Before a code that is not 0: W&B then shows the run as preempted, not as failed.
        if exit_code == STOPPED:
            self._run.mark_preempting()
        self._run.finish(exit_code=exit_code)
        # A full disk costs nothing online: the rows have arrived all the same (seen: 600 of 600).
        if self.url is None and not becomes_complete(self._file, GRACE_SECONDS):
            self.warn_once(
                f"{self._file} ends before the run does, as on a full disk: W&B lacks the last "
                "rows, and metrics.jsonl has all. To send what it has, run: "
                f"{self._sync_command}"
            )

    def _work(self) -> None:
        """The thread: the jobs one after the other, up to the first that fails."""
        try:
            while job := self._jobs.get():
                job()
        except Exception as error:
            why = first_line(error)
            if "is finished" in str(error):
                why = "other code has ended this run (wandb.finish)"
            self._fail(why)

    def _on_thread_error(self, previous_hook: Callable[[Any], object], error: Any) -> None:
        """As threading.excepthook: wandb's own threads end with a traceback each when wandb-core
        is gone, and one warning replaces them all.
        """
        # By module: an error of the user's threads goes where it went before.
        frames = [frame for frame, _ in traceback.walk_tb(error.exc_traceback)]
        modules = [frame.f_globals.get("__name__", "") for frame in frames]
        if any(module.startswith("wandb.") for module in modules):
            self._fail(first_line(error.exc_value))
        else:
            previous_hook(error)

    def _fail(self, why: str) -> None:
        self._failed = True
        self.warn_once(
            f"{why}. The training continues, and metrics.jsonl has all rows. To send what W&B "
            f"has, run: {self._sync_command}"
        )

    def warn_once(self, text: str) -> None:
        """Once for a run: what follows is mostly the same trouble."""
        if not self._warned:
            self._warned = True
            self.warn(text)

    def warn(self, text: str) -> None:
        write_lines(on_lines(clean(f"W&B: {text}")))


def _folders_of_all_starts(folder: Path, run_id: str) -> str:
    """For a shell: this folder of an offline run, and those of its earlier starts, in
    their order.
    """
    pattern = f"offline-run-*-{shlex.quote(run_id)}*"  # a second start in one second ends in -1
    if len(list(folder.parent.glob(pattern))) < 2:
        return shlex.quote(str(folder))
    return f"{shlex.quote(str(folder.parent))}/{pattern}"


def _tear_down() -> None:
    """End wandb-core: the interpreter would wait for it at its end, and a `| tee` for the output it
    inherited.
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
