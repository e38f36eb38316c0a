"""Transactions in a caller's role, with PostgreSQL's refusals in Storage's words.

A connection that died is replaced at the next request: once the database is back, so is Storage.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import AsyncConnection, errors
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from vidgen_worker.sandbox.supabase.callers import Caller
from vidgen_worker.sandbox.supabase.storage import refusals
from vidgen_worker.sandbox.supabase.storage.refusals import StorageRefusalError

DictConnection = AsyncConnection[dict[str, Any]]

SUPERUSER = Caller("supabase_storage_admin", {})
MOST = 10
"""Connections at once."""
KNOWN: dict[type[psycopg.Error], StorageRefusalError] = {
    errors.UniqueViolation: refusals.DUPLICATE,
    errors.ForeignKeyViolation: refusals.NO_RELATION,
}
# libpq gives no SQLSTATE for a connection that was refused, only these words.
REFUSED_CONNECTIONS = (
    ("sorry, too many clients already", refusals.TOO_MANY),
    ("remaining connection slots are reserved", refusals.TOO_MANY),
    ("too many connections for role", refusals.database_error("53300")),
    ("is not permitted to log in", refusals.database_error("28000")),
)


class Connections:
    """The way to the database of `admin_url`. `open` before use, `close` after."""

    def __init__(self, admin_url: str, *, timeout_seconds: float, connect_seconds: float) -> None:
        self._url = admin_url
        self._timeout = f"-c statement_timeout={round(timeout_seconds * 1000)}"
        self._connect_seconds = connect_seconds
        self._idle: list[DictConnection] = []
        self._is_closed = False
        self._free = asyncio.Semaphore(MOST)

    async def close(self) -> None:
        """Close the connections; those in use close once they are free."""
        self._is_closed = True
        while self._idle:
            await self._idle.pop().close()

    @asynccontextmanager
    async def acting_as(self, caller: Caller) -> AsyncIterator[DictConnection]:
        """Open a transaction in the caller's role. Raises `StorageRefusalError`."""
        try:
            async with self._free, self._connection() as connection:
                if caller.role != SUPERUSER.role:
                    await connection.execute(
                        """
                        select set_config('role', %s, true),
                               set_config('request.jwt.claims', %s, true)
                        """,
                        [caller.role, json.dumps(caller.claims)],
                    )
                yield connection
        except psycopg.Error as error:
            raise _refusal(error) from error

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[DictConnection]:
        connection = await self._take()
        try:
            yield connection
            await connection.commit()
        except BaseException:
            if not connection.closed:
                await connection.rollback()
            raise
        finally:
            if self._is_closed:
                await connection.close()
            elif not connection.closed:
                self._idle.append(connection)

    async def _take(self) -> DictConnection:
        while self._idle:
            connection = self._idle.pop()
            try:
                await AsyncConnectionPool.check_connection(connection)
            except psycopg.Error:
                await connection.close()
                continue
            except BaseException:
                await connection.close()
                raise
            return connection
        return await AsyncConnection[dict[str, Any]].connect(
            self._url,
            row_factory=dict_row,
            options=self._timeout,
            connect_timeout=max(2, round(self._connect_seconds)),
        )


def _refusal(error: psycopg.Error) -> StorageRefusalError:
    match error:
        case errors.InsufficientPrivilege():
            said = error.diag.message_primary or ""
            is_policy = "row-level security" in said
            return refusals.REFUSED_BY_POLICY if is_policy else refusals.denied(said)
        case errors.QueryCanceled() | errors.LockNotAvailable():
            return refusals.TIMED_OUT
        case psycopg.OperationalError():
            words = str(error)
            found = [refusal for text, refusal in REFUSED_CONNECTIONS if text in words]
            return found[0] if found else refusals.INTERNAL
    # What psycopg doesn't even send, a NUL in a text, has no state; PostgreSQL would say this one.
    return KNOWN.get(type(error)) or refusals.database_error(error.sqlstate or "22021")
