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
"""Options with a value, behind a blank or a `=`: what fits, as train/plan/__main__.py prints it."""


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
        """The value of accelerate's --NAME, the last one; "" where it has none; None where it is
        not there.
        """
        found = None
        for place, word in enumerate(self.flags):
            key, equals, value = word.partition("=")
            if key.replace("-", "_") != f"__{name}":
                continue
            following = self.flags[place + 1 : place + 2]
            found = value if equals else "".join(following)
        return found

    def without(self, names: Sequence[str]) -> list[str]:
        """accelerate's flags but for --NAME, with its value, for each of `names`."""
        kept: list[str] = []
        is_value = False
        for word in self.flags:
            key, equals, _ = word.partition("=")
            is_named = key.removeprefix("--").replace("-", "_") in names and word.startswith("--")
            if not is_named and not is_value:
                kept.append(word)
            is_value = is_named and not equals and key.removeprefix("--") not in SWITCHES
        return kept


def parse(argv: Sequence[str]) -> Arguments:
    """Without a CONFIG: the quick start's."""
    found = Arguments()
    words = list(argv)
    if "--" in words:
        cut = words.index("--")
        found.flags = words[cut + 1 :]
        words = words[:cut]
    if words and words[0] in ("standard", "accumulate", "doctor"):
        found.loop = words.pop(0)
    values = iter(words)
    for word in values:
        if word in OF_THE_PLANNER:
            found.words += [word, next(values, "")]
        else:
            _sort(word, found)
    found.plans_memory = any(word.startswith(OF_THE_PLANNER) for word in found.words)
    found.needs_ranks &= not found.plans_memory
    if not found.config and not found.help:
        found.config = str(CONFIGS / "digits.yaml")
    return found


def _sort(word: str, found: Arguments) -> None:
    if word in ("--help", "-h"):
        found.help = True
    elif word == "--dry-run":
        found.dry_run = True
    elif word == "--plan":
        found.needs_ranks = False
        found.words.append(word)
    elif word == "--print-config":
        found.needs_ranks = False
        found.prints_config = True
    elif (
        not word.startswith("-") and not found.config and ("=" not in word or Path(word).is_file())
    ):
        # A file is a CONFIG even if its path holds a `=`, as the folder of a run may.
        found.config = word
    else:
        found.words.append(word)


def usage() -> str:
    text = (Path(__file__).parent / "usage.txt").read_text(encoding="utf-8")
    if IS_CLONE:
        return text
    return _OF_ENVIRONMENT.sub("", text).replace("./launch.sh", LAUNCH)
