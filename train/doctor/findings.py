"""What a check gives."""

from dataclasses import dataclass

WRONG, DOUBTFUL, FINE = "wrong", "doubtful", "fine"
"""Stops a run, or makes it another one; slows it or may stop it; neither."""


@dataclass(frozen=True)
class Finding:
    level: str
    text: str
    """One sentence; where something is wrong or doubtful, what to type follows it."""


def fine(text: str) -> list[Finding]:
    return [Finding(FINE, text)]


def wrong(text: str, remedy: str) -> list[Finding]:
    return [Finding(WRONG, f"{text}. {remedy}")]


def doubtful(text: str, remedy: str) -> list[Finding]:
    return [Finding(DOUBTFUL, f"{text}. {remedy}")]
