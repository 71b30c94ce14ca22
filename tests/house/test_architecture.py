"""The house: which room may import which, how large rooms may be, and that its pure rooms stay pure."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "train"

# Each floor imports only from floors below it; rooms of one floor do not import each other.
FLOORS = [
    set(floor.split())
    for floor in (
        "batch config generators names patterns ranks schedule tokenizers window worth",
        "blocks checkpoint comparison data feed memory models optimizer phases planning profiling report saved signals "
        "skips tasks undisturbed watchdog",
        "initial step",
        "gradients",
        "padded",
        "evaluation exact guard noise reduction samples",
        "ema fitting setup smoke utilisation",
        "preparing refusals",
        "run",
        "loop",
        "entry",
        "accumulate evaluate prepare standard",
        "compare new page sweep verify",
    )
]
PURE = [
    "batch",
    "config",
    "names",
    "planning",
    "schedule",
    "comparison",
    "compare",
    "new",
    "page",
    "patterns",
    "sweep",
    "tokenizers",
    "worth",
]  # import no torch
HEART = ["standard.py", "accumulate.py", "loop.py", "step.py", "run.py", "batch"]


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(module: str) -> str:
    """train.data.rows -> data; the package itself has no room."""
    return [*module.split("."), ""][1]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import of the package, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            parent = node.module or ""
            names = [f"{parent}.{alias.name}" if parent == "train" else parent for alias in node.names]
        for name in names:
            if name.split(".")[0] == "train":
                yield node.lineno, name


def test_every_room_has_a_floor() -> None:
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in modules()} - {"__init__"}

    assert rooms == set().union(*FLOORS)


def test_imports_go_down() -> None:
    floor_of = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    wrong = []
    for path in modules():
        if path == PACKAGE / "__init__.py":  # holds train.load, which imports when called
            continue
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for line, module in imports(path):
            other = room(module)
            if other not in ("", own) and floor_of[other] >= floor_of[own]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")

    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", PURE)
def test_pure_rooms_import_no_torch(name: str) -> None:
    code = f"import sys, train.{name}; assert 'torch' not in sys.modules"

    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_sizes() -> None:
    too_large = []
    for path in modules():
        source = path.read_text()
        lines = source.count("\n")
        if lines > 250:
            too_large.append(f"{path.relative_to(ROOT)}: {lines} lines")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > 55:
                    too_large.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines")

    assert not too_large, "\n".join(too_large)


def test_the_heart_stays_small() -> None:
    files = [
        path for name in HEART for path in ([PACKAGE / name] if name.endswith(".py") else (PACKAGE / name).glob("*"))
    ]

    assert sum(path.read_text().count("\n") for path in files if path.suffix == ".py") <= 700


def test_no_unfinished_marks() -> None:
    marks = ("TODO", "FIXME", "XXX", "type: ignore", "# noqa")
    found = [f"{path.relative_to(ROOT)}: {mark}" for path in modules() for mark in marks if mark in path.read_text()]

    assert not found, "\n".join(found)


def test_torch_distributed_is_used_in_ranks_only() -> None:
    users = {path.relative_to(PACKAGE).as_posix() for path in modules() if "torch.distributed" in path.read_text()}

    assert users == {"ranks.py"}


def test_the_loops_differ_in_the_gradient_only() -> None:
    def frame(name: str) -> str:
        tree = ast.parse((PACKAGE / f"{name}.py").read_text().replace(f'"{name}"', '"LOOP"'))
        tree.body = tree.body[1:]  # the docstring
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name == "compute_gradient":
                node.body = []
        return ast.dump(tree)

    assert frame("standard") == frame("accumulate")
