"""The ways by which a text reaches the screen, each in a process of its own: python -m
tests.redaction.ways

Without torch: a process is forked for each.
"""

import logging
import os
import sys
import threading
import warnings
from collections.abc import Sequence

from train.errors import entry_point

CANARY = "Zq7kanary9X"
LOGGER = logging.getLogger("tests.ways")
# As libraries do when they are imported, which is before any entry point is called.
LOGGER.addHandler(logging.StreamHandler())


def leave_by(way: str) -> None:
    """One of the ways by which a text reaches the screen."""
    text = f"the value {CANARY}0 is wrong"
    if way == "print":
        print(text)
    elif way == "in pieces":
        print("the value ", CANARY[:4], end="")
        print(CANARY[4:] + "0")
        sys.stdout.write("".join([CANARY[:5]]))
        sys.stdout.write(f"{CANARY[5:]}0\n")
    elif way == "bytes":
        sys.stdout.buffer.write(f"{text}\n".encode())
    elif way == "stderr":
        print(text, file=sys.stderr)
    elif way == "warning":
        warnings.warn(text, stacklevel=2)
    elif way == "logging":
        LOGGER.error(text)
    elif way == "exit":
        raise SystemExit(text)
    elif way == "thread":
        thread = threading.Thread(
            target=lambda: 1 / len(text[:0]) if text else None, name=f"{CANARY}0"
        )
        thread.start()
        thread.join()
    elif way == "key":
        print(
            "-----BEGIN RSA PRIVATE KEY-----",
            f"MIIE{CANARY}x",
            "Zq7kanaryZZ",
            "-----END RSA PRIVATE KEY-----",
            sep="\n",
        )
    elif way == "note":
        error = RuntimeError("no value")
        error.add_note(text)
        raise error from ValueError(text)
    elif way == "next line":
        print("password:")
        print(f"{CANARY}7")
    elif way == "no newline":
        sys.stdout.write(text)
    elif way == "progress":
        sys.stderr.write(f"\r{text}\r{text}")
        sys.stderr.flush()
    raise RuntimeError(text)


WAYS = (
    "print",
    "in pieces",
    "bytes",
    "stderr",
    "warning",
    "logging",
    "exit",
    "thread",
    "key",
    "note",
    "next line",
    "no newline",
    "progress",
)


@entry_point
def main(argv: Sequence[str]) -> int:
    leave_by(argv[0])
    return 0


if __name__ == "__main__":
    for way in sys.argv[1:] or WAYS:
        child = os.fork()
        if not child:
            sys.exit(main([way]))
        os.waitpid(child, 0)
        print("next", way, flush=True)
