"""python scripts/new.py NAME: a task, a config and a test of your own in my/, to start from. See
train/new.py.
"""

import sys
from pathlib import Path

# the package beside this folder, installed or not
sys.path.insert(0, str(Path(__file__).parents[1]))

from train.new import main

sys.exit(main(sys.argv[1:]))
