"""The stages by hand on Chancy: its asyncio executor, with eager polling."""

import asyncio
import json
import os
import sys
import time

from chancy import Chancy, Queue, Worker, job  # type: ignore[import-not-found]

from bench.byhand import CONCURRENCY, ByHand, open_by_hand
from bench.lines import say

URL = os.environ["DATABASE_URL"]
QUEUE = Queue(
    "default", concurrency=CONCURRENCY, eager_polling=True, polling_interval=1,
    executor="chancy.executors.asyncex.AsyncExecutor",
)  # fmt: skip
tools: list[ByHand] = []


@job(queue="default")  # type: ignore[untyped-decorator]
async def generate(*, scene_id: str) -> None:
    """One job."""
    await tools[0].handle(scene_id)


async def work() -> None:
    """Run its worker until SIGTERM."""
    async with open_by_hand() as by_hand, Chancy(URL) as chancy:
        tools.append(by_hand)
        async with Worker(chancy) as worker:
            await asyncio.sleep(3.0)
            say("ready")
            await worker.wait_for_shutdown()


async def enqueue() -> None:
    """Make its tables, then enqueue as asked."""
    async with Chancy(URL) as chancy:
        await chancy.migrate()
        await chancy.declare(QUEUE, upsert=True)
        say("ready")
        while line := await asyncio.to_thread(sys.stdin.readline):
            ids = json.loads(line)["ids"]
            before = time.monotonic()
            jobs = [generate.job.with_kwargs(scene_id=one) for one in ids]
            if len(jobs) == 1:
                await chancy.push(jobs[0])
            else:
                async for _ in chancy.push_many(jobs):
                    pass
            say("enqueued", before=before, ids=ids)
