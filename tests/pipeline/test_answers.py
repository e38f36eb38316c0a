"""No error of any sort between a paid POST and its record drops the id that it brought."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from psycopg import errors

from tests.support.poolers import QUICK, audit
from tests.support.proxy import proxy
from tests.support.watching import ENDED, frozen, until, until_true, watch
from tests.support.world import PATIENCE, World, forget, hearing, many, posts, recorded, submissions
from vidgen_worker.database import pool as db
from vidgen_worker.database.outage import Outage
from vidgen_worker.database.pool import Database
from vidgen_worker.database.trouble import (
    DatabaseUnavailableError,
    StatementStuckError,
    Trouble,
    trouble_of,
)
from vidgen_worker.providers.runway.submitter import Submitter
from vidgen_worker.telemetry import events

STATES = ("submitting", "generating", "storing", "done")
"""Each is written by one statement: before the POST, after its answer, at its end, stored."""

CLASSES = sorted({state[:2] for state in errors._sqlcodes} - {"00", "01", "02"})
"""Every class of SQLSTATE that a statement can raise."""
STATES_OF_NOTE = ("57014", "57P01", "57P05", "25P03", "25P04", "25006", "55P03", "53100", "54000")

POOLERS = (
    "(ECHECKOUTTIMEOUT) unable to check out connection from the pool after 15000ms",
    "(EDBHANDLEREXITED) DbHandler exited. Check logs for more information",
    "(EDBHANDLEREXITED) connection to database closed. Check logs for more information",
    "(EMAXCONNSESSION) max clients reached in session mode",
    "(EPOOLTERMINATING) pool terminating: the database is restarting",
    "(ECIRCUITBREAKER) too many failed attempts",
    "Internal error (authenticated): :timeout",
)

_RAISE = """
create table public.to_raise (task_id uuid primary key, sqlstate text, message text, times integer);
create function public.raise_it() returns trigger language plpgsql security definer as $$
declare
  it public.to_raise;
begin
  select * into it from public.to_raise where task_id = new.task_id;
  -- A sequence keeps its number when all else is rolled back: one per task and state.
  if it.task_id is not null and nextval(format('public.tries_%s_%s',
       replace(new.task_id::text, '-', ''), new.state)) <= it.times then
    raise exception '%', it.message using errcode = it.sqlstate;
  end if;
  return new;
end $$;
create trigger raise_it before insert or update on vidgen.checkpoints
  for each row execute function public.raise_it();
