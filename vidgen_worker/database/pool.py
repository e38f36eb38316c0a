"""The connections to PostgreSQL: the pools, and the one way to run a named query.

Every statement is a named block of a .sql file, runs in autocommit and may be sent twice, so that a
transient error is answered by a second try. No transaction stays open while we wait for something
else, and everything works behind a transaction pooler. Nothing here decides what a row means.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Any, LiteralString

import psycopg
from psycopg import errors
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from vidgen_worker.database import sessions
from vidgen_worker.database.database_url import DatabaseUrl
from vidgen_worker.database.outage import Outage
from vidgen_worker.database.postgres_text import STORABLE
from vidgen_worker.database.statements import Block, load_queries
from vidgen_worker.database.trouble import (
    DatabaseUnavailableError,
    LockedError,
    StatementStuckError,
    Trouble,
    one_line,
    trouble_of,
)
from vidgen_worker.domain.clock import boot_time
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import DatabaseTrouble

Row = dict[str, Any]
STATEMENT_DEADLINE = timedelta(seconds=15)
"""The longest time of one try of a statement."""
LOCK_TIMEOUT = timedelta(milliseconds=200)
"""The longest wait of one statement for a lock: it occupies a connection meanwhile."""
LOCK_PATIENCE = timedelta(seconds=3)
"""The longest wait for locks of a statement about one task, over all its tries."""
STUCK_TRIES = 30
"""The most tries of a statement while the database answers others: some minutes."""
UNKNOWN_TRIES = 6
"""The most tries after an unknown error, where a statement records money."""

CONNECTION: Mapping[str, Any] = MappingProxyType(
    {**sessions.AT_CONNECT, "application_name": "vidgen-worker"}
)

PLANNED_ONCE: LiteralString = (
    "select set_config('plan_cache_mode', 'force_generic_plan', false),"
    " set_config('random_page_cost', '1.1', false), set_config('enable_seqscan', 'off', false)"
)
"""A connection plans each statement once: planning takes longer than most statements. A plan may be
made while a table has few rows: a sequential scan then looks cheaper than the index, which is wrong
an hour later. So a table is read by an index wherever it has one; functions keep their plans too.
Waiting rows are in memory; Supabase sets a random_page_cost of 1.1 as well.
"""


QUERIES = load_queries("queue", "admission")


_BLOCKS = {name: Block.read(text) for name, text in QUERIES.items()}


class Rows(list[Row]):
    """The rows of a statement. `sent` is the time when it went to the server, in `boot_time`.

    The wait for a connection comes before `sent`: it must not count where the database's clock and
    ours are compared.
    """

    sent: float = 0.0


class _Connection(psycopg.AsyncConnection[Any]):
    """A connection that reports its failure to the outage: the pool would only log it."""

    proved: float = 0.0
    """When it began to be made, or answered last."""

    @classmethod
    async def connect(  # type: ignore[override]
        cls,
        conninfo: str = "",
        *,
        outage: Outage,
        **options: Any,  # noqa: ANN401 - as libpq
    ) -> "_Connection":
        begun = boot_time()
        try:
            made = await super().connect(conninfo, **options)
        except (psycopg.Error, OSError) as error:
            outage.met(error, begun=begun)
            raise
        made.proved = begun
        return made


class Database:
    """A pool of autocommit connections, and the one way to run a named query."""

    def __init__(
        self,
        url: str,
        *,
        size: int = 6,
        deadline: timedelta = STATEMENT_DEADLINE,
        outage: Outage | None = None,
        lock_timeout: timedelta = LOCK_TIMEOUT,
    ) -> None:
        self._url = url
        self._deadline = deadline.total_seconds()
        self._lock_timeout = lock_timeout
        self.outage = outage or Outage(url)
        # Behind a transaction pooler no statement is prepared, and no session is configured.
        self._prepare = not DatabaseUrl.read(url).pooled_by_transaction
        self._pool = AsyncConnectionPool(
            url,
            connection_class=_Connection,
            min_size=1,
            max_size=size,
            open=False,
            timeout=self._deadline,
            reconnect_timeout=30.0,
            configure=self._configure,
            kwargs={
                **CONNECTION,
                "outage": self.outage,
                "autocommit": True,
                "context": STORABLE,
                "row_factory": dict_row,
                "cursor_factory": psycopg.AsyncRawCursor,
            },
        )

    async def open(self) -> None:
        """Open the pool; connections are made in the background."""
        # A line for every try would fill the log in an outage; `Outage` writes one.
        logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.close(timeout=2.0)

    async def _configure(self, conn: _Connection) -> None:
        try:
            await self._set_up(conn)
        except Exception as error:
            self.outage.met(error, begun=conn.proved)
            raise

    async def _set_up(self, conn: psycopg.AsyncConnection[Any]) -> None:
        # The port is no proof. Names of prepared statements are the same in every client: one of
        # another client would be executed, without any error.
        if not await sessions.is_ours_alone(conn):
            self._prepare = False
        # Behind a transaction pooler None, never 0: 0 prepares at once, and the statement then
        # lives on another client's connection, as a SET would.
        if not self._prepare:
            conn.prepare_threshold = None
            return
        await sessions.pin(conn, lock_timeout=self._lock_timeout)
        conn.prepare_threshold = 0
        await conn.execute(PLANNED_ONCE)

    async def once(self, name: str, **parameters: object) -> Rows:
        """Run a named query once, under a deadline that the driver can't swallow.

        Raises DatabaseUnavailableError for a transient error (the statement may or may not have
        been carried out), LockedError where it met a lock, and psycopg.Error for all else.
        """
        return await self._send((name,), parameters)

    async def pair(self, first: str, second: str, **parameters: object) -> Rows:
        """Run two named queries once, and return the rows of the second, which sees the first's.

        In one transaction, and where the driver can pipeline in one round trip and one flush of
        the log. Raises as `once` does.
        """
        return await self._send((first, second), parameters)

    async def _send(self, names: tuple[str, ...], parameters: Mapping[str, object]) -> Rows:
        sent, begun = None, 0.0
        try:
            async with asyncio.timeout(self._deadline):
                conn = await self._pool.getconn()
                sent, begun = boot_time(), conn.proved
                try:
                    rows = await self._answer(conn, names, parameters)
                finally:
                    # A transaction that broke in the middle is rolled back by the pool.
                    await self._pool.putconn(conn)
        except Exception as error:
            trouble = trouble_of(error)
            if sent is not None:
                # Without a connection nothing new is known: connecting reports its own trouble.
                if trouble is Trouble.AWAY:
                    self.outage.met(error, begun=begun)
                elif isinstance(error, psycopg.Error) and error.sqlstate is not None:
                    self.outage.answered(sent, well=False)
                    conn.proved = boot_time()
            if trouble is Trouble.UNKNOWN:
                raise
            if isinstance(
                error,
                errors.DuplicatePreparedStatement
                | errors.InvalidSqlStatementName
                | errors.ProtocolViolation,
            ):
                self._prepare = False
                await self._pool.drain()
            locked = isinstance(error, errors.LockNotAvailable)
            kind = LockedError if locked else DatabaseUnavailableError
            told = sent is not None and trouble is Trouble.AWAY and self.outage.told(begun)
            raise kind(f"{names[-1]}: {one_line(error)}", trouble, told=told) from error
        self.outage.answered(sent)
        # What it meets from now on is no part of an outage that is over.
        conn.proved = boot_time()
        rows.sent = sent
        return rows

    async def _answer(
        self,
        conn: psycopg.AsyncConnection[Row],
        names: tuple[str, ...],
        parameters: Mapping[str, object],
    ) -> Rows:
        """Send the blocks, and return the rows of the last."""
        blocks = [_BLOCKS[name] for name in names]
        told = self._prepare and conn.prepare_threshold is not None
        if told and len(blocks) == 1:
            cursor = await conn.execute(blocks[0].text, blocks[0].values(parameters))
            return Rows(await cursor.fetchall() if cursor.description else [])
        piped = psycopg.AsyncPipeline.is_supported()
        whole = not told or not piped
        async with conn.pipeline() if piped else contextlib.nullcontext() as pipe:
            if whole:
                await conn.execute(sessions.BEGIN)
            if not told:
                pins = sessions.pins(conn, lock_timeout=self._lock_timeout)
                await conn.execute(sessions.NO_TIMEOUT_HERE)
                await conn.execute(sessions.PIN, [*pins, True])
            for block in blocks:
                # The driver reads text by what the server has told it of the session, and it hears
                # of a change only with the last answer: so the values come in binary form.
                cursor = await conn.execute(block.text, block.values(parameters), binary=not told)
            if whole:
                await conn.execute(sessions.COMMIT)
            if pipe is not None:
                # Otherwise an error of COMMIT comes from the pipeline's end, without its SQLSTATE;
                # and one of a deferred trigger breaks the connection.
                await pipe.sync()
        return Rows(await cursor.fetchall() if cursor.description else [])

    async def run(
        self,
        name: str,
        give_up: Callable[[], bool] = lambda: False,
        *,
        paid: bool = False,
        lock_patience: timedelta | None = None,
        **parameters: object,
    ) -> Rows:
        """Run a named query, and repeat it while the trouble is transient.

        `give_up` is called between tries; where it is true, DatabaseUnavailableError is raised. A
        statement that records money (`paid`) is repeated a few times after an unknown error too.
        Raises LockedError after `lock_patience` of locks (None: no limit), and StatementStuckError
        when the statement keeps failing while the database answers others.
        """
        tries, stuck, unknown, began = 0, 0, 0, boot_time()
        patience = _LockPatience(lock_patience)
        passed = self.outage.passed
        while True:
            try:
                rows = await self.once(name, **parameters)
            except DatabaseUnavailableError as error:
                tries += 1
                stuck += passed < self.outage.passed
                passed = self.outage.passed
                if not (self.outage.away or error.told) and (tries in (1, 5) or tries % 20 == 0):
                    emit(DatabaseTrouble(query=name, error=str(error), tries=tries))
                if give_up() or patience.is_over(error):
                    raise
                if stuck >= STUCK_TRIES:
                    text = f"{tries} tries failed while the database answered others: {error}"
                    raise StatementStuckError(text) from error
            except Exception as error:
                tries, unknown = tries + 1, unknown + 1
                if not paid or unknown >= UNKNOWN_TRIES or give_up():
                    raise
                emit(DatabaseTrouble(query=name, error=one_line(error), tries=tries))
            else:
                if tries:
                    # An earlier try may have been executed, and its answer lost.
                    rows.sent = began
                return rows
            await asyncio.sleep(_pause(tries))


class _LockPatience:
    """How long one statement has met only locks."""

    def __init__(self, patience: timedelta | None) -> None:
        self._patience = patience
        self._since: float | None = None

    def is_over(self, error: DatabaseUnavailableError) -> bool:
        """Whether this error is a lock, and the patience is over."""
        if self._patience is None or not isinstance(error, LockedError):
            self._since = None
            return False
        if self._since is None:
            self._since = boot_time()
        return boot_time() - self._since >= self._patience.total_seconds()


def _pause(tries: int) -> float:
    """Seconds before the next try: doubling to five, with jitter."""
    return float(min(0.1 * 2 ** min(tries, 6), 5.0)) * random.uniform(0.5, 1.0)  # noqa: S311


class Databases:
    """The three pools of a worker, with different needs; the listener is apart."""

    def __init__(self, url: str, size: int, heartbeat: timedelta) -> None:
        self.outage = Outage(url)
        self.work = Database(url, size=size, outage=self.outage)
        self.claims = Database(url, size=1, outage=self.outage)
        # A heartbeat never queues behind other statements, and one that hangs ends while
        # the lease still leaves time for the next.
        self.pulse = Database(url, size=1, deadline=heartbeat, outage=self.outage)

    async def open(self) -> None:
        """Open all of them; connections are made in the background."""
        for database in (self.work, self.claims, self.pulse):
            await database.open()

    async def close(self) -> None:
        """Close every connection."""
        await asyncio.gather(*(one.close() for one in (self.work, self.claims, self.pulse)))
