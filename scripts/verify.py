"""python scripts/verify.py CONFIG [key=value ...]: see train/verify.py."""

import sys

from train.verify import main

sys.exit(main(sys.argv[1:]))
