"""What a field of the config states beside its type: what the key decides, and what it takes.

    every_steps: Annotated[int, NEUTRAL, AT_LEAST_1] = 10

keys.py collects these annotations, so a new key is one field in recipe.py or schema.py. OmegaConf
reads the type alone: it asks typing.get_type_hints, which drops what `Annotated` adds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Effect(Enum):
    """What a key decides about a run. For the curve hash, NEUTRAL counts as execution."""

    MATHEMATICS = "what is computed: part of the curve hash"
    EXECUTION = "how it is computed, and so what it costs: no part of the curve hash"
    NEUTRAL = "neither: runs that differ in such keys alone are repetitions of one set-up"


MATHEMATICS = Effect.MATHEMATICS
EXECUTION = Effect.EXECUTION
NEUTRAL = Effect.NEUTRAL


@dataclass(frozen=True)
class Range:
    """The numbers that a key takes."""

    words: str
    """As in `it must be 1 or more`."""
    contains: Callable[[Any], bool]


@dataclass(frozen=True)
class Choices:
    """The texts that a key takes."""

    texts: tuple[str, ...]


def one_of(*texts: str) -> Choices:
    return Choices(texts)


# NaN compares false, so all of these refuse it. Infinity passes ABOVE_0: a limit that nothing
# reaches.
AT_LEAST_0 = Range("0 or more", lambda value: value >= 0)
AT_LEAST_1 = Range("1 or more", lambda value: value >= 1)
ABOVE_0 = Range("above 0", lambda value: value > 0)
POSITIVE = Range("above 0 and finite", lambda value: 0 < value < math.inf)
FRACTION = Range("from 0 to 1", lambda value: 0 <= value <= 1)
# A share of 1 would leave nothing to train on.
FRACTION_BELOW_1 = Range("from 0 to below 1", lambda value: 0 <= value < 1)
# What train/randomness.py sets generators to.
SEED = Range("from 0 to 2**63 - 1", lambda value: 0 <= value < 2**63)
