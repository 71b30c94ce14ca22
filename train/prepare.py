"""Load the data of a config beforehand, so that a training of many ranks finds it in the cache and
none waits.

python -m train.prepare CONFIG [key=value ...]

What takes long (a download, a conversion, tokens of texts) then happens once, on a machine that
reaches the Hub, before the clock of a job runs. Exit code 0: the data can be trained on; 2: bad
config or data. It writes to the cache of `datasets` only.
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
    sets = open_datasets(config, make_task(config).columns)
    size = (
        "a stream of unknown length" if sets.train.size is None else f"{sets.train.size:,} samples"
    )
    held_out = [
        f"; {len(samples):,} {f'in {name}' if name else 'held out'}"
        for name, samples in sets.evaluation.items()
    ]
    print(f"data      {size}{''.join(held_out)}", *sets.notes, sep="\n")
    return FINISHED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
