"""Values of YAML that are read otherwise than they are written, in files and on the command line."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.campaigns.inputs.case import ADVISED, FAILS, REFUSED, RIGHT, SILENT, Outcome
