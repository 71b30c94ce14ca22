"""The code behind a curve: the file of a target, and what of the user's own it imports."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import argv
from train.config import load, resolve, source_hash
from train.config.sources import own_sources

FILES = {
    "own/__init__.py": "",
    "own/net.py": "import torch, json\nfrom own.sums import add\nfrom . import beside\n"
    "def net():\n    import loose.late\n    return add\n",
    "own/sums.py": "from train.models.mlp import MLP\nfrom library import f\n\n\ndef add():\n    import own.net\n",
    "own/beside.py": "",
    "own/other.py": "",
    "loose/late.py": "if False:\n    import no_such_module, broken\n",
    "broken.py": "def f(:\n",
    "plain.py": "from helpers import factor\n\n\ndef net():\n    return factor\n",
    "helpers.py": "factor = 2\n",
    "site-packages/library.py": "def f():\n    pass\n",
}


def write(folder: Path) -> Path:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    yield enter(tmp_path / "clone", monkeypatch)
    forget()


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    forget()
    write(folder)
    monkeypatch.syspath_prepend(folder / "site-packages")
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    return folder


def forget() -> None:
    ours = {name.partition("/")[0].removesuffix(".py") for name in FILES} | {"library"}
    for name in [name for name in sys.modules if name.split(".")[0] in ours]:
        del sys.modules[name]


def names(target: str, folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in own_sources(resolve(target, ""))}


def test_imports_are_followed_but_not_into_libraries(folder: Path) -> None:
    package = {f"own/{name}.py" for name in ("__init__", "net", "sums", "beside")}

    assert names("own.net.net", folder) == package | {"loose/late.py", "broken.py"}
    assert names("plain.net", folder) == {"plain.py", "helpers.py"}
    assert own_sources(resolve("library.f", "")) == own_sources(resolve("json.loads", "")) == set()


def hash_of(tmp_path: Path, target: str) -> str:
    return source_hash(load(argv(tmp_path, f"model.target={target}")).config)


@pytest.mark.parametrize(
    ("target", "file", "changes"),
    [
        ("own.net.net", "own/sums.py", True),
        ("own.net.net", "loose/late.py", True),
        ("own.net.net", "own/other.py", False),
        ("plain.net", "helpers.py", True),
        ("plain.net", "own/sums.py", False),
    ],
)
def test_a_helper_that_changes_is_another_curve(
    folder: Path, tmp_path: Path, target: str, file: str, changes: bool
) -> None:
    before = hash_of(tmp_path, target)

    (folder / file).write_text(FILES[file] + "# changed\n")

    assert (hash_of(tmp_path, target) != before) is changes


def test_another_place_is_the_same_curve(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = hash_of(tmp_path, "own.net.net")

    enter(tmp_path / "elsewhere", monkeypatch)

    assert own_sources(resolve("own.net.net", "")).isdisjoint(folder.rglob("*"))
    assert hash_of(tmp_path, "own.net.net") == here
