"""The segments of a run: stretches of steps that were trained with the same mathematics."""

from collections.abc import Mapping
from typing import Any

from train.disk import MAYBE_TEXT, Shape, shape_error

Segment = Mapping[str, Any]
"""As plan.json and W&B have it:

after_step    the step after which it begins; 0: the start of training
curve_hash    of what was trained with; None: the checkpoint's run is not there to be asked
recipe_hash   the same without the seed
changed       {key: [there, now]}: what differs from the segment before
resumed_from  the checkpoint it begins with
"""

SHAPE: Shape = {
    "after_step": int,
    "curve_hash": MAYBE_TEXT,
    "recipe_hash": MAYBE_TEXT,
    "changed": dict,
    "resumed_from?": MAYBE_TEXT,
}


def segments_in(derived: Mapping[str, Any]) -> list[Segment]:
    """Those of a plan.json; none where any of them is malformed."""
    segments = derived.get("segments")
    # Anybody may have edited the file: one wrong segment makes all of them unusable.
    if not isinstance(segments, list):
        return []
    for segment in segments:
        if shape_error(segment, SHAPE):
            return []
        for pair in segment["changed"].values():
            if not isinstance(pair, list) or len(pair) != 2:
                return []
    return segments
