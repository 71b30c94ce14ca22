"""A stop that was asked for: a signal sets a flag, which the ranks agree on at the next step's boundary."""

import signal
from types import FrameType


class Stop:
    """SIGTERM, SIGINT and SIGUSR1 ask for a stop; a second SIGINT (Ctrl-C) leaves at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._on_signal)

    def requested(self) -> bool:
        return self.signal is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again = self.signal is not None
        self.signal = signal.Signals(number)
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
