"""A task, a config and a test to start from, in my/: python -m train.new NAME

What it writes trains, is exact and passes its test as it is; the comments in it say what to
replace. The files that it copies are in train/templates. Imports no torch.
"""

import importlib.util
import keyword
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from train.errors import BAD_CONFIG, FINISHED, UserError, entry_point
from train.installation import PACKAGE, command

FOLDER = Path("my")  # of the current folder, where targets are looked for (train/config/targets.py)
TEMPLATES = PACKAGE / "templates"
USAGE = (
    "usage: {new} NAME      writes my/NAME.py, my/NAME.yaml and my/test_NAME.py, such as: "
    "{new} hearts"
)
WORDS = {"LAUNCH": "launch", "TRAIN": "train", "VERIFY": "verify"}
"""Placeholders of the templates, and the subcommands that they stand for."""


class NameRefused(UserError):
    """Nothing was written; the message says what to run."""


@dataclass(frozen=True)
class Files:
    """What is written for one name."""

    module: Path
    config: Path
    test: Path

    @classmethod
    def named(cls, name: str, folder: Path) -> "Files":
        return cls(
            module=folder / f"{name}.py",
            config=folder / f"{name}.yaml",
            test=folder / f"test_{name}.py",
        )

    def all(self) -> list[Path]:
        return [self.module, self.config, self.test]


@entry_point
def main(argv: Sequence[str]) -> int:
    if len(argv) != 1 or argv[0].startswith("-"):
        print(USAGE.format(new=command("new")), file=sys.stderr)
        asks_for_help = bool(argv) and argv[0] in ("-h", "--help")
        return FINISHED if asks_for_help else BAD_CONFIG
    files = write(argv[0])
    print(f"wrote {files.module}, {files.config} and {files.test}. They work as they are. Run:")
    print(f"  {command('launch')} {files.config}")
    print(f"  {command('verify')} {files.config}")
    print(f"  python -m pytest {files.test}")
    return FINISHED


def write(name: str) -> Files:
    """The module, the config and the test of that name, all or none of them. Raises NameRefused."""
    check_name(name)
    files = Files.named(name, FOLDER)
    existing = [str(path) for path in files.all() if path.exists()]
    if existing:
        raise NameRefused(
            f"new: {name} is there already\n"
            f"  got:  {', '.join(existing)}\n"
            "  why:  it holds your work, and is never overwritten\n"
            f"  run:  {command('new')} {_free_name(name)}"
        )
    _check_importable(name)
    FOLDER.mkdir(exist_ok=True)
    templates = Files.named("NAME", TEMPLATES)
    for template, path in zip(templates.all(), files.all(), strict=True):
        path.write_text(_filled_in(template, name), encoding="utf-8")
    return files


def _filled_in(template: Path, name: str) -> str:
    text = template.read_text(encoding="utf-8").replace("NAME", name)
    if template.suffix == ".yaml":
        for word, subcommand in WORDS.items():
            text = text.replace(word, command(subcommand))
    return text


def check_name(name: str) -> None:
    """Raises NameRefused."""
    if re.fullmatch("[a-z][a-z0-9_]*", name) and not keyword.iskeyword(name):
        return
    plain = re.sub("[^a-z0-9]+", "_", name.lower()).strip("_0123456789")
    if keyword.iskeyword(plain):
        plain = f"my_{plain}"
    raise NameRefused(
        f"new: {name!r} cannot be the name of a module\n"
        f"  got:  {name!r}\n"
        "  why:  configs name your functions by it, as NAME.data: small letters, digits and _, a "
        "letter first, no word of Python's own\n"
        f"  run:  {command('new')} {plain or 'hearts'}"
    )


def _check_importable(name: str) -> None:
    """Installed packages come before my/: a file of the same name would never be found."""
    installed = importlib.util.find_spec(name)
    if installed is None:
        return
    where = installed.origin or ", ".join(installed.submodule_search_locations or ())
    raise NameRefused(
        f"new: there is a module {name!r} already\n"
        f"  got:  {where}\n"
        f"  why:  it would be found before my/{name}.py\n"
        f"  run:  {command('new')} {_free_name(f'my_{name}')}"
    )


def _free_name(name: str) -> str:
    number = 2
    free = name
    while any(path.exists() for path in Files.named(free, FOLDER).all()):
        free = f"{name}{number}"
        number += 1
    return free


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
