"""The connection to Postgres: pool, named queries, what is transient, and LISTEN.

Every statement is a named block of `queue/queue.sql`, runs in autocommit and may be sent twice,
so a transient error is answered by sending it again. No transaction is ever open across an await
for something else; all of it works behind a transaction pooler. It never decides what a row means.
"""

import asyncio
import contextlib
import logging
import random
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from types import MappingProxyType
from typing import Any, LiteralString, Self
from uuid import UUID

import psycopg
from psycopg import errors
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from vidgen_worker.database import sessions
from vidgen_worker.database.database_url import DatabaseUrl
from vidgen_worker.database.postgres_text import STORABLE
from vidgen_worker.database.remedies import explain_connect
from vidgen_worker.database.statements import load_queries
from vidgen_worker.domain.foreign_text import printable
from vidgen_worker.telemetry.events import (
    DatabaseAway,
    DatabaseBack,
    DatabaseTrouble,
    ListenChanged,
    emit,
)
from vidgen_worker.worker.lease import boot_time

Row = dict[str, Any]

CHANNEL = "vidgen_tasks"
STATEMENT_DEADLINE = timedelta(seconds=15)
"""After this a statement is given up, and sent again where it may be."""
LOCK_TIMEOUT = timedelta(milliseconds=200)
"""So long one statement waits for a lock: meanwhile it keeps a connection from everybody else."""
LOCK_PATIENCE = timedelta(seconds=3)
"""So long, in all its tries, a statement about one task waits for locks that others hold."""
STUCK_TRIES = 30
"""So often a statement may fail while the database answers others: a few minutes."""
UNKNOWN_TRIES = 6
"""So often an error that nobody knows counts as passing, where money hangs on the statement."""

CONNECTION: Mapping[str, Any] = MappingProxyType(
    {**sessions.AT_CONNECT, "application_name": "vidgen-worker"}
)

PLANNED_ONCE: LiteralString = (
    "select set_config('plan_cache_mode', 'force_generic_plan', false),"
    " set_config('random_page_cost', '1.1', false)"
)
"""For a connection whose plans are made once, perhaps while there are few rows, and kept: with the
default of 4 a walk through a small table looks cheaper than its index, and an hour later it is not.
What waits is in memory; Supabase sets 1.1 as well."""

_PARAMETER = re.compile(r"%\((\w+)\)s|%%")


class DatabaseUnavailableError(Exception):
    """A statement failed in a transient way and its patience ran out, or there was none.

    `trouble` is what the error said, `AWAY` or `PASSING`.
    """

    def __init__(self, text: str, trouble: "Trouble") -> None:
        self.trouble = trouble
        super().__init__(text)


class LockedError(DatabaseUnavailableError):
    """A statement wanted a lock that another transaction holds, and did not wait for it."""


class StatementStuckError(Exception):
    """One statement failed again and again while the database answered others."""


QUERIES = load_queries("queue/queue.sql")


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


PASSING_CLASSES = frozenset(
    {
        "08",  # connection; also most of what PgBouncer has to say
        "28",  # login: once we were in, it is a pooler's own, or of a project that wakes up
        "40",  # serialization, deadlock, completion unknown
        "53",  # too few resources
        "57",  # cancelled, shut down, starting
        "58",  # a system error below PostgreSQL
    }
)
PASSING_STATES = frozenset(
    {
        "25P02",  # a transaction that somebody else left behind on this server connection
        "25P03", "25P04",  # idle_in_transaction_session_timeout, transaction_timeout
        "25006",  # read-only: a failover in progress
        "3D000",  # no such database, on a connection to it: it is being restored
        "42P05", "26000",  # prepared statements behind a transaction pooler
        "55P03",  # lock_timeout
    }
)  # fmt: skip
# https://github.com/supabase/supavisor, lib/supavisor/errors: all of them are XX000, and their text
# begins with a name such as (ECHECKOUTTIMEOUT), (EDBHANDLEREXITED) or (EMAXCONNSESSION); before it
# had names it said "Internal error (authenticated): …", and still does where it has none.
_OF_A_POOLER = re.compile(
    r"\(E[A-Z]{3,}\)|Internal error \((handshake|authenticated)\)|DbHandler exited"
    r"|unable to check ?out|check ?out timed out|connection to database closed|pool.{0,20}terminat"
    r"|[Mm]ax ?[Cc]lients? ?(connections|[Ii]n)",
)


