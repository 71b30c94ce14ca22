"""Load the data of a config before a run, into the cache of `datasets`.

python -m train.prepare CONFIG [key=value ...]

What takes long (a download, a conversion, tokenizing) then happens once, on a machine that reaches
the Hub, before the time limit of a job starts. Exit code 0: the data can be trained on; 2: bad
config or data. It writes to that cache only.
"""

import sys
from collections.abc import Sequence

from train.config import load
from train.data import open_datasets
from train.errors import BAD_CONFIG, FINISHED, entry_point
from train.installation import command
from train.tasks import make_task

USAGE = f"usage: {command('prepare')} CONFIG [key=value ...]"


@entry_point
def main(argv: Sequence[str]) -> int:
    """Read all that training would read, with its checks; returns the exit code."""
    if not argv or {"-h", "--help"} & set(argv):
        print(USAGE)
        return FINISHED if argv else BAD_CONFIG
    config = load(argv).config
    # With the checks of training: bad data is named before the time limit of a job runs.
    sets = open_datasets(config, make_task(config).columns)
    parts = ["a stream of unknown length"]
    if sets.train.size is not None:
        parts = [f"{sets.train.size:,} samples"]
    for name, samples in sets.evaluation.items():
        where = f"in {name}" if name else "held out"
        parts.append(f"{len(samples):,} {where}")
    print(f"data      {'; '.join(parts)}", *sets.notes, sep="\n")
    return FINISHED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
