"""Postgres cut, restarted, frozen, full, pooled, refusing: nothing lost, nothing twice.

Real servers and real sockets; the worker is never restarted.
"""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from tests.conftest import Database
from tests.support.poolers import PGBOUNCER, QUICK, audit, pgbouncer
from tests.support.proxy import proxy
from tests.support.watching import ENDED, until_true, watch
from tests.support.world import PATIENCE, World, hearing, many, recorded
from vidgen_worker.database.migrate import migrate
from vidgen_worker.sandbox.control import RunwayControl, StorageControl
from vidgen_worker.sandbox.postgres.server import EmbeddedPostgres
from vidgen_worker.sandbox.serving import BackgroundServer
from vidgen_worker.sandbox.supabase.bootstrap import bootstrap
from vidgen_worker.sandbox.supabase.storage import StorageDouble
from vidgen_worker.telemetry import events

STATEMENTS = 4
"""Of one stage, that write its checkpoint: begun, answered, ended, stored."""


@pytest.mark.slow
async def test_connections_cut_all_the_time(world: World) -> None:
    """Every connection of ours terminated, again and again, at whatever statement it is."""
    watch(world)
    many(world, 20, "[[slow 500ms]] ")
    cuts = 0
    with recorded() as heard:
        async with world.worker(**QUICK):
            ended = asyncio.create_task(until_true(world, ENDED))
            while not ended.done() and cuts < 30:
                await asyncio.to_thread(
                    world.sql,
                    "select pg_terminate_backend(pid) from pg_stat_activity "
                    "where application_name = 'vidgen-worker' and datname = current_database()",
                )
                cuts += 1
                await asyncio.wait({ended}, timeout=0.2)
            await ended
    assert cuts > 5
    assert any(isinstance(event, events.DatabaseAway) for event in heard)
    audit(world, 20)


@pytest.mark.parametrize("how", ["cut", "freeze"])
@pytest.mark.slow
async def test_away_while_50_tasks_end(world: World, how: str) -> None:
    """Away for five leases while they end: 50 written once, 0 twice, 0 stuck."""
    watch(world)
    world.runway.set(concurrency=50)
    tasks = many(world, 50, "[[slow 4s]] ")
    async with proxy(world.database.url) as between:  # noqa: SIM117 - one needs the other
        async with world.worker(**QUICK, DATABASE_URL=between.url) as worker:
            await until_true(
                world, "select count(*) = 50 from vidgen.checkpoints where state = 'generating'"
            )
            getattr(between, how)()
            await _away(worker.process.life.lease.held, leases=5)
            assert world.runway.generations(state="RUNNING") == []
            between.mend()
            await until_true(world, ENDED)
    audit(world, 50)
    once = world.sql("select id from video_generation_tasks where attempt = 1")
    assert len(once) == len(tasks)


async def _away(held: object, leases: int) -> None:
    """This many leases of a second, each of them lost."""
    assert callable(held)
    loop = asyncio.get_running_loop()
    end = loop.time() + leases
    while loop.time() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.05)  # the length of the outage is what is tested
    assert not held()


async def test_a_slow_network_changes_nothing(world: World) -> None:
    """100 ms for every answer."""
    watch(world)
    many(world, 5)
    async with proxy(world.database.url) as between:
        between.delay = 0.1
        async with world.worker(**QUICK, DATABASE_URL=between.url):
            await until_true(world, ENDED)
    audit(world, 5)


async def test_a_pool_of_two_connections_for_fifty_tasks(world: World) -> None:
    """The statements wait for each other, and the heartbeat for none."""
    watch(world)
    many(world, 50)
    with recorded() as heard:
        async with world.worker(**QUICK, VIDGEN_DATABASE_POOL="2"):
            await until_true(world, ENDED)
    assert not any(isinstance(event, events.WorkerDeclaredDead) for event in heard)
    audit(world, 50)


@pytest.mark.parametrize("sqlstate", ["40001", "40P01", "55P03", "57014", "25006"])
async def test_statements_are_repeated_after_transient_errors(world: World, sqlstate: str) -> None:
    """Serialization, deadlock, lock and statement time-outs, a failover: each three times."""
    watch(world)
    tasks = many(world, 3)
    with world.admin() as conn:
        for task in tasks:
            # It keeps its number when all else is rolled back. One per task: with one for all of
            # them, who passes is a matter of luck, and of minutes.
            conn.execute(
                sql.SQL("create sequence public.{}").format(sql.Identifier(f"errors_of_{task}"))
            )
        conn.execute(
            sql.SQL("""
            create function public.make_errors() returns trigger language plpgsql
            security definer as $$
            begin
              if nextval(format('public.%I', 'errors_of_' || new.task_id)) % 4 <> 0 then
                raise exception 'made by the test' using errcode = {};
              end if;
              return new;
            end $$""").format(sql.Literal(sqlstate))
        )
        # Each statement of the pipeline writes its checkpoint once.
        conn.execute(
            "create trigger make_errors before insert or update on vidgen.checkpoints "
            "for each row execute function public.make_errors()"
        )
    async with world.worker(**QUICK):
        await until_true(world, ENDED)
    audit(world, 3)
    sent = world.sql("select last_value from pg_sequences where sequencename like 'errors_of_%%'")
    assert [row["last_value"] for row in sent] == [2 * STATEMENTS * 4] * 3