class Trouble(Enum):
    """What an error says of the statement that met it."""

    AWAY = "away"
    """The database, or the way to it: every statement would fail."""
    PASSING = "passing"
    """This statement, now: a lock, a deadlock, a time-out."""
    UNKNOWN = "unknown"
    """Anything else: the same statement would most likely fail again."""


def trouble_of(error: BaseException) -> Trouble:
    """Tell by the class of an error, never by a list of the ones that were seen.

    The one place that decides what passes. Connect failures carry no SQLSTATE whatever the server
    said.
    """
    if isinstance(error, TimeoutError | OSError):
        return Trouble.AWAY
    if not isinstance(error, psycopg.Error):
        return Trouble.UNKNOWN
    state = error.sqlstate
    if state is None:
        # The pool's and the driver's own: no connection, a lost one, an answer without sense.
        lost = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
        return Trouble.AWAY if lost else Trouble.UNKNOWN
    of_a_pooler = state == "XX000" and _OF_A_POOLER.search(str(error)) is not None
    if not (of_a_pooler or state[:2] in PASSING_CLASSES or state in PASSING_STATES):
        return Trouble.UNKNOWN
    # What ends the connection is not about the statement; a trigger can raise any state.
    ends_it = of_a_pooler or error.diag.severity_nonlocalized in ("FATAL", "PANIC")
    return Trouble.AWAY if ends_it else Trouble.PASSING


def is_transient(error: BaseException) -> bool:
    """Whether the same statement may go through later."""
    return trouble_of(error) is not Trouble.UNKNOWN


class Rows(list[Row]):
    """What a statement returned. `sent` is when it went to the server, in `boot_time` seconds.

    Not before: a statement may wait long for a connection, and only what follows counts where the
    database's clock and ours are compared.
    """

    sent: float = 0.0


class Outage:
    """Whether the database is away, as all connections of a process see it together.

    One line when it goes, which says what to do, and one when it is back.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._since: float | None = None
        self._failed_at = 0.0
        self.passed = 0
        """How many statements went well so far."""

    @property
    def away(self) -> bool:
        """Whether nothing was answered since it went."""
        return self._since is not None

    def met(self, error: BaseException) -> None:
        """Note that the database, or the way to it, failed."""
        self._failed_at = boot_time()
        if self._since is None:
            self._since = self._failed_at
            said = "timed out" if isinstance(error, TimeoutError) else str(error)
            away = trouble_of(error) is Trouble.AWAY
            emit(DatabaseAway(
                error=explain_connect(said, self._url) if away else one_line(error)
            ))  # fmt: skip

    def answered(self, sent: float, *, well: bool = True) -> None:
        """Note an answer to a statement that was sent then: a good one, or an error of its own."""
        self.passed += well
        if self._since is not None and sent > self._failed_at:
            emit(DatabaseBack(seconds=round(boot_time() - self._since, 1)))
            self._since = None


class _Connection(psycopg.AsyncConnection[Any]):
    """Tells the outage why it could not be made: the pool says so to a logger only."""

    @classmethod
    async def connect(  # type: ignore[override]
        cls,
        conninfo: str = "",
        *,
        outage: Outage,
        **options: Any,  # noqa: ANN401 - as libpq
    ) -> "psycopg.AsyncConnection[Any]":
        try:
            return await super().connect(conninfo, **options)
        except (psycopg.Error, OSError) as error:
            outage.met(error)
            raise


class Database:
    """A pool of autocommit connections, and the one way to run a named query."""

    def __init__(  # noqa: PLR0913 - by keyword, all with defaults
        self,
        url: str,
        *,
        size: int = 6,
        deadline: timedelta = STATEMENT_DEADLINE,
        planned_once: bool = False,
        outage: Outage | None = None,
        lock_timeout: timedelta = LOCK_TIMEOUT,
    ) -> None:
        """`planned_once`: for few statements sent often, whose planning costs more than they do."""
        self._url = url
        self._deadline = deadline.total_seconds()
        self._planned_once = planned_once
        self._lock_timeout = lock_timeout
        self.outage = outage or Outage(url)
        # Behind a transaction pooler nothing is prepared, and nothing is said to a session.
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
        # A line for every try would fill the log in an outage; `Outage` says what there is to say.
        logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.close(timeout=2.0)

    async def _configure(self, conn: psycopg.AsyncConnection[Any]) -> None:
        try:
            await self._set_up(conn)
        except Exception as error:
            self.outage.met(error)
            raise

    async def _set_up(self, conn: psycopg.AsyncConnection[Any]) -> None:
        # Whatever the port says. Names of prepared statements are the same in every client: one of
        # somebody else's would be carried out, and nothing would tell.
        if not await sessions.is_ours_alone(conn):
            self._prepare = False
        # Behind a transaction pooler None, never 0: 0 prepares at once, and the statement then
        # lives on somebody else's connection, as a SET would.
        if not self._prepare:
            conn.prepare_threshold = None
            return
        await sessions.pin(conn, lock_timeout=self._lock_timeout)
        if self._planned_once:
            conn.prepare_threshold = 0
            await conn.execute(PLANNED_ONCE)
        else:
            conn.prepare_threshold = 2

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
        sent: float | None = None
        try:
            async with asyncio.timeout(self._deadline):
                conn = await self._pool.getconn()
                sent = boot_time()
                try:
                    rows = await self._answer(conn, names, parameters)
                finally:
                    # A transaction that broke in the middle is rolled back by the pool.
                    await self._pool.putconn(conn)
        except Exception as error:
            trouble = trouble_of(error)
            if sent is not None:
                # Who got no connection has learned nothing new: a try to make one tells by itself.
                if trouble is Trouble.AWAY:
                    self.outage.met(error)
                elif isinstance(error, psycopg.Error) and error.sqlstate is not None:
                    self.outage.answered(sent, well=False)
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
            raise kind(f"{names[-1]}: {one_line(error)}", trouble) from error
        self.outage.answered(sent)
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
        async with conn.pipeline() if piped else contextlib.nullcontext():
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
        """Run a named query, again and again while the trouble is transient.

        `give_up` is asked between tries; then DatabaseUnavailableError is raised. Where money hangs
        on the statement (`paid`), an error that nobody knows is taken for a passing one a few
        times. LockedError when it meets locks for `lock_patience` (None: it tries on).
        StatementStuckError when it does not pass although the database answers others.
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
                if not self.outage.away and (tries in (1, 5) or tries % 20 == 0):
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
                    # An earlier try may have been carried out, its answer lost.
                    rows.sent = began
                return rows
            await asyncio.sleep(_pause(tries))


