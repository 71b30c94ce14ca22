"""The code behind a curve: the file of a target, and what of the user's own it imports."""

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import argv
from train import models
from train.config import identity, load, resolve, source_hash
from train.config.sources import own_sources

FILES = {
    "own/__init__.py": "",
    "own/net.py": "import torch, json\nfrom own.sums import add\nfrom . import beside\n"
    "def net():\n    import loose.late\n    return add\n",
    "own/sums.py": (
        "from train.models.mlp import MLP\nfrom library import f\n\n\ndef add():\n    import "
        "own.net\n"
    ),
    "own/beside.py": "",
    "own/other.py": "",
    "loose/late.py": "if False:\n    import no_such_module, broken\n",
    "broken.py": "def f(:\n",
    "plain.py": "from helpers import factor\n\n\ndef net():\n    return factor\n",
    "helpers.py": "factor = 2\n",
    "wrapped.py": "import functools, torch\nimport helpers\n\n\n@torch.no_grad()\ndef by_torch():\n    pass\n\n\n"
    "@functools.lru_cache\ndef cached():\n    pass\n\n\npartial = functools.partial(torch.nn.Linear, 3)\n",
    "odd.py": "try:\n    from .helpers import factor\nexcept ImportError:\n    from helpers import factor\n"
    "def net():\n    import dies.sub, leaves.sub, half.sub\n",
    "dies/__init__.py": "raise RuntimeError('never to be imported')\n",
    "leaves/__init__.py": "raise SystemExit('never to be imported')\n",
    "half/__init__.py": "def f(:\n",
    "site-packages/library.py": "def f():\n    pass\n",
    ".beside/other_library/__init__.py": "",
    ".beside/other_library/deep/parts.py": "def f():\n    pass\n",
    ".beside/other_library-1.0.dist-info/RECORD": "",
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
    monkeypatch.syspath_prepend(folder / ".beside")
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    return folder


def forget() -> None:
    ours = {name.partition("/")[0].removesuffix(".py") for name in FILES} | {
        "library",
        "other_library",
        "tools",
        "sums",
        "net",
    }
    for name in [name for name in sys.modules if name.split(".")[0] in ours]:
        del sys.modules[name]


def names(target: str, folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in own_sources(target, resolve(target, "")).values()
    }


def test_imports_are_followed_but_not_into_libraries(folder: Path) -> None:
    package = {f"own/{name}.py" for name in ("__init__", "net", "sums", "beside")}

    assert names("own.net.net", folder) == package | {"loose/late.py", "broken.py"}
    assert names("plain.net", folder) == {"plain.py", "helpers.py"}
    assert names("library.f", folder) == names("json.loads", folder) == set()


def test_what_pip_installed_into_a_folder_of_the_users_is_a_library(folder: Path) -> None:
    assert names("other_library.deep.parts.f", folder) == set()


def test_no_import_that_python_itself_may_refuse_stops_the_search(folder: Path) -> None:
    packages = {f"{name}/__init__.py" for name in ("dies", "leaves", "half")}

    assert names("odd.net", folder) == {"odd.py", "helpers.py"} | packages


@pytest.mark.parametrize("target", ["by_torch", "cached", "partial"])
def test_a_wrapped_target_is_its_own_file(folder: Path, target: str) -> None:
    assert names(f"wrapped.{target}", folder) == {"wrapped.py", "helpers.py"}


def hash_of(tmp_path: Path, target: str) -> str:
    return source_hash(load(argv(tmp_path, f"model.target={target}")).config)


@pytest.mark.parametrize(
    ("target", "file", "changes"),
    [
        ("own.net.net", "own/sums.py", True),
        ("own.net.net", "loose/late.py", True),
        ("own.net.net", "broken.py", True),
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
    # A file that is no Python counts by its bytes.
    assert (hash_of(tmp_path, target) != before) is (file == "broken.py")

    (folder / file).write_text(FILES[file] + "changed = 1\n")
    assert (hash_of(tmp_path, target) != before) is changes


def test_a_definition_that_moves_to_another_helper_is_the_same_curve(
    folder: Path, tmp_path: Path
) -> None:
    before = hash_of(tmp_path, "plain.net")

    (folder / "plain.py").write_text(FILES["plain.py"].replace("helpers", "tools"))
    (folder / "helpers.py").rename(folder / "tools.py")

    importlib.invalidate_caches()
    forget()
    assert names("plain.net", folder) == {"plain.py", "tools.py"}
    assert hash_of(tmp_path, "plain.net") == before


def test_one_file_under_two_names_counts_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hash_of(tmp_path, "own.sums.add")

    # As the current folder and my/ in it are both searched.
    monkeypatch.syspath_prepend(folder / "own")
    (folder / "own/sums.py").write_text(FILES["own/sums.py"] + "    import sums, net\n")

    assert {"sums", "own.sums"} <= {*own_sources("own.sums.add", resolve("own.sums.add", ""))}
    assert hash_of(tmp_path, "own.sums.add") == before


def test_what_a_model_in_this_package_imports_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "extra").mkdir()
    (folder / "extra/added.py").write_text("import helpers\n\n\ndef added():\n    pass\n")
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(folder / "extra")])

    try:
        assert [*own_sources("added", resolve("added", "train.models"))] == ["helpers"]
    finally:
        sys.modules.pop("train.models.added", None)


@pytest.mark.parametrize(
    "file",
    [
        "distributed/flat_buckets.py",
        "models/activation_checkpointing.py",
        "optim/lr_schedule.py",
        "step.py",
    ],
)
def test_a_file_of_the_package_that_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    here = hash_of(tmp_path, "mlp")
    package = Path(identity.__file__).parents[1]
    shutil.copytree(package, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(identity, "__file__", str(tmp_path / "copy/config/identity.py"))
    source = (tmp_path / "copy" / file).read_text()

    (tmp_path / "copy" / file).write_text(source + "# changed\n")
    assert hash_of(tmp_path, "mlp") == here
    (tmp_path / "copy" / file).write_text(source + "changed = 1\n")
    assert hash_of(tmp_path, "mlp") != here


def test_another_place_is_the_same_curve(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = hash_of(tmp_path, "own.net.net")

    enter(tmp_path / "elsewhere", monkeypatch)

    assert {*own_sources("own.net.net", resolve("own.net.net", "")).values()}.isdisjoint(
        folder.rglob("*")
    )
    assert hash_of(tmp_path, "own.net.net") == here
