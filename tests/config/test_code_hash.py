"""Code is hashed by what it computes: what only readers see may change, and no other change is
missed.
"""

import ast
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from train.config import code_hash as module
from train.config.code_hash import code_hash, is_comparable, parse
from train.config.identity import COMPUTING, computing_files

PACKAGE = Path(__file__).parents[2] / "train"

NOT_COMPUTING = (
    # The commands, and what stands around the loop.
    *(
        "__init__.py",
        "cli.py",
        "compare.py",
        "evaluate.py",
        "installation.py",
        "main.py",
        "merge.py",
        "new.py",
        "prepare.py",
        "sweep.py",
        "templates/*.py",
        "trace.py",
        "verify.py",
    ),
    *(
        "errors.py",
        "metric_names.py",
        "parts.py",
        "run.py",
        "setting.py",
        "terminal.py",
        "output.py",
    ),
    *("launch.py", "launching/*.py", "leaving.py", "disk.py", "doctor/*.py"),
    # What checks, watches or reports a run.
    *("comparison/*.py", "evaluation/*.py", "exactness/*.py", "memory/*.py", "metrics/*.py"),
    *("report/*.py", "gradients/__init__.py", "gradients/rank_consistency.py"),
    *(
        "gradients/complete_step.py",
        "gradients/shrink.py",
        "gradients/unproven.py",
        "plan/smaller.py",
    ),
    # What brings a run to its start, or back to where it was: its values are in the identity, or
    # are checked.
    "redaction/*.py",
    *("config/*.py", "checkpoint/*.py", "plan/__init__.py", "plan/__main__.py", "plan/make.py"),
    *("plan/describe.py", "plan/run_plan.py", "plan/smoke.py"),
    *(
        "distributed/__init__.py",
        "distributed/ranks.py",
        "distributed/stop.py",
        "distributed/failures.py",
    ),
    *("plan/arithmetic.py", "plan/scaling_table.py"),
    *("distributed/watchdog.py", "distributed/board.py", "distributed/parents.py"),
    *("distributed/outside.py", "distributed/pulse.py", "distributed/alone.py"),
)
"""Files of the package whose change refuses nobody's run; where COMPUTING names one of a folder,
that holds.

In folders that do both, each file is named: a new one must be put on one of the lists.
"""

SOURCE = '''"""A module."""

import math
from torch.nn.functional import relu as act
from helpers import scale

__all__ = ["Net"]

RATE = 0.5
"""What it is."""


class Net:
    """A net."""

    width: int = 3

    @property
    def size(self, factor=2, *, more=None):
        """Its size."""
        total = self.width * factor  # a comment
        total = math.sqrt(total)
        print(f"size {total:.{factor}f} of {self!r}")
        return scale(act(total), 'x')


def empty():
    """Nothing."""
'''

SAME = {
    "the docstring of a module": ('"""A module."""\n', ""),
    "the docstring of a class": ('"""A net."""', '"""Another."""'),
    "a docstring that goes": ('        """Its size."""\n', ""),
    "the docstring of a constant": ('"""What it is."""', ""),
    "a docstring for a pass": ('"""Nothing."""', "pass"),
    "a comment": ("  # a comment", ""),
    "blank lines": ("\n\n\nclass", "\n\n\n\n# more\nclass"),
    "quotes": ("'x'", 'u"x"'),
    "a string in two parts": ("'x'", '("" "x")'),
    "parentheses": ("self.width * factor", "(self.width * factor)"),
    "an import more": ("import math", "import json\nimport math"),
    "imports in another order": ("import math\n", "from os import *\nimport sys, math\n"),
    "an import in a function": ('"""Its size."""', "import json"),
    "another file of ours": ("from helpers import", "from helpers.more import"),
    "a relative import": ("from helpers import", "from .more import"),
    "line ends of Windows": ("\n", "\r\n"),
    "__all__": ('__all__ = ["Net"]', '__all__ = ("Net", "RATE")'),
    "more of __all__": ("RATE = 0.5", 'RATE = 0.5\n__all__ += ["RATE"]'),
    "an annotated __all__": ("__all__ =", "__all__: list[str] ="),
    "a longer condition for type checkers": ("RATE", "if typing.TYPE_CHECKING:\n    C = 1\nRATE"),
    "what is for type checkers": (
        "RATE",
        "if TYPE_CHECKING:\n    from a import B\n    C = B\nRATE",
    ),
    "what is for a command": ("RATE", "if __name__ == '__main__':\n    print(1)\nRATE"),
}

