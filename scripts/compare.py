"""python scripts/compare.py RUN [RUN ...]: what runs cost and what they gained. See
train/compare.py.
"""

import sys
from pathlib import Path

# the package beside this folder, installed or not
sys.path.insert(0, str(Path(__file__).parents[1]))

from train.compare import main

sys.exit(main(sys.argv[1:]))
