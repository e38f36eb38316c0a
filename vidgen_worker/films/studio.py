"""What an attempt at a film works with, and where films are cut: this machine's fonts and folder.

An attempt moves one file at a time and runs one child at a time: so many of both at once as there
are render places, beside any number of downloads and uploads of the paid lane.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vidgen_worker.domain.faults import Fault, FaultName
from vidgen_worker.films.rendering import Failed, look
from vidgen_worker.films.source import Source
from vidgen_worker.media.scratch import Scratch
from vidgen_worker.queue.checkpoints import Reported
from vidgen_worker.queue.films import Films
from vidgen_worker.storage.storage import Storage

if TYPE_CHECKING:
    from vidgen_worker.films.fonts import Fonts


@dataclass(frozen=True, slots=True)
class Studio:
    """The tools of an attempt at a film. `bucket` is where its outputs go.

    `fonts` is None where no film is cut.
    """

    films: Films
    storage: Storage
    bucket: str
    scratch: Scratch
    report: Callable[[Reported], None]
    fonts: "Fonts | None"

    @asynccontextmanager
    async def folder(self) -> AsyncIterator[Path]:
        """Lend an empty folder. Raises Fault `scratch_unavailable`."""
        async with self.scratch.file() as file:
            yield file.parent.absolute()


async def looked_at(folder: Path, file: str, unusable: Callable[[str], Exception]) -> Source:
    """Look at a file in a process of its own.

    Raises what `unusable` makes of a reason, or Fault `scratch_unavailable`.
    """
    found = await look(folder, file)
    if isinstance(found, Source):
        return found
    raise machine_fault(found) if found.by_machine else unusable(found.details)


def machine_fault(failed: Failed) -> Fault:
    """Return the fault of this machine that a child has met."""
    return Fault(FaultName.SCRATCH_UNAVAILABLE, details=failed.details)
