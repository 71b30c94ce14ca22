"""All rows, and the table of what came of them."""

import re
import subprocess
import tempfile
import time
import traceback
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from tests.campaigns.faults import (
    agents,
    calls,
    disk,
    evaluating,
    foreign,
    frozen,
    full,
    launcher_files,
    launching,
    machines,
    malicious,
    resume,
    saving,
    slurm,
    starting,
    stopping,
    tracking,
    training,
    unattended,
    waiting,
)
from tests.campaigns.faults.row import Row

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "docs" / "results" / "faults.md"
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
HEAD = (
    "| # | fault | injection | expected | figure | verdict | commit, date | seconds |\n"
    + "|---" * 8
    + "|"
)

_PARTS = (
    saving,
    disk,
    full,
    training,
    starting,
    stopping,
    waiting,
    resume,
    launching,
    machines,
    slurm,
    launcher_files,
    unattended,
    agents,
    malicious,
    foreign,
    frozen,
    tracking,
    evaluating,
    calls,
)
_ORDERED = sorted(
    (row for part in _PARTS for row in part.ROWS),
    key=lambda row: (row.number.isalpha(), int(re.sub(r"\D", "", row.number) or 0), row.number),
)
ROWS: dict[str, Row] = {row.number: row for row in _ORDERED}


@dataclass(frozen=True)
class Outcome:
    row: Row
    figure: str
    passed: bool
    seconds: float

    def line(self, commit: str) -> str:
        row, verdict = self.row, "passed" if self.passed else "**failed**"
        cells = (
            row.number,
            row.fault,
            row.injection,
            row.expected,
            self.figure,
            verdict,
            commit,
            f"{self.seconds:.0f}",
        )
        return "| " + " | ".join(_in_one_line(cell) for cell in cells) + " |"


def run(row: Row, full: bool) -> Outcome:
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"faults-{row.number}-") as folder:
        try:
            figure, passed = row.run(Path(folder), full), True
        except Exception as error:
            traceback.print_exc()
            figure, passed = f"{type(error).__name__}: {str(error)[:200]}", False
    return Outcome(row, figure, passed, time.monotonic() - start)


def commit() -> str:
    """Dirty where anything but the table itself was changed."""
    changed = _git("status", "--porcelain", "--", ".", f":!{RESULTS.relative_to(ROOT)}")
    return (
        f"{_git('describe', '--always') or 'unknown'}{'-dirty' if changed else ''}, {date.today()}"
    )


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()


def _in_one_line(cell: str) -> str:
    """What a program has printed may hold line ends of every kind, and sequences for a terminal."""
    printable = "".join(letter if letter.isprintable() else " " for letter in cell)
    return " ".join(printable.replace("|", "/").split())


def write(outcomes: list[Outcome]) -> None:
    """Into docs/results/faults.md, between the two marks; rows that were not run now stay as they are."""
    text = RESULTS.read_text()
    if BEGIN not in text:
        text = f"{text.rstrip()}\n\n{BEGIN}\n{HEAD}\n{END}\n"
    before, rest = text.split(BEGIN)
    inside, after = rest.split(END)
    known = {line.split("|")[1].strip(): line for line in inside.strip().splitlines()[2:]}
    known |= {outcome.row.number: outcome.line(commit()) for outcome in outcomes}
    ordered = [known[number] for number in ROWS if number in known]
    RESULTS.write_text(f"{before}{BEGIN}\n{HEAD}\n" + "\n".join(ordered) + f"\n{END}{after}")
