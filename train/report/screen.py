"""What a person sees: the plan, one live line (or plain lines where there is no terminal), the
closing line.
"""

import sys
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TextIO

from train import metric_names
from train.redaction import clean
from train.report.live import FittedLine, live_line
from train.report.progress import duration
from train.terminal import on_lines, on_one_line, write_lines

LINE_WIDTH = 80
"""Of a plain line of a step: what a log of SLURM shows without a break."""

Row = Mapping[str, float]


class Screen:
    """Rank 0's. Everything but the live line also goes to `log_file`.

    A full disk raises OSError; a terminal that is gone does not.
    """

    def __init__(self, total_steps: int, log_file: TextIO, memory_gib: float) -> None:
        self._total_steps = total_steps
        self._memory_gib = memory_gib
        self._log_file = log_file
        self._evaluation = ""
        self._live = live_line()

    def say(self, *lines: str) -> None:
        """Print lines. What moves a cursor is escaped: a line may hold the text of any exception,
        or a file's name.
        """
        if not lines:
            return
        # Redacted here, at the last place before a terminal and a log that others may read.
        text = on_lines(clean("\n".join(lines)))
        if self._live:
            self._live.console.print(text)
        else:
            write_lines(text, sys.stdout)
        self._write_to_log(text)

    def _write_to_log(self, text: str) -> None:
        self._log_file.write(text + "\n")
        # At once: a run that is killed has its last lines in log.txt.
        self._log_file.flush()

    def log(self, row: Row) -> None:
        """A row of metrics: of a save, an audit, an evaluation, or a step."""
        # By what only such a row holds: rows carry no kind.
        step = self._step(row)
        if metric_names.SAVE_SECONDS in row:
            self.say(f"{step}  saved in {duration(row[metric_names.SAVE_SECONDS])}")
        elif metric_names.SPLIT_ERROR in row:
            self.say(f"{step}  {_audit(row)}")
        elif metric_names.LEARNING_RATE not in row:
            self.say(f"{step}  {_evaluation(row)}")
        else:
            self._log_step(row)

    def _log_step(self, row: Row) -> None:
        line = "  ".join([self._step(row), *_step_parts(row)])
        line = _fitted(line, [_peak(row)], LINE_WIDTH)
        if self._live:
            # The evaluation as of now: the live line is drawn again until the next row comes.
            text = partial(self._live_text, row, self._evaluation)
            self._live.update(FittedLine(text))
            self._write_to_log(on_one_line(line))
        else:
            self.say(line)

    def best(self, text: str) -> None:
        """The last and the best evaluation, for the live line."""
        self._evaluation = text

    def end(self, *lines: str) -> None:
        """The closing lines, in the place of the live one."""
        if self._live:
            self._live.stop()
            # None before the lines are printed: say() would else print through a display that has
            # ended.
            self._live = None
        self.say(*lines)

    def finish(self, exit_code: int) -> None:
        self.end()
        self._log_file.close()

    def _step(self, row: Row) -> str:
        # As wide as the total, so that lines stand below each other.
        digits = len(str(self._total_steps))
        return f"step {row[metric_names.GLOBAL_STEP]:>{digits}.0f}/{self._total_steps}"

    def _live_text(self, row: Row, evaluation: str, width: int) -> str:
        """As many of the parts, the most important first, as there is room for."""
        steps_left = self._total_steps - row[metric_names.GLOBAL_STEP]
        seconds_left = steps_left * row[metric_names.STEP_SECONDS]
        peak = _peak(row)
        if peak:
            peak = f"{peak.removesuffix(' GiB')} of {self._memory_gib:.3g} GiB"
        parts = [
            _loss(row),
            evaluation,
            _speed(row),
            f"{duration(seconds_left)} left",
            peak,
            _shares_of_time(row),
        ]
        return on_one_line(_fitted(self._step(row), parts, width))


# Parts of a line. Each is empty where its metrics are absent.


def _fitted(line: str, parts: Iterable[str], width: int) -> str:
    """The line, and behind it as many of the parts as there is room for, the first before the later
    ones.
    """
    # A part that does not fit is left out, and a shorter one behind it may still fit.
    for part in filter(None, parts):
        if len(line) + 2 + len(part) <= width:
            line += "  " + part
    return line


def _loss(row: Row) -> str:
    """Of the step, and in brackets the mean over all steps since the row before."""
    loss = row.get(metric_names.LOSS)
    mean = row.get(metric_names.LOSS_MEAN)
    if loss is None and mean is None:
        return ""
    if loss is None:
        return f"mean loss {mean:.4f}"
    if mean is None:
        return f"loss {loss:.4f}"
    return f"loss {loss:.4f} ({mean:.4f})"


def _peak(row: Row) -> str:
    peak = row.get(metric_names.PEAK_ALLOCATED, row.get(metric_names.PEAK_RSS))
    return "" if peak is None else f"{peak:.2f} GiB"


def _speed(row: Row) -> str:
    if metric_names.TOKENS_PER_SECOND in row:
        return f"{row[metric_names.TOKENS_PER_SECOND]:,.0f} tokens/s"
    return f"{row[metric_names.SAMPLES_PER_SECOND]:,.0f}/s"


def _step_parts(row: Row) -> list[str]:
    parts = [
        _loss(row),
        f"lr {row[metric_names.LEARNING_RATE]:.2e}",
        f"batch {row[metric_names.EFFECTIVE_SIZE]:.0f}",
        _speed(row),
    ]
    if row[metric_names.SKIPPED_STEPS]:
        parts.append(f"{row[metric_names.SKIPPED_STEPS]:.0f} skipped")
    return list(filter(None, parts))


def _evaluation(row: Row) -> str:
    """The size of the main set stands behind its metrics; those of the further sets are in
    metrics.jsonl.
    """
    parts = ["eval"]
    for key, value in row.items():
        name = key.removeprefix(metric_names.EVAL)
        if name == "samples":
            parts.append(f"on {value:,.0f} samples")
        elif key.startswith(metric_names.EVAL) and not name.endswith("/samples"):
            parts.append(f"{name} {value:.4f}")
    return "  ".join(parts)


def _audit(row: Row) -> str:
    verdict = "verified" if row[metric_names.VERIFIED] else "not verified"
    seconds = duration(row[metric_names.AUDIT_SECONDS])
    error = row[metric_names.SPLIT_ERROR]
    return f"audit: {verdict}, cut another way the gradient differs by {error:.1e}, in {seconds}"


def _shares_of_time(row: Row) -> str:
    """Of the step that was measured last: the share of each phase in its time."""
    if metric_names.FORWARD_BACKWARD_SECONDS not in row:
        return ""
    sync = row.get(metric_names.SYNC_SECONDS)
    # The reduction runs inside of the last backward pass, and is timed in both.
    forward_backward = row[metric_names.FORWARD_BACKWARD_SECONDS] - (sync or 0.0)
    seconds = {
        "data": row[metric_names.DATA_SECONDS],
        "compute": forward_backward + row[metric_names.OPTIMIZER_SECONDS],
    }
    if sync is not None:  # one rank has none
        seconds["sync"] = sync
    seconds["rest"] = row[metric_names.REST_SECONDS]
    total = sum(seconds.values())
    return " ".join(f"{phase} {share / total:.0%}" for phase, share in seconds.items())
