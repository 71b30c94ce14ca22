"""Problems of a config, told so that the reader can fix them: where, key, what it got, why, what to
type.
"""

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    """Dotted key; empty where a whole file or argument is meant."""
    text: str
    near: tuple[str, ...] = ()
    """Keys that were probably meant: whatever seems wrong with them follows from this problem."""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.text) if part)


class ConfigError(UserError):
    """All problems of a config at once. Entry points print it and exit with 2."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        count = counted(len(problems), "problem")
        super().__init__(
            "\n".join([f"{count} in the config:", *(f"  - {problem}" for problem in problems)])
        )


def fresh(found: Iterable[Problem], known: Sequence[Problem]) -> list[Problem]:
    """Those of `found` that do not merely follow from a known problem with the same key
    or section.
    """
    broken = {problem.key for problem in known}
    troubled = broken.union(*(problem.near for problem in known))

    def follows(key: str) -> bool:
        inside = any(key.startswith(f"{other}.") for other in broken)
        return inside or any(other == key or other.startswith(f"{key}.") for other in troubled)

    return [problem for problem in found if not follows(problem.key)]


def show(value: Any) -> str:
    """A value as one would write it in YAML, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return reprlib.repr(clean(value))  # before it is shortened: half a secret is not found
