"""The folder that a sandbox keeps: looked at before it is used, and locked while it is.

One sandbox at a time, and none among a person's own files. The lock is an open file: it ends with
the processes that have it open, however they end. It never looks into the cluster.
"""

import fcntl
import os
import time
from pathlib import Path
from typing import Self

OURS = {"project.json", "project.json.new", "postgres", "storage", "runway", "lock", "lost+found"}
LOCK = "lock"
PATIENCE_SECONDS = 30.0
POLL_SECONDS = 0.05


class FolderError(RuntimeError):
    """The folder can't be a sandbox's; the message says what to do."""


class HeldFolder:
    """A folder that no other sandbox uses until `release`, or the end of whoever inherits it."""

    def __init__(self, lock: int) -> None:
        self.lock = lock
        """A file descriptor: who has it open holds the folder."""

    @classmethod
    def take(cls, folder: Path) -> Self:
        """Make the folder if it is new, and lock it. Raises `FolderError` and OSError."""
        if folder.exists() and not folder.is_dir():
            raise FolderError(f"{folder} is a file: give a folder.")
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        found = {one.name for one in folder.iterdir()}
        if "project.json" not in found and (others := sorted(found - OURS)):
            raise FolderError(
                f"{folder} holds what is no sandbox's ({others[0]}): give an empty folder, or one "
                "that a sandbox has made."
            )
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _await(lock, folder)
        except BaseException:
            os.close(lock)
            raise
        os.truncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        return cls(lock)

    def release(self) -> None:
        """Let others have it, once nobody else has it open. Any number of calls is fine."""
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1


def _await(lock: int, folder: Path) -> None:
    """Take the lock; a sandbox that was killed has it until its PostgreSQL has ended."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 20, 0).decode("ascii", "replace")
            if _lives(holder) or time.monotonic() > deadline:
                raise FolderError(
                    f"{folder} is in use by another sandbox (process {holder or 'unknown'}): end "
                    "it, or give another folder."
                ) from None
            time.sleep(POLL_SECONDS)
        else:
            return


def _lives(process: str) -> bool:
    """Whether there is such a process; one that was just made may not have said its id yet."""
    if not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
