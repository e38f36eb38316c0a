"""A folder for downloads that goes away with its worker, even after kill -9.

Each folder holds a lock file, locked for as long as its process lives: the kernel lets go of it
however the process ends, so the next worker on the machine knows which folders are left over. A
pid would not do: containers share folders without sharing pids. What this machine lacks (the
folder, room in it, open files, memory) is a fault of its own here, never one of a task.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from vidgen_worker.domain.faults import Fault, FaultName

PREFIX = "vidgen-worker-"
LOCK = ".lock"
PROBE = "probe"
OUTPUT = "output"
SMALL = 2**20
"""Bytes of a file that is removed in a fraction of a millisecond; a large one takes a thread."""
NAME_BYTES = 16
"""Random bytes in a folder's name: no file can name another task's file."""
SHORT = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
        errno.EIO, errno.ESTALE, errno.EFBIG,
    }
)  # fmt: skip
"""Errors of an operation when the machine lacks something, whatever the operation."""


class Scratch:
    """Lends files, each in a folder of its own below one folder, which is made when needed.

    The folders are lent again and again: on a journalling file system a new one for each file
    costs more CPU than all that is written.
    """

    def __init__(self, parent: Path | None = None) -> None:
        self._parent = parent
        self._folder: Path | None = None
        self._tried: Path | None = parent
        self._lock: TextIO | None = None
        self._free: list[Path] = []

    @property
    def folder(self) -> Path | None:
        """The folder of the files; None before the first one is lent."""
        return self._folder

    def prepare(self) -> None:
        """Make the folder, and remove what dead workers left behind. Raises OSError."""
        self._made()

    def close(self) -> None:
        """Remove the folder and what is in it."""
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        self._let_go()

    def prove(self, room: int) -> None:
        """Prove that a file of so many bytes can be written here; it is gone afterwards.

        Raises Fault `scratch_unavailable`, which names the folder.
        """
        try:
            probe = self._made() / PROBE
            try:
                with probe.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, room)
            finally:
                probe.unlink(missing_ok=True)
        except OSError as error:
            where = self._folder or self._tried or "the folder for temporary files"
            raise scratch_fault(error, f"a file of {room} bytes in {where}") from error

    @contextlib.asynccontextmanager
    async def file(self) -> AsyncIterator[Path]:
        """Lend the path of a file that is not there yet; what is there at the end is removed.

        Raises Fault `scratch_unavailable`, also for what the work on the file meets of that kind.
        """
        try:
            own = self._own_folder()
        except OSError as error:
            where = self._folder or self._tried or "the folder for temporary files"
            raise scratch_fault(error, where) from error
        try:
            yield own / OUTPUT
        except OSError as error:
            if not _is_ours(error, own):
                raise
            raise scratch_fault(error, own) from error
        finally:
            await self._empty(own)

    def _own_folder(self) -> Path:
        """Take a free folder, or make one. Raises OSError."""
        folder = self._made()
        while self._free:
            own = self._free.pop()
            if own.is_dir():
                return own
        own = folder / secrets.token_hex(NAME_BYTES)
        own.mkdir(mode=0o700)
        return own

    def _made(self) -> Path:
        """Return the folder; make it, where there is none or it has vanished. Raises OSError."""
        folder = self._folder
        if folder is not None and self._lock is not None and _is_same(folder / LOCK, self._lock):
            return folder
        self._free.clear()
        self._let_go()
        if folder is None:
            parent = self._tried = self._parent or Path(tempfile.gettempdir())
            parent.mkdir(parents=True, exist_ok=True)
            sweep(parent)
            folder = self._folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        else:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = (folder / LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return folder

    async def _empty(self, own: Path) -> None:
        """Empty a folder for the next file; a folder that can't be emptied is not lent again."""
        try:
            written = list(own.iterdir())  # noqa: ASYNC240 - two names
            if any(_is_large(one) for one in written):
                await asyncio.to_thread(_remove, written)
            else:
                _remove(written)
        except OSError:
            # It vanished, or is not writable any more: the next file meets and reports the error.
            return
        self._free.append(own)

    def _let_go(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()


@dataclass(frozen=True, slots=True)
class Room:
    """The free room of a folder, in bytes and in files (None: not counted)."""

    folder: Path
    free_bytes: int
    free_files: int | None


def room() -> Room:
    """Write a byte where the worker would write, and look how much room is left. Raises OSError."""
    with tempfile.NamedTemporaryFile(prefix=PREFIX) as file:
        file.write(b"x")
        file.flush()
        found = os.statvfs(file.name)
        folder = Path(file.name).parent
    return Room(folder, found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None)


def scratch_fault(error: OSError, what: object) -> Fault:
    """Turn an error of this machine's folder, memory or open files into a fault."""
    details = (
        f"{what}: {error.strerror or error}. Make room there (df -h, df -i), "
        f"or set TMPDIR to a folder with room and restart the worker."
    )
    return Fault(FaultName.SCRATCH_UNAVAILABLE, details=details)


def _is_ours(error: OSError, own: Path) -> bool:
    """Whether an error is about the lent folder or this machine, not about a connection."""
    named = error.filename is not None and str(error.filename).startswith(str(own))
    return named or error.errno in SHORT


def _is_same(path: Path, lock: TextIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(lock.fileno()))
    except OSError:
        return False


def _remove(files: Sequence[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _is_large(file: Path) -> bool:
    try:
        return file.stat().st_size > SMALL
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def scratch() -> Iterator[Scratch]:
    """Lend files as long as this lasts; remove what dead workers left behind.

    A machine without room for a folder may have it later: the first file tries again.
    """
    scratch = Scratch()
    with contextlib.suppress(OSError):
        scratch.prepare()
    try:
        yield scratch
    finally:
        scratch.close()


def sweep(parent: Path) -> list[Path]:
    """Remove the folders below `parent` that are ours and that no living process holds."""
    removed = []
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # somebody else's, or removed by somebody else just now
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder)
    return removed


def discard(half_written: Path) -> None:
    """Remove a file that is of no use."""
    with contextlib.suppress(OSError):  # the next file reports a folder that is gone or read-only
        half_written.unlink(missing_ok=True)
