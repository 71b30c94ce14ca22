"""python -m tests.campaigns.faults [--quick | --full] [--write] [ROW ...]

Without ROW: all rows. --full takes the numbers that the table promises (an hour); --quick, the
default, seconds a row. --write puts the table into docs/results/faults.md. Exit code 1 if a row fails.
"""

import sys

from tests.campaigns.faults.table import HEAD, ROWS, Outcome, commit, run, write


def main(words: list[str]) -> int:
    options, names = (
        {word for word in words if word.startswith("--")},
        [w for w in words if not w.startswith("--")],
    )
    unknown = (options - {"--quick", "--full", "--write"}) | (set(names) - ROWS.keys())
    if unknown:
        print(
            f"{', '.join(sorted(unknown))}: there is no such row or option. Rows: "
            f"{', '.join(ROWS)}\n{__doc__}"
        )
        return 2
    print(HEAD, flush=True)
    outcomes: list[Outcome] = []
    for name in names or ROWS:
        outcomes.append(run(ROWS[name], "--full" in options))
        print(outcomes[-1].line(commit()), flush=True)
        if "--write" in options:
            write(outcomes)
    failed = [outcome.row.number for outcome in outcomes if not outcome.passed]
    print(
        f"\n{len(outcomes) - len(failed)} of {len(outcomes)} rows passed"
        + (f"; failed: {failed}" if failed else "")
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
