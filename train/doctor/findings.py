"""What a check returns."""

from dataclasses import dataclass

WRONG = "wrong"
"""Stops a run, or makes it train something else."""
DOUBTFUL = "doubtful"
"""Slows a run, or may stop it."""
FINE = "fine"


@dataclass(frozen=True)
class Finding:
    level: str
    text: str
    """One sentence; unless it is fine, followed by what to do."""


def fine(text: str) -> list[Finding]:
    return [Finding(FINE, text)]


def wrong(text: str, remedy: str) -> list[Finding]:
    return [Finding(WRONG, f"{text}. {remedy}")]


def doubtful(text: str, remedy: str) -> list[Finding]:
    return [Finding(DOUBTFUL, f"{text}. {remedy}")]
