"""The stages by hand on PgQueuer: asyncpg's pool and uvloop, as its documentation has it."""

import asyncio
import json
import os
import signal
import sys
import time

import asyncpg  # type: ignore[import-not-found]
import uvloop  # type: ignore[import-not-found]
from pgqueuer import PgQueuer  # type: ignore[import-not-found]
from pgqueuer.db import AsyncpgDriver, AsyncpgPoolDriver  # type: ignore[import-not-found]
from pgqueuer.models import Job  # type: ignore[import-not-found]
from pgqueuer.queries import Queries  # type: ignore[import-not-found]

from bench.byhand import CONCURRENCY, open_by_hand
from bench.lines import say

URL = os.environ["DATABASE_URL"]


async def work() -> None:
    """Run its worker until SIGTERM."""
    async with open_by_hand() as by_hand, asyncpg.create_pool(URL, min_size=2) as pool:
        pgq = PgQueuer(AsyncpgPoolDriver(pool))

        @pgq.entrypoint("generate")  # type: ignore[untyped-decorator]
        async def generate(job: Job) -> None:
            await by_hand.handle(job.payload.decode())

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, pgq.shutdown.set)
        # It never has more than twice its batch at once.
        running = asyncio.create_task(
            pgq.run(batch_size=max(CONCURRENCY // 2, 1), max_concurrent_tasks=CONCURRENCY)
        )
        await asyncio.sleep(1.0)
        say("ready")
        await running


async def enqueue() -> None:
    """Make its tables, then enqueue as asked."""
    connection = await asyncpg.connect(URL)
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    say("ready")
    while line := await asyncio.to_thread(sys.stdin.readline):
        ids = json.loads(line)["ids"]
        before = time.monotonic()
        await queries.enqueue(["generate"] * len(ids), [i.encode() for i in ids], [0] * len(ids))
        say("enqueued", before=before, ids=ids)
    await connection.close()


if __name__ == "__main__":
    uvloop.run({"work": work, "enqueue": enqueue}[sys.argv[1]]())
