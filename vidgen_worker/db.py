"""The connection to Postgres: pool, named queries, what is transient, and LISTEN.

Every statement is a named block of `queries.sql`, runs in autocommit and may be sent twice, so a
transient error is answered by sending it again. No transaction is ever open across an await for
something else; all of it works behind a transaction pooler. It never decides what a row means.
"""

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from importlib import resources
from types import MappingProxyType
from typing import Any, LiteralString, Self, cast
from uuid import UUID

import psycopg
from psycopg import errors
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from vidgen_worker.database_url import DatabaseUrl
from vidgen_worker.events import DatabaseTrouble, ListenChanged, emit
from vidgen_worker.foreign_text import printable
from vidgen_worker.lease import boot_time
from vidgen_worker.postgres_text import STORABLE

Row = dict[str, Any]

CHANNEL = "vidgen_tasks"
STATEMENT_DEADLINE = timedelta(seconds=15)
"""After this a statement is given up, and sent again where it may be."""

# Keepalives find a peer that vanished without a word; libpq's own, so that any pooler takes them.
CONNECTION: Mapping[str, Any] = MappingProxyType(
    {
        "connect_timeout": 10,
        "keepalives": 1,
        "keepalives_idle": 10,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
        "application_name": "vidgen-worker",
    }
)

PLANNED_ONCE: LiteralString = (
    "select set_config('plan_cache_mode', 'force_generic_plan', false),"
    " set_config('random_page_cost', '1.1', false)"
)
"""For a connection whose plans are made once, perhaps while there are few rows, and kept: with the
default of 4 a walk through a small table looks cheaper than its index, and an hour later it is not.
What waits is in memory; Supabase sets 1.1 as well."""

_BLOCK = re.compile(r"^-- (\w+) --$", re.MULTILINE)
_PARAMETER = re.compile(r"%\((\w+)\)s|%%")


class DatabaseUnavailableError(Exception):
    """A statement failed in a transient way and its patience ran out, or there was none."""


def load_queries(file: str) -> Mapping[str, LiteralString]:
    """Read the named blocks of a .sql file of this package: `-- name --`, a comment, SQL.

    Comments go to the server too: they cost nothing and show in pg_stat_activity.
    """
    text = resources.files("vidgen_worker").joinpath(file).read_text(encoding="utf-8")
    parts = _BLOCK.split(text)[1:]
    blocks: dict[str, LiteralString] = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        if name in blocks:
            msg = f"{file}: block {name} stands there twice"
            raise ValueError(msg)
        # A literal by the same right as a string in this file: it ships in the package.
        blocks[name] = cast("LiteralString", body.strip().removesuffix(";"))
    return MappingProxyType(blocks)


QUERIES = load_queries("queries.sql")


@dataclass(frozen=True, slots=True)
class Block:
    """A named query as the server takes it: `$1` is the first of `names`.

    Written so once and not by the driver at every call, which for the claim costs a tenth of a
    millisecond: it remembers only statements below 4 KiB.
    """

    text: LiteralString
    names: tuple[str, ...]

    @classmethod
    def read(cls, text: LiteralString) -> Self:
        """Read a query with parameters as `%(name)s`, and `%%` for one percent sign."""
        names: list[str] = []

        def numbered(found: re.Match[str]) -> str:
            name = found[1]
            if name is None:
                return "%"
            if name not in names:
                names.append(name)
            return f"${names.index(name) + 1}"

        return cls(_PARAMETER.sub(numbered, text), tuple(names))

    def values(self, parameters: Mapping[str, object]) -> list[object]:
        """The parameters in the order of the server."""
        return [parameters[name] for name in self.names]


_BLOCKS = {name: Block.read(text) for name, text in QUERIES.items()}


def is_transient(error: BaseException) -> bool:
    """Whether the same statement may go through later.

    Connect failures carry no SQLSTATE whatever the server said, and an idle-in-transaction timeout
    is an InternalError: both are listed by what they are, not by their class alone.
    """
    if isinstance(error, PoolTimeout | TimeoutError | OSError):
        return True
    if not isinstance(error, psycopg.Error):
        return False
    state = error.sqlstate
    if state is None:
        return isinstance(error, psycopg.OperationalError)
    return state[:2] in ("08", "53", "57", "58") or state in (
        "25P03",  # idle_in_transaction_session_timeout
        "25006",  # read-only: a failover in progress
        "40001", "40P01",  # serialization, deadlock
        "55P03",  # lock_timeout
        "42P05", "26000",  # prepared statements behind a transaction pooler
    )  # fmt: skip


