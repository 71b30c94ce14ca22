"""python -m train.config CONFIG [key=value ...]: the resolved config, without importing torch.

Keys, types and ranges are checked. Whether targets exist and take their arguments is for --plan to
report: that imports them, and torch, which takes seconds.
"""

import sys
from collections.abc import Sequence

from train.config import load
from train.errors import FINISHED, entry_point


@entry_point
def main(argv: Sequence[str]) -> int:
    # With the option that load itself looks at: the targets stay unimported.
    print(load([*argv, "--print-config"]).yaml(), end="")
    return FINISHED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
