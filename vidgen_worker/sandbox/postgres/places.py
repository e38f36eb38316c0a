"""Free ports, and where temporary folders may be made.

It makes nothing: who makes a folder can delete it.
"""

import os
import secrets
import shutil
import signal
import socket
import tempfile
from pathlib import Path

# Creating a database means creating 300 files: 0.3 s on a disk, 0.03 s in memory.
MEMORY = Path("/dev/shm")  # noqa: S108 - a folder with an unguessable name is made in it
ENOUGH_MEMORY_BYTES = 4 * 1024**3


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def scratch_path(name: str, *, in_memory: bool = False) -> Path:
    """Return where a temporary folder may be made; in memory, if asked and if there is room.

    The caller makes it, where it can delete it: an interrupt between the two leaves nothing.
    """
    # The first look for the place writes a file there, which an interrupt would leave behind.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        place = Path(tempfile.gettempdir())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    is_roomy = os.access(MEMORY, os.W_OK) and (
        shutil.disk_usage(MEMORY).free >= ENOUGH_MEMORY_BYTES
    )
    return (MEMORY if in_memory and is_roomy else place) / f"{name}-{secrets.token_hex(6)}"