# A server of its own, to be restarted.


@asynccontextmanager
async def own_world(
    runway: RunwayControl, folder: Path
) -> AsyncIterator[tuple[World, EmbeddedPostgres]]:
    """A world on a PostgreSQL that may be stopped."""
    with EmbeddedPostgres.start(durable=False) as server:
        bootstrap(server.admin_url())
        migrate(server.url())
        double = StorageDouble(folder / "own-storage", server.admin_url())
        with BackgroundServer(double.app) as storage:
            database = Database("postgres", server.url(), server.admin_url())
            stored = StorageControl(storage.url, double.keys)
            with closing(World(database, runway, stored)) as world:
                yield world, server


@pytest.mark.slow
async def test_postgres_restarted_under_load(runway: RunwayControl, tmp_path: Path) -> None:
    """A fast restart, then a crash: the worker goes on by itself."""
    async with own_world(runway, tmp_path) as (world, server):
        watch(world)
        many(world, 40, "[[slow 1s]] ")
        async with world.worker(**QUICK):
            await until_true(
                world, "select exists (select from vidgen.checkpoints where state = 'generating')"
            )
            await asyncio.to_thread(server.restart)
            await until_true(
                world, "select exists (select from vidgen.checkpoints where state = 'done')"
            )
            server.kill()
            await asyncio.to_thread(server.restart)
            await until_true(world, ENDED)
        audit(world, 40)


@pytest.mark.skipif(PGBOUNCER is None, reason="needs Debian's package pgbouncer")
@pytest.mark.slow
async def test_behind_a_transaction_pooler(world: World, tmp_path: Path) -> None:
    """Everything works; LISTEN is found not to, and said so; the queue is polled."""
    watch(world)
    folder = Path("/tmp") / f"vidgen-pgbouncer-{os.getpid()}-{tmp_path.name}"  # noqa: S108 - nobody's
    try:
        async with pgbouncer(world.database.url, folder) as url:
            many(world, 20)
            async with hearing(events.ListenChanged) as changed:
                with recorded() as heard:
                    async with world.worker(**QUICK, DATABASE_URL=url) as worker:
                        await until_true(world, ENDED)
                        async with asyncio.timeout(PATIENCE):
                            await changed.wait()
                        pools = worker.process.databases
                        # Prepared by one client, a name would be carried out for another.
                        assert not any(
                            one._prepare for one in (pools.work, pools.claims, pools.pulse)
                        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    said = [event for event in heard if isinstance(event, events.ListenChanged)]
    assert [event.listening for event in said] == [False]
    assert "polled" in said[0].text()
    assert not any(isinstance(event, events.LoopFailed) for event in heard)
    audit(world, 20)


# Credentials.


def refused(url: str) -> str:
    """The same URL with a wrong password."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{parts.username}:wrong@{host}").geturl()


def test_credentials_refused_at_start(world: World, tmp_path: Path) -> None:
    """A sentence that says what to do, an exit code, no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "vidgen_worker", "run"],
        env=os.environ | world.env(DATABASE_URL=refused(world.database.url)),
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 69
    assert "password" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "wrong" not in done.stderr.replace("is wrong", "")


async def test_credentials_refused_after_an_earlier_success(
    runway: RunwayControl, tmp_path: Path
) -> None:
    """A project that wakes up answers so: the connection is tried again, seldom, until it works."""
    async with own_world(runway, tmp_path) as (world, server):
        watch(world)
        with recorded() as heard:
            async with world.worker(**QUICK) as worker:
                task = many(world, 1, "[[slow 800ms]] ")[0]
                await until_true(
                    world,
                    "select exists (select from vidgen.checkpoints where state = 'generating')",
                )
                world.sql("alter role postgres password 'another'")
                world.sql(
                    "select pg_terminate_backend(pid) from pg_stat_activity "
                    "where application_name = 'vidgen-worker'"
                )
                async with asyncio.timeout(PATIENCE):
                    while worker.process.life.lease.held():  # noqa: ASYNC110 - nobody tells
                        await asyncio.sleep(0.02)  # a bounded wait for the lease to run out
                with psycopg.connect(world.database.admin_url, autocommit=True) as conn:
                    conn.execute(sql.SQL("alter role postgres password {}").format(server.password))
                row = await world.until(task)
        assert (row["status"], row["attempt"]) == ("completed", 1)
        assert not any(isinstance(event, events.LoopFailed) for event in heard)
