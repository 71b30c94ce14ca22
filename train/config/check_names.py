"""Texts that become names of folders, or are shown: what a file system or a terminal misreads."""

import os
import unicodedata
from collections.abc import Iterator, Sequence

from train.config.problems import ConfigError, Finding, Problem, Values

# Bytes: a file system takes 255, and names beside a run folder (NAME.1) are longer than its own.
LONGEST_NAME = 200
LONGEST_PART = 255
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
    "Zp": "a line break",
}
"""{category in Unicode: what to call its characters}."""


def check_letters(argv: Sequence[str]) -> None:
    """Bytes of a command line that are no UTF-8 can be written into no file. Raises ConfigError."""
    problems = [
        # !a: the word itself cannot be written to a terminal, either.
        Problem("command line", "", f"got {word!a}, which is no UTF-8. Type it anew")
        for word in argv
        if _is_broken(word)
    ]
    if problems:
        raise ConfigError(problems)


def _hidden(values: Values) -> Iterator[Finding]:
    for key in SHOWN:
        texts = values[key] if isinstance(values[key], list) else [values[key]]
        for text in filter(None, texts):
            # Categories, not a list of characters: Unicode adds characters with each version.
            hidden = [letter for letter in text if unicodedata.category(letter) in HIDDEN]
            if not hidden:
                continue
            shown = text
            for letter in set(hidden):
                escaped = ascii(letter)[1:-1]
                # Escaped, since the reader could not see what is meant.
                shown = shown.replace(letter, escaped)
            code = f"U+{ord(hidden[0]):04X}"
            kind = HIDDEN[unicodedata.category(hidden[0])]
            yield key, f"got '{shown}'; {code} in it is {kind}. Leave it out"


def _long(values: Values) -> Iterator[Finding]:
    # Bytes, not characters: a file system counts those.
    name = values["name"] or ""
    # What is no UTF-8 cannot be encoded; _hidden reports it.
    size = len(name) if _is_broken(name) else len(os.fsencode(name))
    if size > LONGEST_NAME:
        why = f"it names a folder, and may have {LONGEST_NAME}"
        yield "name", f"got {size} bytes; {why}. Write a shorter one"
    for part in values["output_dir"].split("/"):
        size = 0 if _is_broken(part) else len(os.fsencode(part))
        if size > LONGEST_PART:
            yield "output_dir", f"got a part of {size} bytes; a file system takes {LONGEST_PART}"


def _is_broken(text: str) -> bool:
    # Python reads a byte of an argument that is no UTF-8 as a lone surrogate (category Cs).
    return any(unicodedata.category(letter) == "Cs" for letter in text)


def _home(values: Values) -> Iterator[Finding]:
    """What is left of `~user/` where there is no such user."""
    path = values["output_dir"]
    if path.startswith("~"):
        why = f"there is no home folder of {path.partition('/')[0]}"
        yield "output_dir", f"got {path}; {why}. Write ./{path} for a folder of that name"


NAME_RULES = (_hidden, _long, _home)
