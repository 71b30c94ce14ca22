"""python scripts/sweep_local.py SWEEP.yaml [key=value ...]: a grid of runs without a server. See
train/sweep.py.
"""

import sys
from pathlib import Path

# the package beside this folder, installed or not
sys.path.insert(0, str(Path(__file__).parents[1]))

from train.sweep import main

sys.exit(main(sys.argv[1:]))
