"""Settings of role, database and poolers do not change the meaning of our statements."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from psycopg import sql

from tests.conftest import Database as Target
from tests.support.poolers import PGBOUNCER, QUICK, audit, pgbouncer
from tests.support.watching import ENDED, until_true, watch
from tests.support.world import World, many, recorded
from vidgen_worker.client import database as client
from vidgen_worker.database import sessions
from vidgen_worker.database.migrate import migrate, pending
from vidgen_worker.database.pool import Database, Databases
from vidgen_worker.database.trouble import LockedError
from vidgen_worker.telemetry import events

ODD: dict[LiteralString, str] = {
    "datestyle": "SQL, DMY",
    "intervalstyle": "sql_standard",
    "timezone": "Pacific/Chatham",
    "search_path": "nowhere",
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
    "lock_timeout": "1ms",
    "statement_timeout": "10ms",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "standard_conforming_strings": "off",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "synchronous_commit": "off",
    "idle_session_timeout": "1s",
    "row_security": "off",
}
"""Every setting that a role may change for itself, each with a harmful value."""
needs_pgbouncer = pytest.mark.skipif(PGBOUNCER is None, reason="needs Debian's package pgbouncer")
WAYS = ["directly", pytest.param("pooled", marks=needs_pgbouncer)]


def make_odd(target: Target, **settings: str) -> None:
    """Set all of it for role `postgres` in this database."""
    with psycopg.connect(target.admin_url, autocommit=True) as conn:
        for name, value in (settings or ODD).items():
            conn.execute(
                sql.SQL("alter role postgres in database {} set {} = {}").format(
                    sql.Identifier(target.name), sql.Identifier(name),
                    sql.SQL(value) if name == "search_path" else sql.Literal(value),
                )
            )  # fmt: skip


@asynccontextmanager
async def reached(target: Target, how: str, folder: Path) -> AsyncIterator[str]:
    """The database's URL, directly or by way of PgBouncer in transaction mode."""
    if how == "directly":
        yield target.url
        return
    place = Path("/tmp") / f"vidgen-sessions-{os.getpid()}-{folder.name}"  # noqa: S108 - nobody's
    try:
        async with pgbouncer(target.url, place) as url:
            yield url
    finally:
        shutil.rmtree(place, ignore_errors=True)


async def said(database: Database, name: str) -> str:
    """The value of a setting inside a statement of ours."""
    conn = await database._pool.getconn()
    try:
        if database._prepare:
            cursor = await conn.execute("select current_setting($1) as value", [name])
        else:
            await conn.execute(sessions.BEGIN)
            await conn.execute(sessions.NO_TIMEOUT_HERE)
            await conn.execute(
                sessions.PIN, [*sessions.pins(conn, lock_timeout=database._lock_timeout), True]
            )
            cursor = await conn.execute("select current_setting($1) as value", [name])
        row = await cursor.fetchone()
        assert row is not None
        await conn.rollback()
        return str(row["value"])
    finally:
        await database._pool.putconn(conn)


@pytest.mark.parametrize("how", WAYS)
async def test_a_pipeline_runs_whatever_the_role_s_settings_are(
    world: World, tmp_path: Path, how: str
) -> None:
    watch(world)
    make_odd(world.database)
    async with reached(world.database, how, tmp_path) as url:
        many(world, 3, "[[slow 300ms]] ")
        with recorded() as heard:
            async with world.worker(**QUICK, DATABASE_URL=url):
                await until_true(world, ENDED)
    assert not [event for event in heard if isinstance(event, events.LoopFailed)]
    audit(world, 3)


@pytest.mark.parametrize("how", WAYS)
async def test_every_pinned_setting_holds_on_every_pool(
    database: Target, tmp_path: Path, how: str
) -> None:
    make_odd(database)
    async with reached(database, how, tmp_path) as url:
        pools = Databases(url, 2, timedelta(seconds=5))
        await pools.open()
        try:
            for pool in (pools.work, pools.claims, pools.pulse):
                for name, value in sessions.PINNED.items():
                    is_there = await said(pool, name)
                    assert is_there.replace("1min", "60s") == value, name
                assert await said(pool, "lock_timeout") == "200ms"
                assert await said(pool, "statement_timeout") == "20s"
        finally:
            await pools.close()


@pytest.mark.parametrize("name", ODD)
def test_no_single_setting_breaks_a_verb_of_the_client(database: Target, name: str) -> None:
    make_odd(database, **{name: ODD[name]})
    with client.open_database(database.url) as opened:
        assert (opened.row("schema_version") or {})["schema_version"]
    assert pending(database.url) == []


@pytest.mark.parametrize("how", WAYS)
async def test_the_migrations_run_whatever_the_role_s_settings_are(
    bare_database: Target, tmp_path: Path, how: str
) -> None:
    make_odd(bare_database)
    async with reached(bare_database, how, tmp_path) as url:
        applied = await asyncio.to_thread(migrate, url)
        assert applied
        assert await asyncio.to_thread(pending, url) == []


@pytest.mark.parametrize("how", WAYS)
async def test_no_wait_for_a_lock_is_longer_than_was_pinned(
    database: Target, tmp_path: Path, how: str
) -> None:
    """For all settings of the role, and on every server connection of the pooler."""
    make_odd(database, lock_timeout="0", statement_timeout="0")
    async with reached(database, how, tmp_path) as url:
        pools = Databases(url, 2, timedelta(seconds=5))
        await pools.open()
        try:
            with psycopg.connect(database.admin_url) as client:
                client.execute("select from vidgen.settings for update")
                for pool in (pools.work, pools.claims, pools.pulse):
                    with pytest.raises(LockedError):
                        await pool.once("share_buckets", images_bucket="a", videos_bucket="b")
            await pools.work.once("share_buckets", images_bucket="a", videos_bucket="b")
        finally:
            await pools.close()


async def test_no_setting_is_sent_to_the_session_of_a_pooler(
    database: Target, tmp_path: Path
) -> None:
    """Our settings must not reach another client on the same server connection."""
    if PGBOUNCER is None:
        pytest.skip("needs Debian's package pgbouncer")
    make_odd(database)
    async with reached(database, "pooled", tmp_path) as url:
        pool = Database(url, size=2)
        await pool.open()
        try:
            await pool.once("read_gates", provider="runway", scopes=["*", "key"])
            async with await psycopg.AsyncConnection.connect(url, autocommit=True) as other:
                cursor = await other.execute(
                    "begin; set local statement_timeout = 0; show intervalstyle; commit"
                )
                while cursor.description is None:
                    assert cursor.nextset()
                assert await cursor.fetchone() == ("sql_standard",)
        finally:
            await pool.close()
