"""The rounds of a loop: an error ends the round, never the loop.

A loop that ends is a worker that hangs: its process lives, and nothing happens any more. So each
loop of a worker does a round within `guarded`.
"""

import asyncio
import contextlib
import random
import traceback
from collections.abc import AsyncIterator
from datetime import timedelta

from vidgen_worker.database.trouble import DatabaseUnavailableError, LockedError
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import LoopFailed
from vidgen_worker.worker.process import Process

SHORTEST_PAUSE = 0.05
"""Seconds after an error that nobody expected, also while the worker stops."""


@contextlib.asynccontextmanager
async def guarded(loop: str, process: Process) -> AsyncIterator[None]:
    """End a round at its error: report the error, and pause. Only CancelledError comes out."""
    try:
        yield
    except LockedError:
        # The statement has waited for the lock already; its holder keeps it only briefly.
        await process.sleep(timedelta(seconds=random.uniform(0.1, 0.3)))  # noqa: S311
    except DatabaseUnavailableError:
        # The database layer has reported it once per statement; the next round tries again.
        await process.sleep(timedelta(seconds=random.uniform(0.5, 1.5)))  # noqa: S311
    except Exception as error:  # noqa: BLE001 - a loop that dies is a worker that hangs
        emit(LoopFailed(
            loop=loop, error=f"{type(error).__name__}: {error}"[:500],
            traceback=traceback.format_exc(),
        ))  # fmt: skip
        await asyncio.sleep(SHORTEST_PAUSE)  # the other ends at once while the worker stops
        await process.sleep(timedelta(seconds=1))
