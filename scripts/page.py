"""python scripts/page.py ENTITY/PROJECT [RUN ...]: a saved view and a report in W&B;
train/comparison/wandb_page.py.
"""

import sys
from pathlib import Path

# the package beside this folder, installed or not
sys.path.insert(0, str(Path(__file__).parents[1]))

from train.comparison.wandb_page import main

sys.exit(main(sys.argv[1:]))