class _LockPatience:
    """How long one statement has met nothing but locks."""

    def __init__(self, patience: timedelta | None) -> None:
        self._patience = patience
        self._since: float | None = None

    def is_over(self, error: DatabaseUnavailableError) -> bool:
        """Whether this error is a lock, and one too many."""
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
    """What a worker keeps open besides the listener: three pools with different needs."""

    def __init__(self, url: str, size: int, heartbeat: timedelta) -> None:
        self.outage = Outage(url)
        self.work = Database(url, size=size, outage=self.outage)
        # The claim's planning takes longer than it does.
        self.claims = Database(url, size=1, planned_once=True, outage=self.outage)
        # A heartbeat never queues behind other statements, and one that hangs is given up while
        # the lease still leaves time for the next.
        self.pulse = Database(url, size=1, deadline=heartbeat, outage=self.outage)

    async def open(self) -> None:
        """Open all of them; connections are made in the background."""
        for database in (self.work, self.claims, self.pulse):
            await database.open()

    async def close(self) -> None:
        """Close every connection."""
        await asyncio.gather(*(one.close() for one in (self.work, self.claims, self.pulse)))


class _NothingHeardError(Exception):
    """LISTEN was accepted, and nothing arrives."""


class Listener:
    """LISTEN on a connection of its own that proves itself, and heals.

    Behind a transaction pooler LISTEN is accepted and nothing ever arrives: so a NOTIFY round trip
    now and then decides, not the absence of an error.
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
        """Listen until cancelled; on trouble reconnect with a growing pause."""
        failures = 0
        while True:
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
                    # It says nothing about LISTEN: the outage has its own line.
                    self._outage.met(error)
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

        From our own it would prove nothing: a transaction pooler may run it on the very server
        connection that listens, and then it comes back with the answer.
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
        """Say what is new about LISTEN; an outage in between is not."""
        if listening is not self._said:
            emit(ListenChanged(listening=listening, why=why))
        self._said = listening


def one_line(error: BaseException) -> str:
    """Kind and words of an error, on one line."""
    return printable(f"{type(error).__name__}: {error}", 500)
