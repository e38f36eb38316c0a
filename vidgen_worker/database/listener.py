"""LISTEN on a connection of its own, verified by a NOTIFY of its own at intervals.

The caller decides what a notification means.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg

from vidgen_worker.database import sessions
from vidgen_worker.database.outage import Outage
from vidgen_worker.database.pool import CONNECTION, LOCK_TIMEOUT
from vidgen_worker.database.trouble import Trouble, one_line, trouble_of
from vidgen_worker.domain.clock import boot_time
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import ListenChanged

CHANNEL = "vidgen_tasks"


class _NothingHeardError(Exception):
    """LISTEN was accepted, but notifications do not arrive."""


class Listener:
    """A connection with LISTEN that verifies itself, and reconnects.

    A transaction pooler accepts LISTEN, but never delivers a notification. So a NOTIFY round trip
    at intervals decides whether LISTEN works.
    """

    def __init__(
        self,
        url: str,
        wake: Callable[[str], Awaitable[None] | None],
        outage: Outage,
        *,
        prove_every: timedelta = timedelta(seconds=30),
        patience: timedelta = timedelta(seconds=5),
    ) -> None:
        self._url = url
        self._wake = wake
        self._outage = outage
        self._prove_every = prove_every.total_seconds()
        self._patience = patience.total_seconds()
        self.listening = False
        self._said: bool | None = None
        self.proved = asyncio.Event()

    async def run(self, worker_id: UUID) -> None:
        """Listen until cancelled; after an error reconnect, with a growing pause."""
        failures = 0
        while True:
            begun = boot_time()
            try:
                await self._listen(f"vidgen_{worker_id.hex}")
            except _NothingHeardError as error:
                failures = 1 if self.listening else failures + 1
                self.listening = False
                self._say(listening=False, why=str(error))
            except Exception as error:  # noqa: BLE001 - whatever it is, it heals or is said again
                failures = 1 if self.listening else failures + 1
                self.listening = False
                if trouble_of(error) is Trouble.AWAY:
                    # An outage says nothing about LISTEN, and has its own log line.
                    self._outage.met(error, begun=begun)
                else:
                    self._say(listening=False, why=one_line(error))
            self.proved.set()
            await asyncio.sleep(min(2.0 ** min(failures, 6), 60.0) * random.uniform(0.5, 1.0))  # noqa: S311

    async def _listen(self, own_channel: str) -> None:
        async with await self._connect() as conn:
            await conn.execute(psycopg.sql.SQL("listen {}").format(psycopg.sql.Identifier(CHANNEL)))
            await conn.execute(
                psycopg.sql.SQL("listen {}").format(psycopg.sql.Identifier(own_channel))
            )
            while True:
                async with asyncio.timeout(self._patience + 5):
                    await self._notify(own_channel)
                if not await self._hear(conn, own_channel, self._patience):
                    msg = "a NOTIFY of our own did not arrive (a transaction pooler in between?)"
                    raise _NothingHeardError(msg)
                self.listening = True
                self._say(listening=True, why="a NOTIFY of our own arrived")
                self.proved.set()
                await self._hear(conn, None, self._prove_every)

    async def _notify(self, own_channel: str) -> None:
        """Send the proof from another connection.

        The listening connection itself would prove nothing: a transaction pooler may run the NOTIFY
        on the server connection that listens, which then returns it with the answer.
        """
        async with await self._connect() as other:
            await other.execute("select pg_notify(%s, 'proof')", (own_channel,))

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        """Connect, and pin the session where it is ours."""
        conn = await psycopg.AsyncConnection.connect(
            self._url, autocommit=True, prepare_threshold=None, **CONNECTION
        )
        try:
            if await sessions.is_ours_alone(conn):
                await sessions.pin(conn, lock_timeout=LOCK_TIMEOUT)
        except BaseException:
            await conn.close()
            raise
        return conn

    async def _hear(
        self, conn: psycopg.AsyncConnection[Any], until: str | None, seconds: float
    ) -> bool:
        """Pass notifications on for `seconds`; True as soon as one on the channel `until` came."""
        async for notify in conn.notifies(timeout=seconds):
            if notify.channel == CHANNEL:
                result = self._wake(notify.payload)
                if result is not None:
                    await result
            elif notify.channel == until:
                return True
        return False

    def _say(self, *, listening: bool, why: str) -> None:
        """Report a change of LISTEN; an outage in between is no change."""
        if listening is not self._said:
            emit(ListenChanged(listening=listening, why=why))
        self._said = listening
