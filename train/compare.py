"""What runs cost and what they gained: python -m train.compare RUN [RUN ...]

Imports no torch; matplotlib only where pictures are asked for, wandb only where a run is in W&B.
"""

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from train.comparison.agree import agreement, unequal
from train.comparison.data import as_data
from train.comparison.facts import Comparison
from train.comparison.group import losses
from train.comparison.judge import compare
from train.comparison.page import page
from train.comparison.pictures import draw
from train.comparison.read import CannotRead, Found, find
from train.comparison.tables import tables
from train.errors import entry_point
from train.installation import command

PAGE = "compare.html"
EQUAL, UNEQUAL = 0, 1

EPILOG = """\
RUN is a run folder, a folder with run folders anywhere below, or entity/project/run in W&B.
The others are compared with the first set-up. Runs that differ in their seed alone are one set-up.

exit code: 0 told, 1 not equal as --assert-equal asks, 2 nothing that can be compared
"""


@entry_point
def main(argv: Sequence[str]) -> int:
    options = _parse(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without ± still gets the rest
    found = find(options.runs)
    comparison = compare(found.runs, found.left_out, options.target)
    try:
        if options.out:
            _write(comparison, options.out, options.x)
    finally:
        if options.json:
            print(json.dumps(as_data(comparison), indent=2, default=str, allow_nan=False))
        else:
            _tell(comparison)
    if options.assert_equal is None:
        return EQUAL
    return _assert_equal(comparison, found, options.assert_equal)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=command("compare"),
        description="What runs cost and what they gained.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument(
        "--assert-equal",
        type=float,
        metavar="TOLERANCE",
        help=(
            "exit 1 unless the losses of all runs with the same seed are that close, absolutely, "
            "at all common rows"
        ),
    )
    parser.add_argument(
        "--target",
        type=float,
        metavar="LOSS",
        help="tell the training time to this evaluation loss",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write pictures and compare.html there"
    )
    parser.add_argument(
        "--x", choices=("samples", "steps", "hours"), default="samples", help="x-axis of the losses"
    )
    return parser.parse_args(argv)


def _tell(comparison: Comparison) -> None:
    print(comparison.headline)
    if comparison.details:
        print(comparison.details)
    for table in tables(comparison):
        print(f"\n{table}")
    if comparison.notes:
        print("\nNotes", *(f"  - {note}" for note in comparison.notes), sep="\n")


def _write(comparison: Comparison, folder: Path, x: str) -> None:
    """Pictures and the page; what was written is said on stderr, since stdout may be JSON."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pictures = draw(comparison, folder, x)
        (folder / PAGE).write_text(page(comparison, pictures), encoding="utf-8")
    except OSError as error:
        raise CannotRead(
            f"compare: cannot write {folder}: {error.strerror}\n  type: --out ANOTHER"
        ) from error
    print("wrote", folder / PAGE, *(picture.path.name for picture in pictures), file=sys.stderr)


def _assert_equal(comparison: Comparison, found: Found, tolerance: float) -> int:
    reasons = [f"{each.where} was left out: {each.why}" for each in found.left_out]
    reasons += unequal(found.runs, losses(comparison.groups), tolerance)
    if reasons:
        print(
            f"not equal within {tolerance:g}:",
            *(f"  - {reason}" for reason in reasons),
            sep="\n",
            file=sys.stderr,
        )
        return UNEQUAL
    agreed = (agreement(found.runs, metric) for metric in losses(comparison.groups))
    told = "; ".join(str(each) for each in agreed if each)
    print(f"equal within {tolerance:g}: {told}", file=sys.stderr)
    return EQUAL


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
