"""How a run that starts differs from the one in its folder, in words."""

from collections.abc import Mapping
from typing import Any

from train.config.code_hash import is_comparable

SHOWN = 12
"""Keys at most."""

Differing = Mapping[str, tuple[Any, Any]]
"""{key of the config, or `code`: (value there, value now)}"""

OTHER_HASHES = (
    "An earlier version wrote it, which hashed the files of the code by name and content. This "
    "one hashes what\nthey compute: the two hashes cannot be compared."
)


def lines(differing: Differing) -> list[str]:
    # The first ones are enough to see that it is another run; a long list hides the ways out.
    first = list(differing.items())[:SHOWN]
    return [f"  {key}: {there!r} there, {now!r} now" for key, (there, now) in first]


def other_run(differing: Differing) -> str:
    """What the folder holds instead; one line for each key."""
    shown = "\n".join(lines(differing))
    # A hash of another kind differs always, and says nothing about the code.
    if not _is_first_edition(differing):
        return f"a run with other mathematics:\n{shown}"
    if list(differing) != ["code"]:
        return f"a run with other mathematics:\n{shown}\n{OTHER_HASHES}"
    return (
        f"a run of an earlier version:\n{shown}\n{OTHER_HASHES} Nothing else differs. If you have "
        "not\nchanged your own code, you can resume all the same."
    )


def _is_first_edition(differing: Differing) -> bool:
    """Whether the hash of the code is of another kind there."""
    there, _ = differing.get("code", (None, None))
    # None: a plan.json without it, of which nothing is known.
    return there is not None and not is_comparable(there)
