"""What runs cost and what they gained: python -m train.compare RUN [RUN ...]

Imports no torch; matplotlib only where pictures are asked for, wandb only where a run is in W&B.
"""

import argparse
import io
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from train.comparison.as_json import as_json
from train.comparison.compare import compare
from train.comparison.comparison import Comparison
from train.comparison.curve_distance import curve_distance, reasons_for_unequal
from train.comparison.group import loss_metrics
from train.comparison.read import CannotRead, LoadedRuns, load_runs
from train.comparison.tables import UNLIMITED, tables
from train.errors import entry_point
from train.installation import command

PAGE = "compare.html"
EQUAL = 0
UNEQUAL = 1

EPILOG = """\
RUN is a run folder, a folder with run folders anywhere below, or entity/project/run in W&B.
The others are compared with the first set-up. Runs that differ in their seed alone are one set-up.

exit code: 0 compared, 1 not equal as --assert-equal asks, 2 nothing that can be compared
"""


@entry_point
def main(argv: Sequence[str]) -> int:
    options = _parse(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without ± still gets the rest
    loaded = load_runs(options.runs)
    comparison = compare(loaded.runs, loaded.skipped, options.target)
    try:
        if options.out:
            _write(comparison, options.out, options.x)
    finally:  # the text needs neither matplotlib nor a folder that can be written
        if options.json:
            print(json.dumps(as_json(comparison), indent=2, default=str, allow_nan=False))
        else:
            _print(comparison)
    # Only after everything is printed: the exit code is for scripts, the text for people.
    if options.assert_equal is None:
        return EQUAL
    return _assert_equal(comparison, loaded, options.assert_equal)


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
        help="print the training time to this evaluation loss",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write pictures and compare.html there"
    )
    parser.add_argument(
        "--x", choices=("samples", "steps", "hours"), default="samples", help="x-axis of the losses"
    )
    return parser.parse_args(argv)


def _print(comparison: Comparison) -> None:
    print(comparison.headline)
    if comparison.details:
        print(comparison.details)
    # A file keeps each row on one line, for grep.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else UNLIMITED
    for table in tables(comparison):
        print(f"\n{table.text(width)}")
    if comparison.notes:
        print("\nNotes")
        for note in comparison.notes:
            print(f"  - {note}")


def _write(comparison: Comparison, folder: Path, x: str) -> None:
    """Pictures and the page. Their names go to stderr, since stdout may be JSON."""
    # here: jinja2 and matplotlib, which a comparison as text need not load
    from train.comparison.html_page import html_page
    from train.comparison.pictures import draw

    try:
        folder.mkdir(parents=True, exist_ok=True)
        pictures = draw(comparison, folder, x)
        (folder / PAGE).write_text(html_page(comparison, pictures), encoding="utf-8")
    except OSError as error:
        raise CannotRead(
            f"compare: cannot write {folder}: {error.strerror}\n  Set:  --out ANOTHER"
        ) from error
    names = [picture.path.name for picture in pictures]
    print("wrote", folder / PAGE, *names, file=sys.stderr)


def _assert_equal(comparison: Comparison, loaded: LoadedRuns, tolerance: float) -> int:
    losses = loss_metrics(comparison.groups)
    reasons = [f"{each.where} was skipped: {each.why}" for each in loaded.skipped]
    # A run that could not be read may differ: equality was asked of all.
    reasons += reasons_for_unequal(loaded.runs, losses, tolerance)
    if reasons:
        lines = [f"not equal within {tolerance:g}:", *(f"  - {reason}" for reason in reasons)]
        print("\n".join(lines), file=sys.stderr)
        return UNEQUAL
    distances = filter(None, (curve_distance(loaded.runs, metric) for metric in losses))
    print(f"equal within {tolerance:g}: {'; '.join(map(str, distances))}", file=sys.stderr)
    return EQUAL


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
