"""Messages to systemd, over its datagram socket.

https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html - a datagram, for which no
library is needed. It never blocks.
"""

import os
import socket
from datetime import timedelta


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
        # systemd is restarting or busy: the next line of the watchdog repeats it.
        return False
    return True
