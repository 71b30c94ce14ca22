"""How dense the code is, beside other projects: python -m tests.campaigns.density [NAME=FOLDER ...]

Without arguments: this package alone. A folder is searched for Python files, those in a folder named `tests` left out.
"""

import ast
import io
import sys
import tokenize
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.campaigns.launched import ROOT

LONG = 100  # characters
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Density:
    """What is counted in one folder. Rates are per 1,000 physical lines, shares are of all lines."""

    lines: int
    comprehensions: float
    conditional_expressions: float
    tuple_assignments: float  # a, b = x, y
    long_lines: float
    comment_lines: float  # with a comment on them, alone or behind code
    longest_function: int
    median_function: float


def density_of(folder: Path) -> Density:
    counts: Counter[str] = Counter()
    functions: list[int] = []
    for path in sorted(folder.rglob("*.py")):
        if "tests" in path.relative_to(folder).parts:
            continue
        source = path.read_text(encoding="utf-8")
        _count_lines(source, counts)
        for node in ast.walk(ast.parse(source)):
            _count_node(node, counts)
            if isinstance(node, FUNCTIONS):
                functions.append((node.end_lineno or 0) - node.lineno + 1)
    thousands = counts["lines"] / 1000
    return Density(
        lines=counts["lines"],
        comprehensions=counts["comprehensions"] / thousands,
        conditional_expressions=counts["conditionals"] / thousands,
        tuple_assignments=counts["tuples"] / thousands,
        long_lines=counts["long"] / counts["lines"],
        comment_lines=counts["comments"] / counts["lines"],
        longest_function=max(functions),
        median_function=median(functions),
    )


def _count_lines(source: str, counts: Counter[str]) -> None:
    lines = source.splitlines()
    counts["lines"] += len(lines)
    counts["long"] += sum(len(line) > LONG for line in lines)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    commented = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    counts["comments"] += len(commented)


def _count_node(node: ast.AST, counts: Counter[str]) -> None:
    if isinstance(node, COMPREHENSIONS):
        counts["comprehensions"] += 1
    if isinstance(node, ast.IfExp):
        counts["conditionals"] += 1
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
        counts["tuples"] += isinstance(node.targets[0], ast.Tuple)


def table(densities: dict[str, Density]) -> str:
    lines = [
        "| | lines | comprehensions per 1,000 | conditional expressions | `a, b = x, y` "
        f"| lines over {LONG} | lines with a comment | longest function | median |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in densities.items():
        lines.append(
            f"| {name} | {found.lines:,} | {found.comprehensions:.1f} "
            f"| {found.conditional_expressions:.1f} | {found.tuple_assignments:.1f} "
            f"| {found.long_lines:.1%} | {found.comment_lines:.1%} "
            f"| {found.longest_function} | {found.median_function:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    folders = {"train": ROOT / "train"}
    for argument in sys.argv[1:]:
        name, _, folder = argument.partition("=")
        folders[name] = Path(folder)
    print(table({name: density_of(folder) for name, folder in folders.items()}))


if __name__ == "__main__":
    main()
