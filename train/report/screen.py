"""What a person sees: the plan, one live line (or plain lines where there is no terminal), the
closing line.
"""

import sys
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TextIO

from train import metric_names
from train.redaction import clean
from train.report.live import Fitted, live_line
from train.report.progress import duration
from train.terminal import on_lines, on_one_line, write_lines

LINE_WIDTH = 80  # of a plain line of a step: what a log of SLURM shows without a break


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
        """What moves a cursor is escaped: a line may hold the text of any exception, or a file's
        name.
        """
        if not lines:
            return
        text = on_lines(clean("\n".join(lines)))
        if self._live:
            self._live.console.print(text)
        else:
            write_lines(text, sys.stdout)
        self._note(text)

    def _note(self, text: str) -> None:
        self._log_file.write(text + "\n")
        self._log_file.flush()

    def log(self, row: Mapping[str, float]) -> None:
        """A row of metrics: of an evaluation, or of a step."""
        if metric_names.SAVE_SECONDS in row:
            self.say(f"{self._step(row)}  saved in {duration(row[metric_names.SAVE_SECONDS])}")
            return
        if metric_names.SPLIT_ERROR in row:
            self.say(f"{self._step(row)}  {_audit(row)}")
            return
        if metric_names.LEARNING_RATE not in row:
            self.say(self._step(row) + "  " + _evaluation(row))
            return
        line = _fitted(self._step(row) + "  " + "  ".join(_step_parts(row)), _peak(row), LINE_WIDTH)
        if self._live:
            self._live.update(Fitted(partial(self._live_text, row, self._evaluation)))
            self._note(on_one_line(line))
        else:
            self.say(line)

    def best(self, text: str) -> None:
        """The last and the best evaluation, for the live line."""
        self._evaluation = text

    def end(self, *lines: str) -> None:
        """The closing lines, in the place of the live one."""
        if self._live:
            self._live.stop()
            self._live = None
        self.say(*lines)

    def finish(self, exit_code: int) -> None:
        self.end()
        self._log_file.close()

    def _step(self, row: Mapping[str, float]) -> str:
        return (
            "step "
            f"{row[metric_names.GLOBAL_STEP]:>{len(str(self._total_steps))}.0f}/{self._total_steps}"
        )

    def _live_text(self, row: Mapping[str, float], evaluation: str, width: int) -> str:
        """As many of the parts, the most wanted first, as there is room for."""
        left = (self._total_steps - row[metric_names.GLOBAL_STEP]) * row[metric_names.STEP_SECONDS]
        peak = [f"{text.removesuffix(' GiB')} of {self._memory_gib:.3g} GiB" for text in _peak(row)]
        parts = [
            *_loss(row),
            evaluation,
            _speed(row),
            f"{duration(left)} left",
            *peak,
            _shares(row),
        ]
        return on_one_line(_fitted(self._step(row), parts, width))


def _fitted(line: str, parts: Iterable[str], width: int) -> str:
    """With as many of the parts behind it as there is room for, the first before the later ones."""
    for part in filter(None, parts):
        if len(line) + 2 + len(part) <= width:
            line += "  " + part
    return line


def _loss(row: Mapping[str, float]) -> list[str]:
    """Of the step, and in brackets the mean over all steps since the row before; either may be
    absent.
    """
    loss, mean = row.get(metric_names.LOSS), row.get(metric_names.LOSS_MEAN)
    if loss is None:
        return [] if mean is None else [f"mean loss {mean:.4f}"]
    return [f"loss {loss:.4f}" if mean is None else f"loss {loss:.4f} ({mean:.4f})"]


def _peak(row: Mapping[str, float]) -> list[str]:
    peak = row.get(metric_names.PEAK_ALLOCATED, row.get(metric_names.PEAK_RSS))
    return [] if peak is None else [f"{peak:.2f} GiB"]


def _speed(row: Mapping[str, float]) -> str:
    if metric_names.TOKENS_PER_SECOND in row:
        return f"{row[metric_names.TOKENS_PER_SECOND]:,.0f} tokens/s"
    return f"{row[metric_names.SAMPLES_PER_SECOND]:,.0f}/s"


def _step_parts(row: Mapping[str, float]) -> list[str]:
    parts = _loss(row)
    parts.append(f"lr {row[metric_names.LEARNING_RATE]:.2e}")
    parts.append(f"batch {row[metric_names.EFFECTIVE_SIZE]:.0f}")
    parts.append(_speed(row))
    if row[metric_names.SKIPPED_STEPS]:
        parts.append(f"{row[metric_names.SKIPPED_STEPS]:.0f} skipped")
    return parts


def _evaluation(row: Mapping[str, float]) -> str:
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


def _audit(row: Mapping[str, float]) -> str:
    verdict = "verified" if row[metric_names.VERIFIED] else "not verified"
    seconds = duration(row[metric_names.AUDIT_SECONDS])
    error = row[metric_names.SPLIT_ERROR]
    return f"audit: {verdict}, cut another way the gradient differs by {error:.1e}, in {seconds}"


def _shares(row: Mapping[str, float]) -> str:
    """Of the step that was measured last: how much of it was which phase."""
    if metric_names.FORWARD_BACKWARD_SECONDS not in row:
        return ""
    sync = row.get(metric_names.SYNC_SECONDS, 0.0)
    compute = (
        row[metric_names.FORWARD_BACKWARD_SECONDS] - sync + row[metric_names.OPTIMIZER_SECONDS]
    )
    parts = {
        "data": row[metric_names.DATA_SECONDS],
        "compute": compute,
        "sync": sync,
        "rest": row[metric_names.REST_SECONDS],
    }
    total = sum(parts.values())
    # one rank has none
    known = (name for name in parts if name != "sync" or metric_names.SYNC_SECONDS in row)
    return " ".join(f"{name} {parts[name] / total:.0%}" for name in known)
