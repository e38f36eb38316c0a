"""Applies `migrations/`, interchangeably with the Supabase CLI.

Each file is one transaction, recorded in supabase_migrations.schema_migrations exactly where the
CLI records it, so that `vidgen-worker migrate` and `supabase db push` may follow each other in any
order. Files are immutable once released; nothing here ever goes backwards.
"""

import time
from dataclasses import dataclass
from datetime import timedelta
from importlib import resources
from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg import errors

from vidgen_worker.database import sessions

LOCK_TIMEOUT = timedelta(seconds=5)
"""The longest wait of a migration for a lock. All later statements on the table wait behind it, so
after this time it gives way, and the whole file is applied again."""
LOCK_PAUSE = timedelta(seconds=5)
LOCK_TRIES = 12
# One migration at a time, in every connection mode. An advisory lock would not do: any role may
# take it. This lock also stops the Supabase CLI, which writes here as well, but no reader.
_LOCK: LiteralString = (
    "lock table supabase_migrations.schema_migrations in share row exclusive mode"
)
_BOOKKEEPING: tuple[LiteralString, ...] = (
    "create schema if not exists supabase_migrations",
    """create table if not exists supabase_migrations.schema_migrations (
      version text not null primary key
    )""",
    "alter table supabase_migrations.schema_migrations add column if not exists statements text[]",
    "alter table supabase_migrations.schema_migrations add column if not exists name text",
)


class StrangeSchemaError(RuntimeError):
    """The database has a schema vidgen, but no record of the migration that creates it."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: `<version>_<name>.sql`."""

    version: str
    name: str
    sql: LiteralString


def migrations() -> list[Migration]:
    """All migrations in order: from the installed package, else from the checkout."""
    packaged = Path(str(resources.files("vidgen_worker"))) / "migrations"
    folder = packaged if packaged.is_dir() else packaged.parent.parent / "migrations"
    files = sorted(folder.glob("[0-9]*_*.sql"))
    if not files:
        msg = f"no migrations in {folder}: the installation is incomplete, install the wheel again"
        raise FileNotFoundError(msg)
    found = []
    for file in files:
        version, name = file.stem.split("_", 1)
        found.append(Migration(version, name, file.read_text(encoding="utf-8")))
    return found


def migrate(url: str) -> list[str]:
    """Apply the missing migrations; return their file names without ending.

    Raises psycopg.Error when a file fails, or waits for locks too long: that file is then undone as
    a whole. Raises StrangeSchemaError, and changes nothing, where other files made the schema.
    """
    with _connected(url) as conn:
        return [
            f"{migration.version}_{migration.name}"
            for migration in migrations()
            if _apply_between_locks(conn, migration)
        ]


def _apply_between_locks(conn: psycopg.Connection, migration: Migration) -> bool:
    """Apply one file, again after a lock; False when it has been applied already."""
    for _ in range(LOCK_TRIES - 1):
        try:
            return _apply(conn, migration)
        except errors.LockNotAvailable:
            time.sleep(LOCK_PAUSE.total_seconds())
    return _apply(conn, migration)


def _apply(conn: psycopg.Connection, migration: Migration) -> bool:
    with conn.transaction():
        sessions.pin_transaction(conn, lock_timeout=LOCK_TIMEOUT, statement_timeout=timedelta(0))
        recorded = _recorded_alone(conn)
        if migration.version in recorded:
            return False
        _refuse_a_strange_schema(conn, recorded)
        conn.execute(migration.sql)
        conn.execute(
            "insert into supabase_migrations.schema_migrations (version, statements, name) "
            "values (%s, %s, %s)",
            (migration.version, [migration.sql], migration.name),
        )
    return True


def _refuse_a_strange_schema(conn: psycopg.Connection, recorded: set[str]) -> None:
    if migrations()[0].version in recorded:
        return
    row = conn.execute("select to_regnamespace('vidgen') is not null").fetchone()
    if row == (True,):
        msg = (
            "This database has a schema vidgen from before version 1.0, which no migration leads "
            "on from: begin with an empty database (supabase db reset, or a new project), and copy "
            "the rows of public.user_credits that you want to keep. Nothing was changed."
        )
        raise StrangeSchemaError(msg)


def pending(url: str) -> list[str]:
    """File names, without ending, of the migrations that `migrate` would apply."""
    with _connected(url) as conn, conn.transaction():
        sessions.pin_transaction(conn)
        recorded = _recorded(conn)
    return [f"{m.version}_{m.name}" for m in migrations() if m.version not in recorded]


def _connected(url: str) -> psycopg.Connection:
    conn = psycopg.connect(url, autocommit=True, prepare_threshold=None, **sessions.AT_CONNECT)
    sessions.read_committed(conn)
    return conn


def _recorded_alone(conn: psycopg.Connection) -> set[str]:
    """Lock out other migrations until this transaction ends; return the applied versions."""
    try:
        with conn.transaction():
            keeps = conn.execute(
                "select count(*) = 3 from pg_catalog.pg_attribute as a"
                " where a.attrelid = to_regclass('supabase_migrations.schema_migrations')"
                "   and a.attname in ('version', 'statements', 'name') and not a.attisdropped"
            ).fetchone()
            if keeps != (True,):
                for statement in _BOOKKEEPING:
                    conn.execute(statement)
    except (errors.UniqueViolation, errors.DuplicateSchema, errors.DuplicateTable):
        # Another process, which began at the same time, has just created them.
        pass
    conn.execute(_LOCK)
    return _recorded(conn)


def _recorded(conn: psycopg.Connection) -> set[str]:
    row = conn.execute(
        "select to_regclass('supabase_migrations.schema_migrations') is not null"
    ).fetchone()
    if row is None or not row[0]:
        return set()
    rows = conn.execute("select version from supabase_migrations.schema_migrations").fetchall()
    return {version for (version,) in rows}
