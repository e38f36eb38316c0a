"""What we rely on of a session of PostgreSQL, said by us and not by role, database or pooler.

`alter role … set datestyle`, a read-only database, a lock_timeout of a millisecond: all of it is
somebody's right, and none of it may change what our statements mean. A connection of our own is
told once, when it is made. Behind a transaction pooler that would be told to a connection of
everybody's, and not hold: there each transaction is told, in the round trip that carries its
statement. (What a pooler takes when a client connects differs: PgBouncer refuses `options`,
Supavisor drops all but the search path.) Nothing here decides what runs.
"""

from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Any, LiteralString

import psycopg

LOCK_TIMEOUT = timedelta(seconds=3)
"""So long a person's statement waits for a lock that an application holds. A worker's waits less
(`db.LOCK_TIMEOUT`), and comes again."""
STATEMENT_TIMEOUT = timedelta(seconds=20)
"""The server's own end of a statement that nobody waits for any more."""

PINNED: Mapping[str, str] = MappingProxyType(
    {
        "client_encoding": "UTF8",
        "datestyle": "ISO, MDY",
        "intervalstyle": "postgres",
        "timezone": "UTC",
        "bytea_output": "hex",
        "extra_float_digits": "1",
        "standard_conforming_strings": "on",
        "array_nulls": "on",
        "transform_null_equals": "off",
        # As Supabase has it: triggers of an application may count on it. Ours name their schemas.
        "search_path": '"$user", public, extensions',
        "default_transaction_isolation": "read committed",
        "default_transaction_read_only": "off",
        "default_transaction_deferrable": "off",
        # A record of money is on the disk before the server confirms it.
        "synchronous_commit": "on",
        "row_security": "on",
        "idle_session_timeout": "0",
        "idle_in_transaction_session_timeout": "60s",
    }
)
"""Beside the time-outs of locks and statements, which depend on who connects."""
VERSION_17 = 17_00_00
SINCE_17: Mapping[str, str] = MappingProxyType({"transaction_timeout": "0"})

BEGIN: LiteralString = "begin isolation level read committed read write not deferrable"
COMMIT: LiteralString = "commit"
# First and alone: with a time-out of a millisecond there is time for nothing else.
NO_TIMEOUT: LiteralString = "set statement_timeout = 0"
NO_TIMEOUT_HERE: LiteralString = "set local statement_timeout = 0"
WHOSE: LiteralString = (
    "begin; set local statement_timeout = 0; select pg_backend_pid() as pid; commit"
)
"""In one message, so that a pooler gives it one server connection."""
# Nothing of an operator's own choice comes before pg_catalog, whatever the search path says now.
PIN: LiteralString = (
    "select pg_catalog.set_config(s.name, s.value, $3)"
    " from unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) as s (name, value)"
)

AT_CONNECT: Mapping[str, Any] = MappingProxyType(
    {
        "connect_timeout": 10,
        # Keepalives find a peer that vanished without a word; libpq's own, so that any pooler
        # takes them.
        "keepalives": 1,
        "keepalives_idle": 10,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
        # Every pooler takes this one, and the driver decodes by it.
        "client_encoding": "utf8",
    }
)


def pins(
    conn: psycopg.AsyncConnection[Any] | psycopg.Connection[Any],
    *,
    lock_timeout: timedelta = LOCK_TIMEOUT,
    statement_timeout: timedelta = STATEMENT_TIMEOUT,
) -> tuple[list[str], list[str]]:
    """Return names and values of all that is pinned on this server's version."""
    values = {
        **PINNED,
        **(SINCE_17 if conn.info.server_version >= VERSION_17 else {}),
        "lock_timeout": f"{lock_timeout / timedelta(milliseconds=1):.0f}ms",
        "statement_timeout": f"{statement_timeout / timedelta(milliseconds=1):.0f}ms",
    }
    return list(values), list(values.values())


async def is_ours_alone(conn: psycopg.AsyncConnection[Any]) -> bool:
    """Whether the server's process is the one that answered when we connected.

    A pooler answers for a server connection that may be another one each time, whatever its port.
    """
    cursor = await conn.execute(WHOSE)
    while cursor.description is None and cursor.nextset():
        pass
    row: Any = await cursor.fetchone()
    pid = row["pid"] if isinstance(row, dict) else row[0]
    return bool(pid == conn.info.backend_pid)


async def pin(conn: psycopg.AsyncConnection[Any], **timeouts: timedelta) -> None:
    """Pin the session of a connection that is ours alone."""
    await conn.execute(NO_TIMEOUT)
    cursor = psycopg.AsyncRawCursor(conn)
    await cursor.execute(PIN, [*pins(conn, **timeouts), False])


def pin_transaction(conn: psycopg.Connection[Any], **timeouts: timedelta) -> None:
    """Pin the transaction that has just begun, on whatever connection."""
    conn.execute(NO_TIMEOUT_HERE)
    psycopg.RawCursor(conn).execute(PIN, [*pins(conn, **timeouts), True])


def read_committed(conn: psycopg.Connection[Any]) -> None:
    """Let every transaction of this connection begin as ours do, whatever the role's default is."""
    conn.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    conn.read_only = False
    conn.deferrable = False
