"""python scripts/verify.py CONFIG [key=value ...]: is the gradient exact? See train/verify.py."""

import sys
from pathlib import Path

# the package beside this folder, installed or not
sys.path.insert(0, str(Path(__file__).parents[1]))

from train.verify import main

sys.exit(main(sys.argv[1:]))
