"""The database for programs and operators: short, synchronous statements, errors as sentences.

The Python service and the command line use it; it needs only `DATABASE_URL`. The statements are the
named blocks of its .sql files, and each may be sent twice. It never runs a task, and raises no
exception of psycopg.
"""

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, LiteralString

import psycopg
from psycopg import errors, sql
from psycopg.rows import dict_row
from pydantic import SecretStr

from vidgen_worker.config import read
from vidgen_worker.database import sessions
from vidgen_worker.database.database_url import place_of
from vidgen_worker.database.postgres_text import STORABLE
from vidgen_worker.database.remedies import explain_connect
from vidgen_worker.database.statements import load_queries
from vidgen_worker.domain.foreign_text import printable
from vidgen_worker.settings.environment import Environment

Row = dict[str, Any]
Claims = Mapping[str, str]

SERVICE_ROLE: Claims = {"role": "service_role"}
QUERIES = load_queries("client")
STATEMENT_TIMEOUT = timedelta(minutes=5)
"""The longest time of a statement: an audit of a long ledger takes minutes."""
MOST_IDLE = 4


def user_claims(user_id: object) -> Claims:
    """Return the claims of a signed-in user, so that a statement runs under the user's policies."""
    return {"role": "authenticated", "sub": str(user_id)}


class ClientSettings(Environment):
    """The settings of the service and the command line; only the database is mandatory."""

    database_url: SecretStr
    supabase_url: str | None = None
    supabase_service_role_key: SecretStr | None = None
    storage_bucket_images: str = "generated-content"
    storage_bucket_videos: str = "video-files"


def load_client_settings() -> ClientSettings:
    """Read the settings. Raises SettingsError for an unusable one or a missing DATABASE_URL."""
    return read(ClientSettings)


class ClientError(Exception):
    """A request can't be fulfilled; the message says what happened, to what, and what now."""


class DatabaseUnreachableError(ClientError):
    """The connection could not be made, or broke."""


class NotMigratedError(ClientError):
    """The database lacks our tables, or those of this version."""


class TookTooLongError(DatabaseUnreachableError):
    """The statement took longer than its time-out."""


class RefusedError(ClientError):
    """The database refused the statement: `sqlstate` is the reason, `hint` the remedy."""

    def __init__(
        self, message: str, *, sqlstate: str | None = None, hint: str | None = None
    ) -> None:
        self.sqlstate = sqlstate
        self.hint = hint
        said = message if message.endswith((".", "!", "?")) or not hint else f"{message}."
        super().__init__(f"{said} {hint}" if hint else said)


