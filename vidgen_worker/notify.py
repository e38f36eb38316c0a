"""sd_notify: a datagram to systemd, where there is one.

https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html - no library needed for it,
and none is asked for.
"""

import os
import socket


def sd_notify(*lines: str) -> None:
    """Tell systemd; without NOTIFY_SOCKET this does nothing."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # the abstract namespace
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            notify.connect(address)
            notify.sendall("\n".join(lines).encode())
    except OSError:
        # systemd is restarting: the watchdog's next line says the same.
        return
