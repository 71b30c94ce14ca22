"""How a run ended, for people and for launch.sh, whose launcher between knows only 0 and 1."""

import json
import os
import sys
from pathlib import Path
from typing import Any

FINISHED, FAILED, BAD_CONFIG, STOPPED = 0, 1, 2, 75


def ending(reason: str, code: int, step: int) -> dict[str, Any]:
    return {"reason": reason, "code": code, "step": step, "attempt": os.environ.get("ISOBATCH_ATTEMPT")}


def tell(reason: str) -> None:
    """A refusal or a failure, on stderr: once on each machine, since its ranks read the same files."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(reason, file=sys.stderr, flush=True)


def tell_launch(reason: str, code: int, step: int, is_main: bool) -> bool:
    """Write the code down for the launch.sh of this machine; False where there is none."""
    told = os.environ.get("ISOBATCH_ENDED")
    if told and os.environ.get("LOCAL_RANK", "0") == "0":
        Path(told).write_text(json.dumps({**ending(reason, code, step), "main": is_main}), encoding="utf-8")
    return bool(told)


def exit_code(reason: str, code: int, step: int, is_main: bool) -> int:
    """The code for this process to exit with at an end that is known, and the same on all ranks.

    Under launch.sh (ISOBATCH_ENDED names a file) that is 0, and the file tells the launch.sh of this machine the code:
    a launcher that restarts ranks would take any other for a crash. Else it is the code itself.
    """
    if not tell_launch(reason, code, step, is_main):
        return code
    first_here = os.environ.get("LOCAL_RANK", "0") == "0"
    # On another machine a config may be bad that is good on the first: its rank must not look as if all were well.
    # A stop all have agreed on: as a failure there, it would keep the launcher of the first machine waiting for 300 s.
    alone = code not in (FINISHED, STOPPED) and not is_main and first_here
    return code if alone else FINISHED