DIFFERENT = {
    "a constant": ("0.5", "0.25"),
    "a constant of another type": ("int = 3", "int = 3.0"),
    "a flag for a number": ("int = 3", "int = True"),
    "None for no value": ("return scale(act(total), 'x')", "return None"),
    "an operator": ("self.width * factor", "self.width + factor"),
    "operands in another order": ("self.width * factor", "factor * self.width"),
    "a default": ("factor=2", "factor=4"),
    "a default for None": ("more=None", "more"),
    "an argument's name": ("more=None", "less=None"),
    "an argument's kind": (", *, more", ", more"),
    "an annotation": ("width: int", "width: float"),
    "a decorator": ("    @property\n", ""),
    "text of an f-string": ("size {", "sizes {"),
    "a format of an f-string": ("f} of", "e} of"),
    "a conversion of an f-string": ("{self!r}", "{self!s}"),
    "a string": ("'x'", "'y'"),
    "bytes for a string": ("'x'", "b'x'"),
    "the order of statements": (
        "total = self.width * factor  # a comment\n        total = math.sqrt(total)",
        "total = math.sqrt(total)\n        total = self.width * factor",
    ),
    "a name": ("Net", "Net2"),
    "a base class": ("class Net:", "class Net(Base):"),
    "a definition more": ("RATE = 0.5", "RATE = 0.5\nMORE = 1"),
    "a definition twice": ("RATE = 0.5", "RATE = 0.5\nRATE = 0.5"),
    "a definition less": ("RATE = 0.5", ""),
    "what an imported name stands for": ("import relu as act", "import gelu as act"),
    "where an imported name comes from": ("torch.nn.functional", "library"),
    "what a name of ours stands for": ("import scale", "import shrink as scale"),
    "what a module's name stands for": ("import math", "import cmath as math"),
    "one more way to import a name": (
        "import math",
        "try:\n    import cmath as math\nexcept ImportError:\n    import math",
    ),
    "what is not for type checkers": (
        "RATE",
        "if TYPE_CHECKING:\n    pass\nelse:\n    C = 1\nRATE",
    ),
    "a condition that looks alike": ("RATE", "if __name__ != '__main__':\n    print(1)\nRATE"),
}


def hash_of(*sources: str) -> str:
    return code_hash([source.encode() for source in sources], {"helpers"})


def edited(old: str, new: str) -> str:
    assert old in SOURCE
    after = SOURCE.replace(old, new)
    ast.parse(after)
    return after


@pytest.mark.parametrize("edit", SAME)
def test_what_only_readers_see_is_the_same_code(edit: str) -> None:
    after = edited(*SAME[edit])

    assert after != SOURCE
    assert hash_of(after) == hash_of(SOURCE)


@pytest.mark.parametrize("edit", DIFFERENT)
def test_what_computes_something_else_is_other_code(edit: str) -> None:
    assert hash_of(edited(*DIFFERENT[edit])) != hash_of(SOURCE)


ALIKE = [
    ("f(x, k=1)()", "f(x)(k=1)"),
    ("f(g(a), b)", "f(g(a, b))"),
    ("x[1:]", "x[:1]"),
    ("x[1:]", "x[::1]"),
    ("[[a], b]", "[[a, b]]"),
    ("lambda a, /: 1", "lambda a: 1"),
    ("lambda *, a, b=1: 1", "lambda *, a=1, b: 1"),
    ("{**a, 1: b}", "{1: a, **b}"),
    ("f(*a)", "f(**a)"),
    ("a < b < c", "(a < b) < c"),
    ("1", "'1'"),
    ("1", "True"),
    ("'a'", "a"),
    ("None", "'None'"),
    ("f'{a}' 'b'", "f'{a}{b}'"),
    ("f'{a}'", "f'{{a}}'"),
    ("f'{a!r}'", "f'{a=}'"),
    ("[x async for x in y]", "[x for x in y]"),
]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_expressions_that_look_alike_differ(one: str, other: str) -> None:
    one_hash, other_hash = (
        hash_of(f"async def f():\n    return {text}\n") for text in (one, other)
    )

    assert one_hash != other_hash


def test_each_edit_is_other_code_than_the_rest() -> None:
    hashes = {hash_of(edited(*edit)) for edit in DIFFERENT.values()}

    assert len(hashes) == len(DIFFERENT)


def test_a_definition_moves_with_its_imports() -> None:
    net = (
        "from torch import nn\nfrom helpers.a import size\n\n\ndef net():\n    return "
        "nn.Linear(size, size)\n"
    )
    other = "size = 3\n"
    moved = "import torch.nn as nn\n\nsize = 3\n\n\ndef net():\n    return nn.Linear(size, size)\n"

    assert hash_of(net, other) == hash_of(moved) == hash_of("", moved) == hash_of(other, net)
    assert hash_of(net) != hash_of(net, other)


def test_an_alias_that_changes_with_its_use_is_the_same_code() -> None:
    long = (
        "import torch.nn.functional\nfrom torch.nn import functional\n\n\ndef f(x):\n    return "
        "functional.relu(x)\n"
    )
    short = "import torch.nn.functional as F\n\n\ndef f(x):\n    return F.relu(x)\n"

    assert hash_of(long) == hash_of(short)


