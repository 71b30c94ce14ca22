"""python -m tests.campaigns.inputs [TABLES]: all inputs, so many tables among them; the counts go
to docs/inputs.md.
"""

import itertools
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import datasets

from tests.campaigns.inputs import (
    folders,
    json_files,
    mixed_images,
    parquet,
    scales,
    tables,
    texts,
    yaml_forms,
)
from tests.campaigns.inputs.case import (
    ADVISED,
    BAD,
    FAILS,
    REFUSED,
    RIGHT,
    SILENT,
    TRACE,
    Input,
    Outcome,
)

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "inputs.md"
TABLES = 300
VERDICTS = (RIGHT, ADVISED, REFUSED, SILENT, TRACE, FAILS)

HEAD = """# Inputs as people have them

Generated tables, JSON, Parquet, folders of images (also of several modes and sizes in one), texts and YAML, read by
`data.source` and compared with what was written; and columns of any size under `data.normalize`, against fractions.
*right*: the same numbers and classes. *right as advised*: refused, and right once one types what the error tells to.
*refused*: the file itself must be changed. The other three are faults. Made by:

    python -m tests.campaigns.inputs

"""


def every_case(count: int) -> list[Input]:
    parts = (
        folders.cases(),
        folders.linked(),
        json_files.cases(),
        parquet.cases(),
        yaml_forms.cases(),
    )
    own = (mixed_images.cases(), texts.cases(), scales.cases())
    return [*tables.cases(count), *itertools.chain(*parts, *own)]


def page(outcomes: Sequence[Outcome]) -> str:
    counts = Counter((outcome.case.kind, outcome.verdict) for outcome in outcomes)
    kinds = list(dict.fromkeys(outcome.case.kind for outcome in outcomes))
    lines = [f"| kind | inputs | {' | '.join(VERDICTS)} |", "|---" * (len(VERDICTS) + 2) + "|"]
    for kind in kinds:
        own = [counts[kind, verdict] for verdict in VERDICTS]
        lines.append(f"| {kind} | {sum(own)} | {' | '.join(map(str, own))} |")
    total = [sum(counts[kind, verdict] for kind in kinds) for verdict in VERDICTS]
    lines.append(f"| all | {sum(total)} | {' | '.join(map(str, total))} |")
    bad = [
        f"- {outcome.verdict}: {outcome.case.kind}, {outcome.case.name}"
        for outcome in outcomes
        if outcome.is_bad
    ]
    return HEAD + "\n".join([*lines, "", *bad, f"Commit {_commit()}, {date.today()}."]) + "\n"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def main(argv: Sequence[str]) -> int:
    datasets.disable_progress_bars()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        for number, case in enumerate(every_case(int(argv[0]) if argv else TABLES)):
            outcome = case.judge(Path(folder) / str(number))
            outcomes.append(outcome)
            if outcome.verdict in BAD:
                print(f"{outcome.verdict}: {case.kind}: {case.name}: {outcome.said}", flush=True)
    PAGE.write_text(page(outcomes))
    print(PAGE.read_text())
    return int(any(outcome.is_bad for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
