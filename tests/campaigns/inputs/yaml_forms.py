"""Values of YAML that are read otherwise than they are written, in files and on the command line."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.campaigns.inputs.case import ADVISED, FAILS, REFUSED, RIGHT, SILENT, Outcome, typed_lines
from tests.helpers import argv
from train.config import ConfigError, load
from train.config.schema import Config

TEXT = (
    "1:30",
    "12:30:45",
    "010",
    "0x10",
    "08",
    "1.10",
    "1e3",
    "2024_01",
    "0b11",
    "007",
    "1:30.5",
    "+1",
    "2024-01-15",
)
"""What people mean as it stands."""
QUOTED = ('"1:30"', "'010'", '"1.10"')
WORDS = ("yes", "on", "no", "off", "true", "null", "~")
NUMBERS = ("010", "1:30", "0x10", "0b11")

KEYS = ("wandb.notes", "wandb.tags", "wandb.group", "output_dir")
WRITE = re.compile(r"""rite ("[^"]*"|[^\s.;]+(?:\.\d+)?)|quote the word, as in ('[^']*')""")


@dataclass(frozen=True)
class YamlCase:
    kind: str
    key: str
    form: str
    in_file: bool

    @property
    def name(self) -> str:
        return f"{self.key}={self.form} {'in a file' if self.in_file else 'typed'}"

    def judge(self, folder: Path) -> Outcome:
        folder.mkdir(parents=True)
        value = f"[{self.form}]" if self.key.endswith("tags") else self.form
        try:
            return self._found(self._load(folder, value), RIGHT)
        except ConfigError as error:
            said = str(error)
        instead = [each.partition("=")[2] for line in typed_lines(said) for each in line]
        if self.in_file:
            instead = [found[1] or found[2] for found in WRITE.finditer(said)]
            instead = [f"[{each}]" if self.key.endswith("tags") else each for each in instead]
        if not instead:
            return Outcome(self, REFUSED, said)
        try:
            return self._found(self._load(folder, instead[-1]), ADVISED)
        except ConfigError as error:
            return Outcome(self, FAILS, str(error))

    def _load(self, folder: Path, value: str) -> Config:
        arguments = argv(folder)
        if not self.in_file:
            return load([*arguments, f"{self.key}={value}"]).config
        section, _, last = self.key.rpartition(".")
        line = f"{section}: {{{last}: {value}}}" if section else f"{last}: {value}"
        (folder / "own.yaml").write_text(f"extends: tiny.yaml\n{line}\n")
        return load([str(folder / "own.yaml")]).config

    def _found(self, config: Config, verdict: str) -> Outcome:
        value: Any = config
        for part in self.key.split("."):
            value = getattr(value, part)
        value = value[0] if isinstance(value, list) else value
        meant = self.form.strip("\"'")
        if self.key == "duration.steps":
            return Outcome(self, SILENT if verdict == RIGHT else ADVISED, f"{value}")
        is_right = value is None if meant in ("null", "~") else value == meant
        return Outcome(self, verdict if is_right else SILENT, f"{value!r}")


def cases() -> Iterator[YamlCase]:
    for key, form, in_file in itertools.product(KEYS, (*TEXT, *QUOTED, *WORDS), (True, False)):
        if not (key in ("output_dir", "wandb.tags") and form in ("null", "~")):
            yield YamlCase("yaml", key, form, in_file)
    for form, in_file in itertools.product(NUMBERS, (True, False)):
        yield YamlCase("yaml", "duration.steps", form, in_file)
