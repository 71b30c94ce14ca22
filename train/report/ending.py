"""How a run ended, for people and for launch.sh, whose launcher between knows only 0 and 1."""

import json
import os
import sys
from pathlib import Path
from typing import Any

FINISHED, FAILED, BAD_CONFIG = 0, 1, 2


def ending(reason: str, code: int, step: int) -> dict[str, Any]:
    return {"reason": reason, "code": code, "step": step, "attempt": os.environ.get("ISOBATCH_ATTEMPT")}


def end_process(reason: str, code: int, step: int = 0, *, is_main: bool, complain: bool) -> int:
    """Rank 0 says why (on stderr, where that is a complaint); returns the code for this process to exit with.

    Under launch.sh (ISOBATCH_ENDED names a file) that is 0, and the file tells launch.sh the code: a launcher that
    restarts ranks would take any other for a crash. Else it is the code itself.
    """
    if is_main and complain:
        print(reason, file=sys.stderr, flush=True)
    told = os.environ.get("ISOBATCH_ENDED")
    if not told:
        return code
    if is_main:
        Path(told).write_text(json.dumps(ending(reason, code, step)), encoding="utf-8")
    return 0
