"""The package: which module may import which, how large they may be, and that the pure ones stay
pure.
"""

import ast
import subprocess
import sys
from collections.abc import Collection, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from train import LAYERS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "train"

# These import no torch, so that what they are needed for answers at once.
PURE = (
    "batch",
    "cli",
    "comparison",
    "compare",
    "config",
    "disk",
    "errors",
    "installation",
    "metric_names",
    "new",
    "optim.batch_scaling",
    "optim.lr_schedule",
    "parts",
    "permutation",
    "redaction",
    "sweep",
    "terminal",
)
HEART = ("standard.py", "accumulate.py", "loop.py", "step.py", "run.py", "setting.py")  # and batch/
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}


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
            names = [
                f"{parent}.{alias.name}" if parent == "train" else parent for alias in node.names
            ]
        for name in names:
            if name.split(".")[0] == "train":
                yield node.lineno, name


def top_level(path: Path) -> str:
    """The name under which LAYERS has the module or package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_module_has_a_layer() -> None:
    assert {top_level(path) for path in modules()} - {"__init__"} == set(LAYER_OF)


def test_imports_go_down() -> None:
    wrong = []
    for path in modules():
        if path == PACKAGE / "__init__.py":  # holds train.load, which imports when called
            continue
        own = top_level(path)
        # What is started as `python -m train.plan` stands at the top, wherever its package does.
        layer = -1 if path.name == "__main__.py" else LAYER_OF[own]
        for line, module in imports(path):
            other = room(module)
            if other not in ("", own) and LAYER_OF[other] <= layer:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")

    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_by_way_of_others() -> None:
    names = {module_name(path): path for path in modules()}
    graph = {name: imported_modules(path, names) for name, path in names.items() if name != "train"}

    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path, known: Collection[str]) -> set[str]:
    """`from train.data import tokens` imports train.data.tokens, where that is a module, and
    train.data else.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("train."):
            for alias in node.names:
                longer = f"{node.module}.{alias.name}"
                found.add(longer if longer in known else node.module)
    return found


@pytest.mark.parametrize("name", PURE)
def test_pure_rooms_import_no_torch(name: str) -> None:
    code = f"import sys, train.{name}; assert 'torch' not in sys.modules"

    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_sizes() -> None:
    too_large = []
    for path in modules():
        source = path.read_text()
        lines = source.count("\n")
        if lines > 320:
            too_large.append(f"{path.relative_to(ROOT)}: {lines} lines")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > 60:
                    too_large.append(
                        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines"
                    )

    assert not too_large, "\n".join(too_large)


def test_the_heart_stays_small() -> None:
    """What one reads in one sitting to know what a run does."""
    files = [PACKAGE / name for name in HEART]
    files += (PACKAGE / "batch").glob("*.py")

    assert sum(path.read_text().count("\n") for path in files) <= 1100


def test_no_unfinished_marks() -> None:
    marks = ("TODO", "FIXME", "XXX", "type: ignore", "# noqa")
    found = [
        f"{path.relative_to(ROOT)}: {mark}"
        for path in modules()
        for mark in marks
        if mark in path.read_text()
    ]

    assert not found, "\n".join(found)


def test_torch_distributed_is_used_in_two_places() -> None:
    """For messages, and to divide a model."""
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in modules()
        if "torch.distributed" in path.read_text()
    }

    assert users == {"distributed/ranks.py", "distributed/sharded.py"}


def test_the_wrapper_is_asked_for_in_one_place() -> None:
    """Whether a model is inside DDP, and all that follows from it: learner.parallel."""
    users = set()
    for path in modules():
        names = {
            node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)
        }
        if "DistributedDataParallel" in names:
            users.add(path.relative_to(PACKAGE).as_posix())

    assert users == {"distributed/ddp.py", "distributed/parallel.py"}


def test_the_loops_differ_in_the_gradient_only() -> None:
    def frame(name: str) -> str:
        tree = ast.parse((PACKAGE / f"{name}.py").read_text().replace(f'"{name}"', '"LOOP"'))
        tree.body = tree.body[1:]  # the docstring
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name == "compute_gradient":
                node.body = []
        return ast.dump(tree)

    assert frame("standard") == frame("accumulate")