def test_the_kind_of_hash_is_told() -> None:
    assert hash_of(SOURCE).startswith("definitions ")
    assert len(hash_of(SOURCE)) == len("definitions ") + 16
    assert is_comparable(hash_of(SOURCE))
    assert not is_comparable("0123456789abcdef")


@pytest.mark.parametrize(
    "source", [b"def f(:\n", b"\x7fELF\x00\x01", b"a = 1\x00", b"a = '\xff'\n"]
)
def test_what_is_no_python_counts_by_its_bytes(source: bytes) -> None:
    own: set[str] = set()

    assert parse(source) is None
    assert code_hash([source], own) == code_hash([source], own)
    assert code_hash([source], own) != code_hash([source + b"#"], own)


def test_a_warning_of_the_parser_changes_nothing() -> None:
    pattern = b"pattern = '\\d'\n"

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parse(pattern) is not None


def test_a_number_that_is_too_long_for_decimal_digits() -> None:
    number = "x = 0x" + "f" * 5000

    assert hash_of(number) != hash_of(number + "f")


def test_a_module_inside_a_package_is_reached_by_the_packages_name() -> None:
    use = "x = a.c(a.b.d)\n"

    assert hash_of(f"import a.b\n{use}") == hash_of(f"import a\n{use}")


def test_a_long_chain_is_no_recursion() -> None:
    chain = "x = " + " + ".join(["a"] * 900)

    assert hash_of(chain) != hash_of(chain + " + a")


def test_a_set_of_statements_that_compute_nothing_is_empty() -> None:
    assert hash_of("import a\n\nif TYPE_CHECKING:\n    import b\n") == hash_of("", "") == hash_of()


TORTURE = r'''
def f(x, *, a, b=None, **more):
    u"docstring"
    print(f"{{}} {x!r:>{a}} {x=} {x = } {x:} {x:%H:%M} {'a' 'b'} {x:{a}.{b}}" "tail" f"{a}{b}" rf"\d{x}\n")
    print(f"", f"plain", f"a{{b}}c" "", f"""{
        x
    }
    """, "\N{EM DASH}", "a🫨b", "\U0001CC00", u"kind", b"\xff", 1e999, 1j, -0.0, 0x10, ..., None, True)
    return {**more, "a": a} | {1: [*more], 2: (), 3: x[*more]}


class Größe(dict, metaclass=type): ...
'''
# What Pythons write down in different ways: pieces of f-strings, characters that are new in
# Unicode, empty lists.


HASHES = """
import json, pathlib, runpy, sys
code_hash = runpy.run_path(sys.argv[1])["code_hash"]
sources = [pathlib.Path(name).read_bytes() for name in sys.argv[2:]]
print(json.dumps([*(code_hash([source], {"train"}) for source in sources), code_hash(sources, {"train"})]))
"""


def python_of(version: str) -> str:
    """A Python that runs, of this version. Skips where there is none."""
    installed = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python3"))
    on_path = shutil.which(f"python{version}")
    for python in [*map(str, installed), *filter(None, [on_path])]:
        # pyenv puts a python3.12 on the path that may only say which versions there are.
        asked = subprocess.run([python, "--version"], capture_output=True, text=True, check=False)
        if asked.stdout.startswith(f"Python {version}."):
            return python
    pytest.skip(f"there is no Python {version} on this machine, on PATH or below ~/.pyenv/versions")


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_every_python_gives_the_same_hash(version: str, tmp_path: Path) -> None:
    python = python_of(version)
    torture = tmp_path / "torture.py"
    torture.write_text(TORTURE, encoding="utf-8")
    files = [torture, *sorted(PACKAGE.rglob("*.py"))]
    done = subprocess.run(
        [python, "-I", "-c", HASHES, str(module.__file__), *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    sources = [file.read_bytes() for file in files]
    assert all(parse(source) for source in sources)
    here = [*(code_hash([source], {"train"}) for source in sources), code_hash(sources, {"train"})]
    there = json.loads(done.stdout)
    pairs = zip([*files, "all"], here, there, strict=True)
    differing = [str(file) for file, own, other in pairs if own != other]
    assert not differing, f"Python {version} and {sys.version.split()[0]} differ"


def files_of(pattern: str) -> set[Path]:
    return set(PACKAGE.glob(pattern))


@pytest.mark.parametrize("pattern", [*COMPUTING, *NOT_COMPUTING])
def test_every_pattern_finds_a_file(pattern: str) -> None:
    assert files_of(pattern)


def test_every_file_computes_or_is_said_not_to() -> None:
    computing = set(computing_files())
    others = set().union(*map(files_of, NOT_COMPUTING))
    by_name = [name for name in NOT_COMPUTING if "*" not in name]

    assert computing.isdisjoint(PACKAGE / name for name in by_name)
    forgotten = {*PACKAGE.rglob("*.py")} - computing - others
    assert not forgotten, (
        "add them to COMPUTING (train/config/identity.py), or to NOT_COMPUTING here"
    )
