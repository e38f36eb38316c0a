"""A folder for downloads that goes away with its worker, even after kill -9.

Each folder holds a lock file, locked for as long as its process lives: the kernel lets go of it
however the process ends, so the next worker on the machine knows which folders are left over. A
pid would not do: containers share folders without sharing pids.
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

from vidgen_worker.errors import Fault

PREFIX = "vidgen-worker-"
LOCK = ".lock"
PROBE = "probe"
SMALL = 2**20
"""Bytes of a file that is removed in a fraction of a millisecond; a large one takes a thread."""


class Scratch:
    """Lends files of one folder.

    In the folder itself and under a few names, again and again: on a journalling file system a new
    folder for each costs more CPU, and a truncated file more time, than all that is written.
    `beside` are the endings of what others may write beside a lent file.
    """

    def __init__(self, folder: Path, beside: Sequence[str] = ()) -> None:
        self._folder = folder
        self._endings = ("", *beside)
        self._free: list[Path] = []
        self._made = 0

    def prove(self, room: int) -> None:
        """Prove that a file of so many bytes can be written here; it is gone afterwards.

        Raises Fault `scratch_unavailable`, which names the folder.
        """
        probe = self._folder / PROBE
        try:
            with probe.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, room)
        except OSError as error:
            details = f"a file of {room} bytes can't be written to {self._folder}: {error}"
            raise Fault("scratch_unavailable", details=details) from error
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)

    @contextlib.asynccontextmanager
    async def file(self) -> AsyncIterator[Path]:
        """Lend the path of a file that is not there yet; what is there at the end is removed."""
        if self._free:
            path = self._free.pop()
        else:
            self._made += 1
            path = self._folder / str(self._made)
        try:
            yield path
        finally:
            written = [Path(f"{path}{ending}") for ending in self._endings]
            if any(_is_large(one) for one in written):
                await asyncio.to_thread(_remove, written)
            else:
                _remove(written)
            self._free.append(path)


def _remove(files: Sequence[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _is_large(file: Path) -> bool:
    try:
        return file.stat().st_size > SMALL
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a folder of one's own, removed at the end; remove what dead workers left behind."""
    sweep(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


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