"""


def to_raise(world: World, task: UUID, sqlstate: str, message: str, times: int = 1) -> None:
    """Let every statement of the task that writes a checkpoint fail so often first."""
    with world.admin() as conn:
        for state in STATES:
            name = psycopg.sql.Identifier(f"tries_{task.hex}_{state}")
            conn.execute(psycopg.sql.SQL("create sequence public.{}").format(name))
        conn.execute(
            "insert into public.to_raise values (%s, %s, %s, %s)", (task, sqlstate, message, times)
        )


@pytest.mark.parametrize("part", range(4))
async def test_each_class_of_error_once_at_every_statement_between_post_and_record(
    world: World, part: int
) -> None:
    watch(world)
    with world.admin() as conn:
        conn.execute(_RAISE)
    raised = [*(f"{name}000" for name in CLASSES), *STATES_OF_NOTE][part::4]
    for task, sqlstate in zip(many(world, len(raised)), raised, strict=True):
        to_raise(world, task, sqlstate, "made by the test")
    async with world.worker(**QUICK):
        await until_true(world, ENDED)
    audit(world, len(raised))


async def test_what_a_pooler_says_three_times_at_every_statement(world: World) -> None:
    watch(world)
    with world.admin() as conn:
        conn.execute(_RAISE)
    for task, message in zip(many(world, len(POOLERS)), POOLERS, strict=True):
        to_raise(world, task, "XX000", message, times=3)
    async with world.worker(**QUICK):
        await until_true(world, ENDED)
    audit(world, len(POOLERS))


@pytest.mark.parametrize("message", POOLERS)
def test_the_words_of_a_pooler_are_no_error_of_the_statement(message: str) -> None:
    assert trouble_of(errors.InternalError_(message)) is Trouble.AWAY


def test_any_other_internal_error_is_not_known_to_pass() -> None:
    assert trouble_of(errors.InternalError_("cache lookup failed for type 1")) is Trouble.UNKNOWN


async def test_an_error_that_stays_is_said_with_the_id_and_the_id_written_when_it_can_be(
    world: World,
) -> None:
    """The attempt ends meanwhile; the next one attaches to what was kept."""
    watch(world)
    with world.admin() as conn:
        conn.execute(
            "create function public.refuse() returns trigger language plpgsql as"
            " $$ begin raise exception 'made by the test'; end $$"
        )
        conn.execute(
            "create trigger refuse before update on vidgen.submissions for each row"
            " when (new.answer is distinct from old.answer) execute function public.refuse()"
        )
    (task,) = many(world, 1)
    with recorded() as heard:
        async with world.worker(**QUICK):
            async with hearing(events.TaskRequeued) as requeued:
                await requeued.wait()
            said = [event for event in heard if isinstance(event, events.AnswerUnrecorded)]
            (generation,) = world.runway.generations()
            assert str(said[0].generation) == generation["id"]
            world.sql("drop trigger refuse on vidgen.submissions")
            row = await world.until(task)
    assert (row["status"], row["failures"]) == ("completed", 1)
    audit(world, 1)


async def test_an_adapter_that_raises_anything_counts_as_possibly_paid(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def submit(*_: object) -> None:
        raise RuntimeError("nobody expected this")

    monkeypatch.setattr(Submitter, "submit", submit)
    user = world.user(100)
    with recorded() as heard:
        async with world.worker():
            row = await world.until(world.order(user, world.scene(user)))
    assert row["error_code"] == "SUBMISSION_UNKNOWN"
    assert [s["answer"] for s in submissions(world)] == ["unknown", "unknown"]
    assert any(isinstance(event, events.UnexpectedError) for event in heard)


# A process that stands still in the POST.


@pytest.mark.slow
@pytest.mark.parametrize("counted", [False, True], ids=["a successor waits", "it has paid anew"])
async def test_frozen_beyond_the_lease_the_answer_is_attached_or_ended_on_waking(
    world: World, tmp_path: Path, *, counted: bool
) -> None:
    user = world.user(100)
    log = tmp_path / "worker.log"
    settings = {"VIDGEN_SUBMIT_TIMEOUT": "20s" if not counted else "2s", "VIDGEN_LEASE": "1s"}
    with world.process(log, **settings) as process:
        scene = world.scene(user, image_prompt="[[late 1s]] [[slow 30s x1]] a bottle")
        task = world.order(user, scene)
        await frozen(world, process.pid, 1.5)
        async with world.worker(**settings):
            async with hearing(events.StageResumed) as resumed:
                await resumed.wait()
            if counted:
                forget(world)
                await until(world, lambda: posts(world)[0] == 2)
            process.send_signal(signal.SIGCONT)
            await until(world, lambda: submissions(world)[0]["answer"] == "generation")
            if counted:
                await until(world, lambda: submissions(world)[0]["ended_state"] == "cancelled")
            else:
                await until(
                    world, lambda: bool(world.sql(
                        "select state from vidgen.checkpoints where state = 'generating'"
                    ))
                )  # fmt: skip
    assert posts(world)[0] == (2 if counted else 1), log.read_text()
    assert world.task(task)["status"] != "failed"


# Registration, loops, statements that stay stuck.


@pytest.mark.parametrize("sqlstate", ["XX000", "P0001", "25P04"])
async def test_an_error_at_registration_ends_nothing(world: World, sqlstate: str) -> None:
    watch(world)
    with world.admin() as conn:
        conn.execute("create sequence public.tries")
        conn.execute(
            psycopg.sql.SQL(
                "create function public.refuse() returns trigger language plpgsql security definer"
                " as $$ begin if nextval('public.tries') <= 3 then raise exception 'made by the"
                " test' using errcode = {}; end if; return new; end $$"
            ).format(psycopg.sql.Literal(sqlstate))
        )
        conn.execute(
            "create trigger refuse before insert on vidgen.workers"
            " for each row execute function public.refuse()"
        )
    async with world.worker(**QUICK):
        many(world, 1)
        await until_true(world, ENDED)
    audit(world, 1)


async def test_a_lock_that_an_application_holds_costs_one_statement_and_no_other(
    world: World,
) -> None:
    watch(world)
    async with world.worker() as worker:
        locked, free = many(world, 2, "[[slow 2s]] ")
        await until_true(
            world, "select count(*) = 2 from vidgen.checkpoints where state = 'generating'"
        )
        with psycopg.connect(world.database.admin_url) as holding:
            holding.execute(
                "select from video_generation_tasks where id = %s for update", (locked,)
            )
            assert (await world.until(free))["status"] == "completed"
            assert worker.process.life.lease.held()
        # Set aside or not, by how long that took: each stage is paid once.
        assert (await world.until(locked))["status"] == "completed"
        assert len(world.sql("select id from vidgen.submissions where task_id = %s", locked)) == 2


async def test_a_statement_that_never_passes_while_others_do_is_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only then: alone it might be an outage, which may last as long as it likes."""
    monkeypatch.setattr(db, "STUCK_TRIES", 3)
    with world.admin() as conn:
        conn.execute(
            "create function public.refuse() returns trigger language plpgsql as"
            " $$ begin raise exception 'made by the test' using errcode = '40001'; end $$"
        )
        conn.execute(
            "create trigger refuse before insert on vidgen.gates"
            " for each row execute function public.refuse()"
        )
    database = Database(world.database.url)
    await database.open()
    try:
        with recorded() as heard:
            closing = asyncio.create_task(database.run(
                "close_gate", provider="runway", scope="default", model="*", reason="TEST",
                message="", details="", probe=world.settings().vidgen_gate_probe,
            ))  # fmt: skip
            async with asyncio.timeout(PATIENCE):
                # One line for the first try, one for the fifth.
                while sum(isinstance(e, events.DatabaseTrouble) for e in heard) < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)  # a bounded wait for its next tries
                assert not closing.done()
                while not closing.done():
                    await database.once("read_gates", provider="runway", scopes=["default"])
                    await asyncio.sleep(0.02)  # a bounded wait for its next tries
        with pytest.raises(StatementStuckError, match="while the database answered others"):
            await closing
    finally:
        await database.close()


