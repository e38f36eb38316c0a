"""What systemd is told, and whether the loops turn: what its watchdog, and /healthz, ask for.

https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html - a datagram, for which no
library is needed. A loop says how long its turn may take at the most; none of them counts while it
waits for Postgres without an end, because a database that is away is no reason to be killed.
"""

import os
import socket
from datetime import timedelta

from vidgen_worker.worker.lease import boot_time

SLACK = timedelta(seconds=10)
"""What a turn may take beyond its time-outs, on a machine that is busy."""


class Turns:
    """By when each loop has to have turned again."""

    def __init__(self) -> None:
        self._due: dict[object, float] = {}

    def turned(self, loop: object, longest: timedelta) -> None:
        """Note a turn; the next one comes within `longest` and the slack, or the loop is stuck."""
        self._due[loop] = boot_time() + (longest + SLACK).total_seconds()

    def rests(self, loop: object) -> None:
        """Expect nothing of this loop until it turns again."""
        self._due.pop(loop, None)

    def all_rest(self) -> None:
        """Expect nothing of any loop until it turns again."""
        self._due.clear()

    def stuck(self) -> list[object]:
        """Return the loops that should have turned by now."""
        now = boot_time()
        return [loop for loop, due in tuple(self._due.items()) if due < now]


def watchdog_pace() -> timedelta | None:
    """How often systemd wants to hear WATCHDOG=1 (a third of its limit); None if it doesn't."""
    limit = os.environ.get("WATCHDOG_USEC", "")
    for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return timedelta(microseconds=int(limit)) / 3 if limit.isdecimal() and for_us else None


def sd_notify(*lines: str) -> bool:
    """Tell systemd and return whether it was told; without NOTIFY_SOCKET there is nobody to tell.

    It never blocks: a systemd that does not read must not stop the event loop.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return True
    if address.startswith("@"):
        address = "\0" + address[1:]  # the abstract namespace
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            notify.settimeout(0)
            notify.connect(address)
            notify.sendall("\n".join(lines).encode())
    except OSError:
        # systemd is restarting, or busy: the watchdog's next line says the same.
        return False
    return True
