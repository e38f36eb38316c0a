"""Waiting for a condition in the database: every change of a watched table is a NOTIFY.

It waits for what happens, never for time to pass. It changes no row.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg import sql

from tests.support.world import PATIENCE, World, posts
from vidgen_worker.telemetry import bus

TABLES = (
    "public.video_generation_tasks", "vidgen.workers", "vidgen.checkpoints", "vidgen.submissions",
    "vidgen.budgets", "vidgen.gates", "vidgen.limits",
)  # fmt: skip

_TELL = """
create or replace function public.tell_of_anything() returns trigger language plpgsql as $$
begin
  perform pg_notify('test_anything', '');
  return null;
end $$
"""


def watch(world: World) -> None:
    """Let every statement that changes one of our tables be heard."""
    with world.admin() as conn:
        conn.execute(_TELL)
        for table in TABLES:
            conn.execute(
                sql.SQL(
                    "create or replace trigger tell_of_anything after insert or update or delete "
                    "on {} for each statement execute function public.tell_of_anything()"
                ).format(sql.Identifier(*table.split(".")))
            )


async def until_true(
    world: World, condition: LiteralString, *parameters: object, patience: float = PATIENCE
) -> None:
    """Wait until a SELECT of one boolean says true. Raises TimeoutError after `patience` s."""
    async with await psycopg.AsyncConnection.connect(
        world.database.admin_url, autocommit=True
    ) as conn:
        await conn.execute("listen test_anything")
        async with asyncio.timeout(patience):
            while True:
                cursor = await conn.execute(condition, parameters)
                found = await cursor.fetchone()
                if found is not None and found[0]:
                    return
                async for _ in conn.notifies(timeout=patience, stop_after=1):
                    pass


LOOK_AGAIN = 0.1
"""Seconds between two looks at what a double knows."""


async def until(world: World, happened: Callable[[], bool]) -> None:
    """Wait until it has happened.

    Looked at whenever a worker says something or writes a row, and at intervals: the doubles know
    of a request before anybody says so.
    """
    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    async def listen() -> None:
        async with await psycopg.AsyncConnection.connect(
            world.database.admin_url, autocommit=True
        ) as conn:
            await conn.execute("listen test_rows")
            await conn.execute("listen test_beats")
            async for _ in conn.notifies():
                changed.set()

    def hear(_: bus.Event) -> None:
        loop.call_soon_threadsafe(changed.set)

    listening = asyncio.create_task(listen())
    try:
        with bus.subscribed(hear):
            async with asyncio.timeout(PATIENCE / 3):
                while not await asyncio.to_thread(happened):
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_AGAIN):
                            await changed.wait()
                    changed.clear()
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


ENDED = "select not exists (select from video_generation_tasks where completed_at is null)"


async def stopped(pid: int) -> None:
    """Wait until a process has fallen asleep by SIGSTOP."""
    stat = Path(f"/proc/{pid}/stat")
    async with asyncio.timeout(PATIENCE):
        while stat.read_text().rpartition(")")[2].split()[0] != "T":  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.01)  # a bounded wait for another process


async def frozen(world: World, pid: int, seconds: float) -> None:
    """Freeze it once the provider has the POST, for so long."""
    await until(world, lambda: posts(world)[0] == 1)
    os.kill(pid, signal.SIGSTOP)
    await stopped(pid)
    end = time.monotonic() + seconds
    while time.monotonic() < end:  # noqa: ASYNC110 - the time is what is tested
        await asyncio.sleep(0.05)
