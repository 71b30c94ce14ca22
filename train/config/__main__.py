"""python -m train.config CONFIG [key=value ...]: the resolved config, without the seconds that
torch takes to import.

Keys, types and ranges are checked; whether targets exist and take their arguments is for --plan to
say.
"""

import sys
from collections.abc import Sequence

from train.config import load
from train.errors import FINISHED, entry_point


@entry_point
def main(argv: Sequence[str]) -> int:
    print(load([*argv, "--print-config"]).yaml(), end="")
    return FINISHED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
