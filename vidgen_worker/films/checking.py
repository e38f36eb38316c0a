"""The first attempt's look at a cut: what can't be made is refused before anything is paid.

Assets are brought and looked at, texts find their fonts, times their places. The clips do not exist
yet: only how long they will be is known.
"""

import asyncio
from collections.abc import Sequence
from uuid import UUID

from vidgen_worker.domain.faults import Fault, FaultName
from vidgen_worker.films import plan
from vidgen_worker.films.bringing import bring_assets
from vidgen_worker.films.cut import Cut
from vidgen_worker.films.fonts import shapes_letters
from vidgen_worker.films.studio import Studio


async def check(studio: Studio, owner: UUID, cut: Cut, lengths: Sequence[float | None]) -> None:
    """Check a cut whose parts' clips will be so many seconds long; None: that is not known.

    Raises CutError for what its owner is to change, and Fault for what the file store or this
    machine meets.
    """
    fonts = studio.fonts
    assert fonts is not None  # noqa: S101 - films are claimed where they are cut only
    if cut.has_texts and not await asyncio.to_thread(shapes_letters):
        # Before anything is paid: another machine may have what this one lacks.
        raise Fault(
            FaultName.SCRATCH_UNAVAILABLE,
            details="captions need FriBidi, which is missing here: apt-get install libfribidi0",
        )
    async with studio.folder() as folder:
        brought = await bring_assets(studio, folder, owner, cut)
    await asyncio.to_thread(plan.check, cut, lengths, brought.assets, fonts)
