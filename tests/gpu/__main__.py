"""Runs the tests of this folder that need a GPU, and writes a report of them in Markdown.

./scripts/gpu_check.sh
"""

import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from tests.gpu.devices import missing

ROOT = Path(__file__).parents[2]


@dataclass
class Outcomes:
    """A plugin of pytest: what came of each test, and progress on the screen beside pytest's own."""

    # (test, outcome, seconds, reason)
    rows: list[tuple[str, str, float, str]] = field(default_factory=list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A test that passed or failed is told by its call; one that was skipped, or broke earlier,
        # by its setup.
        if report.when != "call" and report.passed:
            return
        self.rows.append(
            (
                report.nodeid.removeprefix("tests/gpu/"),
                report.outcome,
                report.duration,
                reason_of(report),
            )
        )

    def count(self, outcome: str) -> int:
        return sum(found == outcome for _, found, _, _ in self.rows)


def reason_of(report: pytest.TestReport) -> str:
    """Why a test was skipped, or the last line of its error."""
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    if report.failed:
        lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
        return (
            lines[0][2:].strip()[:200]
            if lines
            else report.longreprtext.strip().splitlines()[-1][:200]
        )
    return ""


def machine() -> list[tuple[str, str]]:
    """What the figures belong to; no name of a machine or a person."""
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    nccl: tuple[int, ...] = torch.cuda.nccl.version()
    named = []
    for index, card in enumerate(cards):
        memory_gib = card.total_memory / 2**30
        named.append(
            (f"GPU {index}", f"{card.name}, {memory_gib:.0f} GiB, sm_{card.major}{card.minor}")
        )
    return [
        *named,
        ("driver", driver()),
        (
            "torch",
            f"{torch.__version__}, CUDA {torch.version.cuda}, NCCL {'.'.join(map(str, nccl))}",
        ),
        ("accelerate", version("accelerate")),
        ("Python", platform.python_version()),
    ]


def driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(
            query, capture_output=True, text=True, check=True, timeout=60
        ).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return "unknown: nvidia-smi does not run"


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def page(
    outcomes: Outcomes, facts: Sequence[tuple[str, str]], seconds: float, words: Sequence[str]
) -> str:
    counts = [f"{outcomes.count(outcome)} {outcome}" for outcome in ("passed", "failed", "skipped")]
    lines = [
        "# What a GPU has shown",
        "",
        f"`./scripts/gpu_check.sh{''.join(f' {word}' for word in words)}` on commit {commit()}, "
        f"{date.today()}: {', '.join(counts)}, in {seconds:.0f} s.",
        "",
        *(f"- {name}: {value}" for name, value in facts),
        "",
        "| test | outcome | seconds | reason |",
        "|---|---|---|---|",
    ]
    for test, outcome, took, reason in outcomes.rows:
        shown = outcome if outcome == "passed" else f"**{outcome}**"
        lines.append(f"| `{cell(test)}` | {shown} | {took:.1f} | {cell(reason)} |")
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def place(facts: Sequence[tuple[str, str]]) -> Path:
    """docs/gpu-2-nvidia-a100-sxm4-80gb.md: by number and kind of the cards."""
    cards = [value.split(",")[0] for name, value in facts if name.startswith("GPU ")]
    kind = re.sub(r"[^a-z0-9]+", "-", cards[0].lower()).strip("-")
    return ROOT / "docs" / f"gpu-{len(cards)}-{kind}.md"


def main(words: Sequence[str]) -> int:
    reason = missing(1)
    if reason:
        print(
            f"gpu_check: nothing to check, {reason}. Start it on a machine with one or two NVIDIA "
            "GPUs.",
            file=sys.stderr,
        )
        return 1
    outcomes, begun = Outcomes(), time.monotonic()
    code = pytest.main(["tests/gpu", "-v", "-m", "gpus", *words], plugins=[outcomes])
    facts = machine()
    report = place(facts)
    report.write_text(page(outcomes, facts, time.monotonic() - begun, words))
    print(f"report: {report.relative_to(ROOT)}")
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