async def test_a_trouble_that_can_not_be_relieved_changes_no_end(world: World) -> None:
    """The clip is stored and charged by then, and its task completed: that is what is told."""
    with world.admin() as conn:
        conn.execute(
            "create function public.refuse() returns trigger language plpgsql as"
            " $$ begin raise exception 'made by the test' using errcode = 'P0001'; end $$"
        )
        conn.execute(
            "create trigger refuse before delete on vidgen.troubles"
            " for each row execute function public.refuse()"
        )
        conn.execute(
            "insert into vidgen.troubles (provider, scope, part, model, reason, message, details,"
            " tasks, proven_users, new_users)"
            " select 'runway', 'default', 'storage', %s, 'TEST', '', '', '{}', '{}', '{}'",
            (world.settings().vidgen_video_model,),
        )  # fmt: skip
    (task,) = many(world, 1)
    with recorded() as heard:
        async with world.worker(), hearing(events.TaskCompleted) as completed:
            assert (await world.until(task))["status"] == "completed"
            async with asyncio.timeout(PATIENCE):
                await completed.wait()
    assert [e.query for e in heard if isinstance(e, events.DatabaseTrouble)] == ["relieve"]
    assert not any(isinstance(e, events.UnexpectedError | events.LeaseLost) for e in heard)


# Outages.