class Database:
    """Connections to one database, opened when they are needed. Safe to share by threads.

    `queries` are its named blocks; a statement ends after `statement_timeout`.
    """

    def __init__(
        self,
        url: str,
        queries: Mapping[str, LiteralString] = QUERIES,
        statement_timeout: timedelta = STATEMENT_TIMEOUT,
    ) -> None:
        self._url = url
        self._queries = queries
        self._statement_timeout = statement_timeout
        self._idle: list[psycopg.Connection[Row]] = []
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def rows(
        self,
        name: str,
        parameters: Mapping[str, object] | None = None,
        claims: Claims | None = None,
    ) -> list[Row]:
        """Run a named block, as the role of `claims` where given. Raises ClientError.

        A connection that broke while it was idle is replaced, and the statement is sent again.
        """
        while True:
            connection, reused = self._take()
            try:
                found = self._run(connection, name, parameters or {}, claims)
            except psycopg.Error as error:
                if connection.closed and reused:
                    continue
                self._give_back(connection)
                raise _translated(error, self._url) from error
            except BaseException:
                connection.close()  # interrupted: the connection may still run the statement
                raise
            self._give_back(connection)
            return found

    def row(
        self,
        name: str,
        parameters: Mapping[str, object] | None = None,
        claims: Claims | None = None,
    ) -> Row | None:
        """Run a named block that finds at most one row."""
        found = self.rows(name, parameters, claims)
        return found[0] if found else None

    def close(self) -> None:
        """Close the connections; the next statement opens a new one."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _run(
        self,
        connection: psycopg.Connection[Row],
        name: str,
        parameters: Mapping[str, object],
        claims: Claims | None,
    ) -> list[Row]:
        statement = self._queries[name]
        # Each statement has a transaction, which gets our settings behind any pooler.
        with connection.transaction():
            sessions.pin_transaction(connection, statement_timeout=self._statement_timeout)
            if claims is None:
                return connection.execute(statement, parameters).fetchall()
            who = {"role": claims["role"], "claims": json.dumps(dict(claims))}
            connection.execute(QUERIES["act_as"], who)
            return connection.execute(statement, parameters).fetchall()

    def _take(self) -> tuple[psycopg.Connection[Row], bool]:
        with self._lock:
            if self._pid != os.getpid():
                # After a fork these sockets belong to the parent: drop them, and close nothing.
                self._pid, self._idle = os.getpid(), []
            if self._idle:
                return self._idle.pop(), True
        return connect(self._url), False

    def _give_back(self, connection: psycopg.Connection[Row]) -> None:
        with self._lock:
            if not connection.closed and len(self._idle) < MOST_IDLE:
                self._idle.append(connection)
                return
        connection.close()


def connect(url: str) -> psycopg.Connection[Row]:
    """Open a connection that works through every pooler. Raises DatabaseUnreachableError."""
    try:
        connection = psycopg.connect(
            url,
            autocommit=True,
            prepare_threshold=None,
            row_factory=dict_row,
            context=STORABLE,
            application_name="vidgen-worker client",
            **sessions.AT_CONNECT,
        )
    except (psycopg.Error, OSError, ValueError) as error:
        # Without its cause, whose traceback would show the password.
        raise DatabaseUnreachableError(explain_connect(str(error), url)) from None
    sessions.read_committed(connection)
    return connection


def listens(
    ear: psycopg.Connection[Row], mouth: psycopg.Connection[Row], channel: str, seconds: float
) -> bool:
    """Whether a NOTIFY of one connection reaches the other; behind a transaction pooler none does.

    Raises psycopg.Error.
    """
    with ear.transaction():
        sessions.pin_transaction(ear)
        ear.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
    with mouth.transaction():
        sessions.pin_transaction(mouth)
        mouth.execute(QUERIES["notify"], {"channel": channel})
    return any(True for _ in ear.notifies(timeout=seconds, stop_after=1))


def _translated(error: psycopg.Error, url: str) -> ClientError:
    """Turn an error of psycopg into one of ours."""
    said = printable(error.diag.message_primary or str(error))
    match error:
        case (
            errors.UndefinedTable()
            | errors.InvalidSchemaName()
            | errors.UndefinedFunction()
            | errors.UndefinedColumn()
        ):
            return NotMigratedError(
                f"The database at {place_of(url)} is not set up for this version ({said}). "
                "Run: vidgen-worker migrate"
            )
        case errors.QueryCanceled():
            return TookTooLongError(
                f"The database at {place_of(url)} did not answer in time ({said}). "
                "Ask for less, or try again when it has less to do."
            )
        case psycopg.OperationalError() if error.sqlstate is None or error.sqlstate[:2] in (
            "08",
            "57",
        ):
            return DatabaseUnreachableError(
                f"The connection to the database at {place_of(url)} broke ({said}). Try again."
            )
        case _:
            said, hint = _refusal(error, said, url)
            return RefusedError(said, sqlstate=error.sqlstate, hint=hint)


def _refusal(error: psycopg.Error, said: str, url: str) -> tuple[str, str | None]:
    """Why a statement was refused, and what to do about it."""
    match error:
        case errors.LockNotAvailable():
            return (
                "A row or table that this needs is locked by another transaction.",
                "Try again when that transaction has ended; nothing was changed.",
            )
        case errors.InsufficientPrivilege() if "row-level security" not in said:
            hint = "Use the URL of role postgres in DATABASE_URL, or grant the right."
            return f"{said}.", hint
        case errors.ReadOnlySqlTransaction() | errors.FeatureNotSupported() if (
            error.sqlstate == "25006" or "recovery" in said  # a replica, at the transaction's begin
        ):
            hint = "It may be a replica, or out of disk. Use the primary's URL in DATABASE_URL."
            return f"The database at {place_of(url)} can only be read ({said}).", hint
        case errors.NumericValueOutOfRange():
            hint = "Nothing was changed. A balance is at most 2147483647 credits."
            return f"The sum is too large ({said}).", hint
        case _:
            return said, error.diag.message_hint or None


def too_new(database: Database, newest: str) -> str | None:
    """Return a sentence if the database is too new for a program with this last migration.

    A newer schema alone is fine: a change that breaks older programs comes one release later.
    """
    row = database.row("schema_version") or {}
    if (row.get("oldest_program") or "") <= newest:
        return None
    return (
        f"The database is at migration {row['schema_version']} and takes programs from "
        f"{row['oldest_program']} on; this one knows {newest}. Install a newer vidgen-worker."
    )


@contextlib.contextmanager
def open_database(url: str) -> Iterator[Database]:
    """Provide a Database for the length of a block."""
    database = Database(url)
    try:
        yield database
    finally:
        database.close()
