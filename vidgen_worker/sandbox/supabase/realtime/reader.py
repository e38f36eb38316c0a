"""The one reader of the logical slot: it runs while somebody listens, and hands out all changes.

The slot is a temporary one: it begins with the first listener and ends with the last, or with the
database; what happens in between is never sent. It never speaks to a client.

PostgreSQL drops a session's temporary slots at any ERROR of that session. A subscriber's filter and
an application's policy can raise one, so they are asked in a second session.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any
from uuid import uuid4

import psycopg
from psycopg.rows import dict_row

from vidgen_worker.sandbox.supabase.realtime.pgoutput import Change, changes

Connection = psycopg.AsyncConnection[dict[str, Any]]
Deliver = Callable[[Connection, Sequence[Change]], Awaitable[None]]
Fail = Callable[[psycopg.Error], Awaitable[None]]

POLL_SECONDS = 0.05
"""Between two looks at the slot; Realtime's own default is 0.1."""
PUBLICATION = "supabase_realtime"


@contextlib.asynccontextmanager
async def opened(admin_url: str) -> AsyncIterator[Connection]:
    """Open a connection in autocommit. It is closed even where the task is cancelled twice."""
    connection = await psycopg.AsyncConnection.connect(
        admin_url, autocommit=True, row_factory=dict_row
    )
    try:
        yield connection
    finally:
        await connection.close()


class SlotReader:
    """Reads while it is started. `deliver` gets changes, `fail` the end of the database."""

    def __init__(self, admin_url: str, deliver: Deliver, fail: Fail) -> None:
        self._admin_url = admin_url
        self._deliver = deliver
        self._fail = fail
        self._task: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None

    async def started(self) -> None:
        """Return once changes flow. Raises `psycopg.Error`."""
        if self._ready is None or (
            self._ready.done() and (self._task is None or self._task.done())
        ):
            self._ready = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._run(self._ready))
        await asyncio.shield(self._ready)

    async def stop(self) -> None:
        """End the slot."""
        task, self._task, self._ready = self._task, None, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self, ready: asyncio.Future[None]) -> None:
        try:
            async with opened(self._admin_url) as slot, opened(self._admin_url) as rows:
                await self._read(slot, rows, ready)
        except psycopg.Error as error:
            if ready.done():
                await self._fail(error)
            else:
                ready.set_exception(error)

    async def _read(self, slot: Connection, rows: Connection, ready: asyncio.Future[None]) -> None:
        name = f"realtime_{uuid4().hex[:12]}"
        await slot.execute(
            "select pg_create_logical_replication_slot(%s, 'pgoutput', true)", [name]
        )
        ready.set_result(None)
        while True:
            cursor = await slot.execute(
                "select data from pg_logical_slot_get_binary_changes("
                "%s, null, null, 'proto_version', '1', 'publication_names', %s)",
                [name, PUBLICATION],
            )
            messages: Sequence[bytes] = [bytes(row["data"]) for row in await cursor.fetchall()]
            await self._deliver(rows, list(changes(messages)))
            if not messages:
                await asyncio.sleep(POLL_SECONDS)
