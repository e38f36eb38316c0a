"""The history of generations: how long they take, over the whole fleet.

`submissions` writes it when a generation's end is booked; nothing here writes.
"""

import asyncio
import time
from collections.abc import Sequence

from vidgen_worker.domain.polling import KEPT, Ended
from vidgen_worker.queue.caller import Caller

FRESH_SECONDS = 60.0
"""The least time between two reads of the history; own ends are added at once."""


class Times:
    """The last ends of each kind of generation: of a model, and a clip's seconds (0: a still)."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._known: dict[tuple[str, int], tuple[Ended, ...]] = {}
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def read(self) -> None:
        """Read the history of all kinds, unless it was read a short time ago."""
        async with self._reading:
            if time.monotonic() < self._read_at + FRESH_SECONDS:
                return
            provider = self._caller.key.provider
            rows = await self._caller.run("generation_times", provider=provider)
            self._known = {
                (row["model"], row["seconds"]): tuple(
                    map(Ended, row["ended_after"], row["ended_by"])
                )
                for row in rows
            }
            self._read_at = time.monotonic()

    def of(self, model: str, seconds: int) -> Sequence[Ended]:
        """The last ends of a kind, newest first."""
        return self._known.get((model, seconds), ())

    def add(self, model: str, seconds: int, ended: Ended) -> None:
        """Add an end that this worker has just booked."""
        self._known[model, seconds] = (ended, *self.of(model, seconds))[:KEPT]
