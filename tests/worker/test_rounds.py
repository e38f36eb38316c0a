"""An error ends the round of a loop, never the loop: the next round finds the database mended."""

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.world import World
from vidgen_worker.telemetry.bus import Event, subscribed
from vidgen_worker.telemetry.events import LoopFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPS = {"claim", "heartbeat", "janitor gates"}
"""One of each module whose statements come every second; all duties of the janitor share a loop."""
PATIENCE = 60


@contextmanager
def failing(loops: set[str]) -> "Iterator[asyncio.Event]":
    """Set an asyncio.Event when an error was reported for each of these loops."""
    failed: set[str] = set()
    all_failed = asyncio.Event()

    def hear(event: Event) -> None:
        if isinstance(event, LoopFailed):
            failed.add(event.loop)
            if failed >= loops:
                all_failed.set()

    with subscribed(hear):
        yield all_failed


async def test_an_error_that_nobody_expected_ends_no_loop(world: World) -> None:
    user = world.user()
    async with world.worker(VIDGEN_QUEUE_POLL="100ms", VIDGEN_GATE_PROBE="100ms"):
        assert (await world.until(world.order(user, world.scene(user))))["status"] == "completed"
        with failing(LOOPS) as all_failed:
            world.sql("alter schema vidgen rename to elsewhere")
            await asyncio.wait_for(all_failed.wait(), PATIENCE)
        world.sql("alter schema elsewhere rename to vidgen")
        assert (await world.until(world.order(user, world.scene(user))))["status"] == "completed"
