"""Texts that become names of folders, or are shown: what no file system takes, and what a terminal
would obey.
"""

import os
import unicodedata
from collections.abc import Iterator, Sequence

from train.config.problems import ConfigError, Finding, Problem, Values

LONGEST_NAME, LONGEST_PART = 200, 255
"""Bytes: a file system takes 255, and names beside a run folder are longer than its own."""
SHOWN = (
    "name",
    "output_dir",
    "wandb.entity",
    "wandb.project",
    "wandb.group",
    "wandb.name",
    "wandb.tags",
)
HIDDEN = {
    "Cc": "a control character",
    "Cf": "an invisible character",
    "Cs": "no character",
    "Zl": "a line break",
}
HIDDEN["Zp"] = HIDDEN["Zl"]


def check_letters(argv: Sequence[str]) -> None:
    """Bytes of a command line that are no UTF-8 can be written into no file. Raises ConfigError."""
    broken = [word for word in argv if _is_broken(word)]
    problems = [
        Problem("command line", "", f"got {word!a}, which is no UTF-8. Type it anew")
        for word in broken
    ]
    if problems:
        raise ConfigError(problems)


def _hidden(values: Values) -> Iterator[Finding]:
    for key in SHOWN:
        texts = values[key] if isinstance(values[key], list) else [values[key]]
        for text in texts:
            found = [letter for letter in text or "" if unicodedata.category(letter) in HIDDEN]
            if found:
                kind = HIDDEN[unicodedata.category(found[0])]
                shown = "".join(ascii(each)[1:-1] if each in found else each for each in text)
                yield key, f"got '{shown}'; U+{ord(found[0]):04X} in it is {kind}. Leave it out"


def _long(values: Values) -> Iterator[Finding]:
    name = values["name"] or ""
    size = len(os.fsencode(name) if not _is_broken(name) else name)
    if size > LONGEST_NAME:
        yield (
            "name",
            f"got {size} bytes; it names a folder, and may have {LONGEST_NAME}. Write a shorter "
            "one",
        )
    for part in values["output_dir"].split("/"):
        if not _is_broken(part) and len(os.fsencode(part)) > LONGEST_PART:
            yield (
                "output_dir",
                f"got a part of {len(os.fsencode(part))} bytes; a file system takes {LONGEST_PART}",
            )


def _is_broken(text: str) -> bool:
    return any(unicodedata.category(letter) == "Cs" for letter in text)


def _home(values: Values) -> Iterator[Finding]:
    """What is left of `~user/` where there is no such user."""
    path = values["output_dir"]
    if path.startswith("~"):
        user = path.partition("/")[0]
        yield (
            "output_dir",
            f"got {path}; there is no home folder of {user}. Write ./{path} for a folder of that "
            "name",
        )


NAME_RULES = (_hidden, _long, _home)
