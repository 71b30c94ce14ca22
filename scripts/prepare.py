"""python scripts/prepare.py CONFIG [key=value ...]: load the data first. See train/prepare.py."""

import sys
from pathlib import Path

# the package beside this folder, installed or not
sys.path.insert(0, str(Path(__file__).parents[1]))

from train.prepare import main

sys.exit(main(sys.argv[1:]))
