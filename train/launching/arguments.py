"""The command line of ./launch.sh and of `isobatch launch`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from train.errors import UserError
from train.installation import CONFIGS, IS_CLONE, LAUNCH
from train.launching.launcher_keys import SWITCHES

_OF_ENVIRONMENT = re.compile("^  (EXTRAS|TORCH_BUILD)=.*\n", re.MULTILINE)
"""Lines about the .venv that launch.sh makes."""
OF_THE_PLANNER = ("--memory", "--ranks")
"""Options with a value, after a blank or a `=`: what fits, as train/plan/__main__.py prints it."""


class LaunchRefused(UserError):
    """What was asked for cannot be launched."""


@dataclass
class Arguments:
    loop: str = "accumulate"
    config: str = ""
    words: list[str] = field(default_factory=list)  # key=value and options, for the training
    flags: list[str] = field(default_factory=list)  # for accelerate
    help: bool = False
    dry_run: bool = False
    needs_ranks: bool = True
    prints_config: bool = False
    plans_memory: bool = False

    @property
    def trains(self) -> bool:
        return self.needs_ranks and self.loop != "doctor"

    def flag(self, name: str) -> str | None:
        """The last value of accelerate's --NAME; "" where it has none; None without the flag."""
        last = None
        for index, word in enumerate(self.flags):
            key, equals, value = word.partition("=")
            # accelerate takes - and _ alike in the name of a flag.
            if key.replace("-", "_") == f"__{name}":
                next_word = "".join(self.flags[index + 1 : index + 2])
                last = value if equals else next_word
        return last

    def without(self, names: Sequence[str]) -> list[str]:
        """accelerate's flags without --NAME and its value, for each of `names`."""
        kept: list[str] = []
        is_value = False
        for word in self.flags:
            key, equals, _ = word.partition("=")
            is_named = key.removeprefix("--").replace("-", "_") in names and word.startswith("--")
            if not is_named and not is_value:
                kept.append(word)
            # A switch has no value: the word behind it is another flag.
            is_value = is_named and not equals and key.removeprefix("--") not in SWITCHES
        return kept


def parse(argv: Sequence[str]) -> Arguments:
    """Without a CONFIG: the quick start's."""
    arguments = Arguments()
    words = list(argv)
    # Split first: what stands behind -- is accelerate's, whatever it looks like.
    if "--" in words:
        cut = words.index("--")
        arguments.flags = words[cut + 1 :]
        words = words[:cut]
    if words and words[0] in ("standard", "accumulate", "doctor"):
        arguments.loop = words.pop(0)
    values = iter(words)
    for word in values:
        # The value is a word of its own, and would else be taken for the config.
        if word in OF_THE_PLANNER:
            arguments.words += [word, next(values, "")]
        else:
            _sort(word, arguments)
    arguments.plans_memory = any(word.startswith(OF_THE_PLANNER) for word in arguments.words)
    arguments.needs_ranks &= not arguments.plans_memory
    if not arguments.config and not arguments.help:
        arguments.config = str(CONFIGS / "digits.yaml")
    return arguments


def _sort(word: str, arguments: Arguments) -> None:
    if word in ("--help", "-h"):
        arguments.help = True
    elif word == "--dry-run":
        arguments.dry_run = True
    elif word == "--plan":
        arguments.needs_ranks = False
        arguments.words.append(word)
    elif word == "--print-config":
        arguments.needs_ranks = False
        arguments.prints_config = True
    elif not word.startswith("-") and not arguments.config and _is_config(word):
        arguments.config = word
    else:
        arguments.words.append(word)


def _is_config(word: str) -> bool:
    """A file is one even if its path holds a `=`, as the folder of a run may."""
    return "=" not in word or Path(word).is_file()


def usage() -> str:
    text = (Path(__file__).parent / "usage.txt").read_text(encoding="utf-8")
    if IS_CLONE:
        return text
    return _OF_ENVIRONMENT.sub("", text).replace("./launch.sh", LAUNCH)
