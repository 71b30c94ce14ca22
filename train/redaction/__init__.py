"""No secret leaves the process: what is written, shown or sent goes through `clean`. Pure.

Three nets, because each has holes: names (`api_key: ...`; names.py, pairs.py), values that are known
to be secret (from the environment, from under such a name; known_values.py), and the shapes of
well-known tokens (shapes.py). A secret without any of these signs is not recognised.
"""

from train.redaction.clean import clean, clean_known, forget, learn
from train.redaction.patch import clean_patch
from train.redaction.shapes import REDACTED
from train.redaction.stream_guard import guard_streams, release_streams

__all__ = [
    "REDACTED",
    "clean",
    "clean_known",
    "clean_patch",
    "forget",
    "guard_streams",
    "learn",
    "release_streams",
]
