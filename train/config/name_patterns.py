"""Parameters by patterns over their names, as a shell has them: `blocks.0.*`, `*norm*`. Pure."""

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from train.errors import UserError


class PatternError(UserError):
    """A pattern that no parameter's name matches; the message lists near ones."""


def matching(key: str, patterns: Iterable[str], names: Sequence[str]) -> list[str]:
    """The names that match any of the patterns, in their order.

    Raises PatternError where a pattern matches nothing: a misspelt one would have no effect, and
    nobody would notice.
    """
    patterns = list(patterns)
    for pattern in patterns:
        # Not fnmatch, which ignores upper and lower case on some systems.
        if not any(fnmatchcase(name, pattern) for name in names):
            raise PatternError(f"{key}: {pattern!r} matches no parameter. {_near(pattern, names)}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _near(pattern: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(pattern, names, n=5, cutoff=0.4) or names[:5]
    text = f"Near names, of {len(names)}: {', '.join(near)}"
    if any(pattern in name for name in names):
        return f"{text}. A pattern covers the whole name: try '*{pattern}*'"
    return text
