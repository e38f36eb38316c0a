"""Ctrl-C and SIGTERM for verbs that own other processes: they end the verb, never its clean-up.

The first signal raises KeyboardInterrupt; those after it are ignored, so that nothing interrupts
the clean-up. Inside `hold` the first one waits for the block's end, and a second one does not.
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Handles the signals of this process while its context is open."""

    def __init__(self) -> None:
        self._holding = False
        self._waiting = False
        self._raised = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() gave us

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Delay a first signal, so that what the block starts is known before it is stopped."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._waiting and not self._raised:
            self._raise()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self._raised:
            return
        if self._holding and not self._waiting:
            self._waiting = True
            return
        self._raise()

    def _raise(self) -> None:
        self._raised = True
        raise KeyboardInterrupt