class Rows(list[Row]):
    """What a statement returned. `sent` is when it went to the server, in `boot_time` seconds.

    Not before: a statement may wait long for a connection, and only what follows counts where the
    database's clock and ours are compared.
    """

    sent: float = 0.0


class Database:
    """A pool of autocommit connections, and the one way to run a named query."""

    def __init__(
        self,
        url: str,
        *,
        size: int = 6,
        deadline: timedelta = STATEMENT_DEADLINE,
        planned_once: bool = False,
    ) -> None:
        """`planned_once`: for few statements sent often, whose planning costs more than they do."""
        self._url = url
        self._deadline = deadline.total_seconds()
        self._planned_once = planned_once
        self._prepare = not DatabaseUrl.read(url).pooled_by_transaction
        self._pool = AsyncConnectionPool(
            url,
            min_size=1,
            max_size=size,
            open=False,
            timeout=self._deadline,
            # A pool that is told of every failed try by name fills the log in an outage; our own
            # line per statement is enough.
            reconnect_timeout=30.0,
            configure=self._configure,
            kwargs={
                **CONNECTION,
                "autocommit": True,
                "context": STORABLE,
                "row_factory": dict_row,
                "cursor_factory": psycopg.AsyncRawCursor,
            },
        )

    async def open(self) -> None:
        """Open the pool; connections are made in the background."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.close(timeout=2.0)

    async def _configure(self, conn: psycopg.AsyncConnection[Any]) -> None:
        # A pooler answers for a server connection that may be another one each time, whatever its
        # port. Names of prepared statements are the same in every client: one of somebody else's
        # would be carried out, and nothing would tell.
        cursor = await conn.execute("select pg_backend_pid() as pid")
        row = await cursor.fetchone()
        if row is None or row["pid"] != conn.info.backend_pid:
            self._prepare = False
        # Behind a transaction pooler None, never 0: 0 prepares at once, and the statement then
        # lives on somebody else's connection, as a SET would.
        if not self._prepare:
            conn.prepare_threshold = None
        elif self._planned_once:
            conn.prepare_threshold = 0
            await conn.execute(PLANNED_ONCE)
        else:
            conn.prepare_threshold = 2

    async def once(self, name: str, **parameters: object) -> Rows:
        """Run a named query once, under a deadline that the driver can't swallow.

        Raises DatabaseUnavailableError for a transient error (the statement may or may not have
        been carried out) and psycopg.Error for all else.
        """
        return await self._send((name,), parameters)

    async def pair(self, first: str, second: str, **parameters: object) -> Rows:
        """Run two named queries once, and return the rows of the second, which sees the first's.

        In one round trip, one transaction and one flush of the log, where the connection is ours
        alone; behind a transaction pooler one after the other. Raises as `once` does.
        """
        if not self._prepare or not psycopg.AsyncPipeline.is_supported():
            await self.once(first, **parameters)
            return await self.once(second, **parameters)
        return await self._send((first, second), parameters)

    async def _send(self, names: tuple[str, ...], parameters: Mapping[str, object]) -> Rows:
        try:
            async with asyncio.timeout(self._deadline):
                conn = await self._pool.getconn()
                try:
                    sent = boot_time()
                    rows = await _answer(conn, names, parameters)
                finally:
                    # In autocommit there is nothing to commit or roll back before it goes back.
                    await self._pool.putconn(conn)
        except Exception as error:
            if not is_transient(error):
                raise
            if isinstance(
                error,
                errors.DuplicatePreparedStatement
                | errors.InvalidSqlStatementName
                | errors.ProtocolViolation,
            ):
                self._prepare = False
                await self._pool.drain()
            raise DatabaseUnavailableError(f"{names[-1]}: {_one_line(error)}") from error
        rows.sent = sent
        return rows

    async def run(
        self, name: str, give_up: Callable[[], bool] = lambda: False, **parameters: object
    ) -> Rows:
        """Run a named query, again and again while the trouble is transient.

        `give_up` is asked between tries; then DatabaseUnavailableError is raised.
        """
        tries, began = 0, boot_time()
        while True:
            try:
                rows = await self.once(name, **parameters)
            except DatabaseUnavailableError as error:
                tries += 1
                if tries in (1, 5) or tries % 20 == 0:
                    emit(DatabaseTrouble(query=name, error=str(error), tries=tries))
                if give_up():
                    raise
            else:
                if tries:
                    # An earlier try may have been carried out, its answer lost.
                    rows.sent = began
                return rows
            await asyncio.sleep(min(0.1 * 2 ** min(tries, 6), 5.0) * random.uniform(0.5, 1.0))  # noqa: S311


async def _answer(
    conn: psycopg.AsyncConnection[Row], names: tuple[str, ...], parameters: Mapping[str, object]
) -> Rows:
    """Send the blocks, more than one of them in a pipeline; return the rows of the last."""
    *before, last = (_BLOCKS[name] for name in names)
    if before:
        async with conn.pipeline():
            for block in before:
                await conn.execute(block.text, block.values(parameters))
            cursor = await conn.execute(last.text, last.values(parameters))
    else:
        cursor = await conn.execute(last.text, last.values(parameters))
    return Rows(await cursor.fetchall() if cursor.description else [])


class Databases:
    """What a worker keeps open besides the listener: three pools with different needs."""

    def __init__(self, url: str, size: int, heartbeat: timedelta) -> None:
        self.work = Database(url, size=size)
        # The claim's planning takes longer than it does.
        self.claims = Database(url, size=1, planned_once=True)
        # A heartbeat never queues behind other statements, and one that hangs is given up while
        # the lease still leaves time for the next.
        self.pulse = Database(url, size=1, deadline=heartbeat)

    async def open(self) -> None:
        """Open all of them; connections are made in the background."""
        for database in (self.work, self.claims, self.pulse):
            await database.open()

    async def close(self) -> None:
        """Close every connection."""
        for database in (self.work, self.claims, self.pulse):
            await database.close()


class Listener:
    """LISTEN on a connection of its own that proves itself, and heals.

    Behind a transaction pooler LISTEN is accepted and nothing ever arrives: so a NOTIFY round trip
    now and then decides, not the absence of an error.
    """

    def __init__(
        self,
        url: str,
        wake: Callable[[str], Awaitable[None] | None],
        *,
        prove_every: timedelta = timedelta(seconds=30),
        patience: timedelta = timedelta(seconds=5),
    ) -> None:
        self._url = url
        self._wake = wake
        self._prove_every = prove_every.total_seconds()
        self._patience = patience.total_seconds()
        self.listening = False
        self.proved = asyncio.Event()

    async def run(self, worker_id: UUID) -> None:
        """Listen until cancelled; on trouble reconnect with a growing pause."""
        failures = 0
        while True:
            try:
                await self._listen(f"vidgen_{worker_id.hex}")
            except (psycopg.Error, OSError, TimeoutError) as error:
                failures = 1 if self.listening else failures + 1
                self._say(listening=False, why=_one_line(error))
            self.proved.set()
            await asyncio.sleep(min(2.0 ** min(failures, 6), 60.0) * random.uniform(0.5, 1.0))  # noqa: S311

    async def _listen(self, own_channel: str) -> None:
        conn = await psycopg.AsyncConnection.connect(
            self._url, autocommit=True, prepare_threshold=None, **CONNECTION
        )
        async with conn:
            await conn.execute(psycopg.sql.SQL("listen {}").format(psycopg.sql.Identifier(CHANNEL)))
            await conn.execute(
                psycopg.sql.SQL("listen {}").format(psycopg.sql.Identifier(own_channel))
            )
            while True:
                async with asyncio.timeout(self._patience + 5):
                    await self._notify(own_channel)
                if not await self._hear(conn, own_channel, self._patience):
                    msg = "a NOTIFY of our own did not arrive (a transaction pooler in between?)"
                    raise TimeoutError(msg)
                self._say(listening=True, why="a NOTIFY of our own arrived")
                self.proved.set()
                await self._hear(conn, None, self._prove_every)

    async def _notify(self, own_channel: str) -> None:
        """Send the proof from another connection.

        From our own it would prove nothing: a transaction pooler may run it on the very server
        connection that listens, and then it comes back with the answer.
        """
        other = await psycopg.AsyncConnection.connect(
            self._url, autocommit=True, prepare_threshold=None, **CONNECTION
        )
        async with other:
            await other.execute("select pg_notify(%s, 'proof')", (own_channel,))

    async def _hear(
        self, conn: psycopg.AsyncConnection[Any], until: str | None, seconds: float
    ) -> bool:
        """Pass notifications on for so long, or until one on the channel `until` came."""
        async for notify in conn.notifies(timeout=seconds):
            if notify.channel == CHANNEL:
                result = self._wake(notify.payload)
                if result is not None:
                    await result
            elif notify.channel == until:
                return True
        return False

    def _say(self, *, listening: bool, why: str) -> None:
        if listening != self.listening or not self.proved.is_set():
            emit(ListenChanged(listening=listening, why=why))
        self.listening = listening


def _one_line(error: BaseException) -> str:
    return printable(f"{type(error).__name__}: {error}", 500)
