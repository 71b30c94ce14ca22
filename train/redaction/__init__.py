"""No secret leaves the process: what is written, shown or sent goes through `clean`. Pure.

Three nets, because each has holes: names (`api_key: ...`), values that are known to be secret (from
the environment, from under such a name), and the shapes of well-known tokens. A value without any
sign is not known.
"""

from train.redaction.clean import clean, clean_known, forget, learn
from train.redaction.door import guard_streams, release_streams
from train.redaction.patch import clean_patch
from train.redaction.shapes import REDACTED

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
