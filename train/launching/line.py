"""A connection between two launches: JSON messages, one a line, over TCP, open until one ends."""

import json
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

SILENT_SECONDS = 60
"""Without an answer to the kernel's keep-alive probes, the other end counts as lost."""
IDLE_SECONDS = 20
BETWEEN_SECONDS = 10
LONGEST_MESSAGE = 4_096

GO = {"go": True}
BYE = {"bye": True}


class Line:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        # Nothing is sent between the first message and the last. Without probes by the kernel, a
        # machine that lost its power would never be missed.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        probes = {
            "TCP_KEEPIDLE": IDLE_SECONDS,
            "TCP_KEEPINTVL": BETWEEN_SECONDS,
            "TCP_KEEPCNT": (SILENT_SECONDS - IDLE_SECONDS) // BETWEEN_SECONDS,
        }
        # Not every system has all of them.
        for name, value in probes.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    @property
    def own_address(self) -> str:
        """The address by which the other end reaches this machine."""
        return str(self._connection.getsockname()[0]).removeprefix("::ffff:")

    def send(self, message: Mapping[str, Any]) -> None:
        with suppress(OSError):  # the other end is gone, which is noticed where it is read
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float) -> dict[str, Any] | None:
        """One message; None where none comes in time, the other end is gone, or it is no JSON."""
        with suppress(OSError, ValueError):
            self._connection.settimeout(seconds)
            message = json.loads(self._read())
            return message if isinstance(message, dict) else None
        return None

    def loss(self) -> str:
        """Waits until the other end closes: why it was lost, or empty where it sent BYE."""
        try:
            # Waits for days: the run lasts as long as the connection.
            self._connection.settimeout(None)
            if self._read() == json.dumps(BYE).encode() + b"\n":
                return ""
        except TimeoutError:
            return f"it is down or cut off: no answer for {SILENT_SECONDS} s"
        except OSError:  # reset, or closed on this side
            pass
        return "its launch was killed, or the machine restarted"

    def close(self) -> None:
        with suppress(OSError):  # wakes a thread that reads; close alone does not
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _read(self) -> bytes:
        text = b""
        # Byte by byte, so that nothing of a next message is taken; and with a limit, since a
        # stranger may send anything.
        while not text.endswith(b"\n") and len(text) < LONGEST_MESSAGE:
            byte = self._connection.recv(1)
            if not byte:
                break
            text += byte
        return text
