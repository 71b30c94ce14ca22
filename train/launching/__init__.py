"""What a launch and its ranks agree on. Imports nothing: ranks and launcher read it."""

MARK = "ISOBATCH_ATTEMPT"
"""In the environment of every process of one launch."""
ENDED = "ISOBATCH_ENDED"
"""The file into which the ranks write how they ended."""
LAUNCHER_PID = "ISOBATCH_LAUNCHER_PID"
"""Whom the ranks watch."""
STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP", "SIGQUIT")
LEAVE_SECONDS = 2.0
"""From the first Ctrl-C: a later one leaves at once. One that comes earlier is an impatient finger,
and a terminal or a shell that sends it twice: it must not lose the save.
"""
