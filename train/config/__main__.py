"""python -m train.config CONFIG [key=value ...]: the resolved config, without the seconds that torch takes to import.

Keys, types and ranges are checked; whether targets exist and take their arguments is for --plan to say.
"""

import sys

from train.config import ConfigError, load

if __name__ == "__main__":
    try:
        print(load([*sys.argv[1:], "--print-config"]).yaml(), end="")
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
