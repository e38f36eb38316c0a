"""The settings of a PostgreSQL session that our statements rely on.

An operator may run `alter role … set datestyle`, make a database read-only or set a lock_timeout of
a millisecond; our statements must mean the same everywhere. A connection of our own gets these
settings once, when it is made. Behind a transaction pooler a connection is shared and would lose
them: there each transaction gets them, in the round trip of its statement. (Poolers differ in the
start-up parameters that they accept: PgBouncer refuses `options`, Supavisor drops all but the
search path.) Nothing here decides what runs.
"""

from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Any, LiteralString

import psycopg

LOCK_TIMEOUT = timedelta(seconds=3)
"""The longest wait for a lock of a statement that a person sends. A worker's statement waits less
(`pool.LOCK_TIMEOUT`), and is repeated."""
STATEMENT_TIMEOUT = timedelta(seconds=20)
"""The time after which the server ends a statement that no client waits for any more."""

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
        # Supabase's own value: an application's triggers may rely on it. Ours name their schemas.
        "search_path": '"$user", public, extensions',
        "default_transaction_isolation": "read committed",
        "default_transaction_read_only": "off",
        "default_transaction_deferrable": "off",
        # A record of money must be on disk before the server confirms it.
        "synchronous_commit": "on",
        "row_security": "on",
        "idle_session_timeout": "0",
        "idle_in_transaction_session_timeout": "60s",
    }
)
"""The settings that are the same for all; the two time-outs depend on who connects."""
VERSION_17 = 17_00_00
SINCE_17: Mapping[str, str] = MappingProxyType({"transaction_timeout": "0"})

BEGIN: LiteralString = "begin isolation level read committed read write not deferrable"
COMMIT: LiteralString = "commit"
# Sent first and alone: a time-out of a millisecond leaves no time for more.
NO_TIMEOUT: LiteralString = "set statement_timeout = 0"
NO_TIMEOUT_HERE: LiteralString = "set local statement_timeout = 0"
WHOSE: LiteralString = (
    "begin; set local statement_timeout = 0; select pg_backend_pid() as pid; commit"
)
"""In one message, so that a pooler gives it one server connection."""
# pg_catalog is named, because an operator's search path may put other schemas before it.
PIN: LiteralString = (
    "select pg_catalog.set_config(s.name, s.value, $3)"
    " from unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) as s (name, value)"
)

AT_CONNECT: Mapping[str, Any] = MappingProxyType(
    {
        "connect_timeout": 10,
        # Keepalives find a peer that has vanished. They are libpq's own, so that any pooler
        # takes them.
        "keepalives": 1,
        "keepalives_idle": 10,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
        # Every pooler accepts this one, and the driver decodes text by it.
        "client_encoding": "utf8",
    }
)


def pins(
    conn: psycopg.AsyncConnection[Any] | psycopg.Connection[Any],
    *,
    lock_timeout: timedelta = LOCK_TIMEOUT,
    statement_timeout: timedelta = STATEMENT_TIMEOUT,
) -> tuple[list[str], list[str]]:
    """Return the names and values of all settings for this server's version."""
    values = {
        **PINNED,
        **(SINCE_17 if conn.info.server_version >= VERSION_17 else {}),
        "lock_timeout": f"{lock_timeout / timedelta(milliseconds=1):.0f}ms",
        "statement_timeout": f"{statement_timeout / timedelta(milliseconds=1):.0f}ms",
    }
    return list(values), list(values.values())


async def is_ours_alone(conn: psycopg.AsyncConnection[Any]) -> bool:
    """Whether the server process is still the one that answered when we connected.

    Behind a pooler it may be another process each time, whatever the port.
    """
    cursor = await conn.execute(WHOSE)
    while cursor.description is None and cursor.nextset():
        pass
    row: Any = await cursor.fetchone()
    pid = row["pid"] if isinstance(row, dict) else row[0]
    return bool(pid == conn.info.backend_pid)


async def pin(conn: psycopg.AsyncConnection[Any], **timeouts: timedelta) -> None:
    """Pin the session of a connection that no other client shares."""
    await conn.execute(NO_TIMEOUT)
    cursor = psycopg.AsyncRawCursor(conn)
    await cursor.execute(PIN, [*pins(conn, **timeouts), False])


def pin_transaction(conn: psycopg.Connection[Any], **timeouts: timedelta) -> None:
    """Pin the transaction that has just begun, on a connection of any kind."""
    conn.execute(NO_TIMEOUT_HERE)
    psycopg.RawCursor(conn).execute(PIN, [*pins(conn, **timeouts), True])


def read_committed(conn: psycopg.Connection[Any]) -> None:
    """Give every transaction of this connection our isolation level, whatever the role's is."""
    conn.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    conn.read_only = False
    conn.deferrable = False
