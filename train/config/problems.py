"""Problems of a config, worded so that the reader can fix them: where, got, why, what to type."""

import difflib
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from train.config.keys import under
from train.errors import UserError, counted
from train.redaction import clean

Values = Mapping[str, Any]
"""{dotted key: value}"""
Finding = tuple[str, str]
"""(key, what is wrong and what to type)"""


@dataclass(frozen=True)
class Problem:
    where: str
    """The file that set the key, or `command line`."""
    key: str
    """Dotted key; empty where the problem is a file or an argument."""
    text: str
    near: tuple[str, ...] = ()
    """Keys that were probably meant: other problems with them follow from this one."""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.text) if part)


class ConfigError(UserError):
    """All problems of a config at once. Entry points print it and exit with 2."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        lines = [f"{counted(len(problems), 'problem')} in the config:"]
        lines += [f"  - {problem}" for problem in problems]
        super().__init__("\n".join(lines))


def fresh(problems: Iterable[Problem], earlier: Sequence[Problem]) -> list[Problem]:
    """The problems that do not merely follow from an earlier one with the same key or section."""
    broken = {problem.key for problem in earlier}
    # `batch.efective=8` makes "batch.effective must be stated" follow.
    meant = {key for problem in earlier for key in problem.near}

    def follows(key: str) -> bool:
        # A wrong section makes findings on its keys follow; a wrong key, one on its section.
        is_below = any(under(key, (other,)) for other in broken)
        is_above = any(under(other, (key,)) for other in broken | meant)
        return is_below or is_above

    return [problem for problem in problems if not follows(problem.key)]


def show(value: Any) -> str:
    """A value as one would write it in YAML, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    # Cleaned before it is shortened: half a secret would not be recognised.
    return reprlib.repr(clean(value))


def closest(text: str, names: Iterable[str]) -> str | None:
    """The name that `text` was probably meant to be, upper or lower case; None if none is near."""
    # Compared in lower case, and given back as it is spelt: AdamW for adamw.
    by_lower_case = {name.lower(): name for name in names}
    near = difflib.get_close_matches(text.lower(), by_lower_case, n=1)
    return by_lower_case[near[0]] if near else None
