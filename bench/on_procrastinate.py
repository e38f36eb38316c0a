"""The stages by hand on Procrastinate: its own worker, its own enqueue call."""

import asyncio
import json
import os
import sys
import time

from procrastinate import App, PsycopgConnector  # type: ignore[import-not-found]

from bench.byhand import CONCURRENCY, ByHand, open_by_hand
from bench.lines import say

URL = os.environ["DATABASE_URL"]
app = App(connector=PsycopgConnector(conninfo=URL))
tools: list[ByHand] = []


@app.task(name="generate", queue="default")  # type: ignore[untyped-decorator]
async def generate(scene_id: str) -> None:
    """One job."""
    await tools[0].handle(scene_id)


async def work() -> None:
    """Run its worker until SIGTERM."""
    async with open_by_hand() as by_hand, app.open_async():
        tools.append(by_hand)
        running = asyncio.create_task(app.run_worker_async(concurrency=CONCURRENCY))
        await asyncio.sleep(1.0)
        say("ready")
        await running


async def enqueue() -> None:
    """Make its tables, then enqueue as asked."""
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        say("ready")
        while line := await asyncio.to_thread(sys.stdin.readline):
            ids = json.loads(line)["ids"]
            before = time.monotonic()
            if len(ids) == 1:
                await generate.defer_async(scene_id=ids[0])
            else:
                await generate.batch_defer_async(*({"scene_id": one} for one in ids))
            say("enqueued", before=before, ids=ids)


if __name__ == "__main__":
    asyncio.run({"work": work, "enqueue": enqueue}[sys.argv[1]]())
