"""How a process and what runs in it end. It never waits longer than it was told."""

import asyncio
from collections.abc import Set as AbstractSet
from typing import Any

from vidgen_worker.domain.clock import boot_time

CANCEL_AGAIN = 0.2
"""Seconds after which a cancellation that had no effect is repeated."""
LOOPS_END = 10.0
"""Seconds that loops get to end: psycopg waits for five more when the server is frozen."""
EXIT_OK, EXIT_FORCED = 0, 1


async def end_all(working: AbstractSet[asyncio.Future[Any]], seconds: float) -> None:
    """Cancel these until they have ended, or the time is over.

    Python 3.11's wait_for, which psycopg waits with, swallows a cancellation that meets the end of
    what it waits for (python/cpython issue 86296): then the task goes on as if not cancelled.
    """
    deadline = boot_time() + seconds
    while working and boot_time() < deadline:
        for task in working:
            task.cancel()
        ended, working = await asyncio.wait(working, timeout=CANCEL_AGAIN)
        for task in ended:
            if not task.cancelled():
                task.exception()  # its error was emitted as an event
