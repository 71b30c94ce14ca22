"""How a process ends: the errors that a user can fix, the exit codes, and what joins the two.

Imports no torch, and of the package only what prints, behind the doors that let no secret out:
every entry point begins and ends through here.
"""

import atexit
import functools
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, ParamSpec

from train.output import keep_printing
from train.redaction import clean, guard_streams, learn
from train.terminal import on_lines, write_lines

P = ParamSpec("P")

# Exit codes.
FINISHED = 0
FAILED = 1
BAD_CONFIG = 2  # config, data or the user's own code must change
STOPPED = 75  # on request, and saved: EX_TEMPFAIL of sysexits.h, "try again"


class UserError(ValueError):
    """The config, the data, the launch or the user's own code must change.

    The message says what to type. Every entry point prints it without a stack trace, and ends with
    exit code 2.
    """


class RunFailed(RuntimeError):
    """A run that ends here, with what it saved, in a sentence and without a stack trace.

    Exit code 1: no change of the config is known to fix it.
    """


class RanksDisagree(RunFailed):
    """The ranks hold different gradients after the reduction, or different weights."""


class RankFailed(RunFailed):
    """Another rank could not compute its part of the gradient; its own error says why."""


class ShortOfMemory(RankFailed):
    """Ranks ran out of memory before the reduction: all ranks raise it together.

    Its cause is the error of this rank, where it is one of them.
    """


# torch raises errors of several kinds when memory runs out: these words tell them from others.
NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "status_alloc_failed",  # cuBLAS, cuDNN and their like, for their workspaces
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory of the device or the host ran out, here or in the cause of this error."""
    # Our own errors may name such words in their advice: they are none.
    while error is not None and not isinstance(error, UserError | RunFailed):
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return True
        text = str(error).lower()
        if isinstance(error, RuntimeError | OSError) and any(each in text for each in NO_MEMORY):
            return True
        error = error.__cause__
    return False


@contextmanager
def ends_in_a_sentence(
    kind: type[UserError], what: str, of: type[Exception] = Exception
) -> Iterator[None]:
    """Turns an error `of` this class, from the user's own code or arguments, into a `kind`.

    Its message says where it was raised. sys.exit becomes one too: one rank would leave the others.
    Errors that another start may cure pass unchanged: a full memory or disk, a network.
    """
    try:
        yield
    except (UserError, MemoryError, OSError):
        raise
    except (of, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        # The innermost frame that is no library's: there the reader can change something.
        frame = [f for f in frames if "site-packages" not in f.filename][-1]
        location = f"{os.path.relpath(frame.filename)}:{frame.lineno}"
        raise kind(f"{what}: {type(error).__name__}: {str(error).strip()} ({location})") from error


def raisable(error: Exception) -> type[Exception]:
    """The class of an error, to raise it with another text; RuntimeError if it takes more."""
    try:
        type(error)("")
    except TypeError:
        return RuntimeError
    return type(error)


def some(names: Sequence[str], count: int = 3) -> str:
    """The first names, and how many more there are."""
    text = ", ".join(names[:count])
    if len(names) > count:
        text += f" and {len(names) - count} more"
    return text


def counted(number: int, noun: str) -> str:
    """`1 rank`, `1,438 ranks`"""
    plural = "" if number == 1 else "s"
    return f"{number:,} {noun}{plural}"


def code_of(error: BaseException) -> int:
    """The exit code of a run that `error` has ended."""
    return BAD_CONFIG if isinstance(error, UserError) else FAILED


def entry_point(main: Callable[P, int]) -> Callable[P, int]:
    """Decorates the `main` of an entry point: a UserError ends it in one sentence, exit code 2.

    From here on nothing is shown that is known to be secret, and what is printed where nobody reads
    it any more is lost without an error.
    """

    @functools.wraps(main)
    def checked(*args: P.args, **kwargs: P.kwargs) -> int:
        guard_streams()  # the streams of now, which handlers of logging may hold already
        keep_printing()
        guard_streams()  # those that keep_printing has put in their place
        learn([*args, *sys.argv])
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print_error(str(error))
            return exit_code(str(error), BAD_CONFIG, 0)

    return checked


def print_error(text: str) -> None:
    """On stderr, once on each machine, since its ranks read the same files.

    All machines but the first name the rank.
    """
    if _is_first_of_node():
        who = "" if _is_main() else f"rank {os.environ['RANK']}: "
        write_lines(who + on_lines(text))


def ending(reason: str, code: int, step: int) -> dict[str, Any]:
    """What `ended.json` holds: how a run ended, and in which attempt of launch.sh."""
    return {
        "reason": clean(reason),  # it may hold the text of any exception
        "code": code,
        "step": step,
        "attempt": os.environ.get("ISOBATCH_ATTEMPT"),
    }


def write_ending(reason: str, code: int, step: int, alone: bool = False) -> bool:
    """Write the exit code to the file that launch.sh reads; False where there is no such file.

    `alone`: this rank ends before the others, and the first of the machine may be killed before it
    can write.
    """
    file = os.environ.get("ISOBATCH_ENDED")
    if file and (alone or _is_first_of_node()):
        content = {**ending(reason, code, step), "main": _is_main()}
        # The folder is gone where that launch was killed and a later one has swept.
        with suppress(FileNotFoundError):
            Path(file).write_text(json.dumps(content), encoding="utf-8")
    return bool(file)


def exit_code(reason: str, code: int, step: int) -> int:
    """The code for this process to exit with at an end that is the same on all ranks.

    Under launch.sh (ISOBATCH_ENDED names a file) that is 0, and the file holds the code:
    accelerate's launcher knows only 0 and 1, and would take any other code for a crash and restart
    the ranks. A stop that was asked for is 0 too where torchrun, or accelerate, was told to restart
    ranks that fail.
    """
    if not write_ending(reason, code, step):
        return FINISHED if code == STOPPED and _may_be_restarted() else code
    # On another machine a config may be bad that is good on the first one: its rank must not look
    # as if all were well. A stop is no failure there: it would keep the launcher of the first
    # machine waiting for 300 s.
    failed_alone = code not in (FINISHED, STOPPED) and not _is_main() and _is_first_of_node()
    return code if failed_alone else FINISHED


def _may_be_restarted() -> bool:
    """The agent of torchrun says so to its ranks: --max_restarts."""
    return os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"


def leave(code: int) -> NoReturn:
    """End this process; to be called when all is written."""
    # By os._exit: at commit 1294539 one of 17 launches of two or three ranks ended by SIGABRT while
    # the interpreter shut down, after all was saved. The cause is unknown; it was not seen again.
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _is_first_of_node() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"