async def test_an_outage_is_said_once_with_what_to_do_and_its_end_once(world: World) -> None:
    watch(world)
    async with proxy(world.database.url) as between:
        with recorded() as heard:
            # With a lease of a second a heartbeat of 0.3 s is late, which a busy machine makes it.
            patient = QUICK | {"VIDGEN_LEASE": "1m", "DATABASE_URL": between.url}
            async with world.worker(**patient) as worker:
                await worker.process.listener.proved.wait()
                between.cut()
                await until_away(worker.process.databases.outage, away=True)
                end = time.monotonic() + 5
                while time.monotonic() < end:  # noqa: ASYNC110 - many tries are what is tested
                    await asyncio.sleep(0.05)
                between.mend()
                await until_away(worker.process.databases.outage, away=False)
                many(world, 1)
                await until_true(world, ENDED)
    away = [event for event in heard if isinstance(event, events.DatabaseAway)]
    assert len(away) == 1
    assert "Can't connect to the database at postgres@" in away[0].error
    assert "\n" not in away[0].error
    assert len([event for event in heard if isinstance(event, events.DatabaseBack)]) == 1
    assert not [event for event in heard if isinstance(event, events.DatabaseTrouble)]
    said = [event.listening for event in heard if isinstance(event, events.ListenChanged)]
    assert said == [True]


async def test_a_connection_that_broke_in_an_outage_is_no_news_when_it_is_over(
    world: World,
) -> None:
    """It lay in its pool all the time, and is met broken by the first who uses it."""
    async with proxy(world.database.url) as between:
        outage = Outage(between.url)
        used, left = (Database(between.url, size=1, outage=outage) for _ in range(2))
        async with opened(used, left):
            with recorded() as heard:
                for one in (used, left):
                    await one.once("read_audit")
                between.cut()
                with pytest.raises(DatabaseUnavailableError):
                    await used.once("read_audit")
                between.mend()
                await used.run("read_audit")
                assert not outage.away
                with pytest.raises(DatabaseUnavailableError) as met:
                    await left.once("read_audit")
                assert met.value.told
                await left.run("read_audit")
    said = [type(e) for e in heard if isinstance(e, events.DatabaseAway | events.DatabaseBack)]
    assert said == [events.DatabaseAway, events.DatabaseBack]


async def test_a_connection_that_has_answered_since_an_outage_is_news_again(world: World) -> None:
    """Else a statement that timed out once would silence its connection for good."""
    outage, second = Outage(world.database.url), timedelta(seconds=0.5)
    database = Database(
        world.database.url, size=1, outage=outage, deadline=second, lock_timeout=10 * second
    )
    async with opened(database):
        with recorded() as heard:
            await database.once("read_audit")
            for _ in range(2):
                with world.admin() as holding:
                    holding.autocommit = False
                    holding.execute("lock table vidgen.audited")
                    with pytest.raises(DatabaseUnavailableError) as met:
                        await database.once("read_audit")
                    assert met.value.told
                    holding.rollback()
                for _ in range(2):
                    await database.run("read_audit")
                assert not outage.away
    said = [type(e) for e in heard if isinstance(e, events.DatabaseAway | events.DatabaseBack)]
    assert said == 2 * [events.DatabaseAway, events.DatabaseBack]


@asynccontextmanager
async def opened(*pools: Database) -> AsyncIterator[None]:
    for pool in pools:
        await pool.open()
    try:
        yield
    finally:
        for pool in pools:
            await pool.close()


@pytest.mark.parametrize("how", ["cut", "freeze"])
async def test_an_idle_worker_stops_at_once_while_the_database_is_away(
    world: World, how: str
) -> None:
    async with proxy(world.database.url) as between:
        async with world.worker(DATABASE_URL=between.url) as worker:
            await worker.process.listener.proved.wait()
            getattr(between, how)()
            await until_away(worker.process.databases.outage, away=True)
            began = time.monotonic()
            worker.stop()
        assert time.monotonic() - began < 15


async def until_away(outage: object, *, away: bool) -> None:
    """Wait until the worker has noticed."""
    async with asyncio.timeout(PATIENCE):
        while outage.away is not away:  # type: ignore[attr-defined]  # noqa: ASYNC110
            await asyncio.sleep(0.02)
