"""The end of a worker: drain, deploy, force, and the task that kills every worker it meets.

Workers are processes of their own; the generations go on at the provider, whatever ends here.
"""

import asyncio
import json
import signal
import time
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from tests.support.mortal import ForkServer
from tests.support.proxy import proxy
from tests.support.watching import ENDED, stopped, until_true, watch
from tests.support.world import PATIENCE, World, hearing, many, recorded
from vidgen_worker.telemetry import events
from vidgen_worker.worker.ending import LOOPS_END

# Two hundred POSTs at once take seconds on a busy machine: one that counts as lost is paid again.
QUICK = {"VIDGEN_LEASE": "1s", "VIDGEN_SUBMIT_TIMEOUT": "10s", "VIDGEN_QUEUE_POLL": "50ms"}
TAKES_LONG = {
    "VIDGEN_POLL_INTERVAL": "600ms", "VIDGEN_CONCURRENCY": "250", "VIDGEN_LEASE": "30s",
}  # fmt: skip
MANY = 200


def note_falls(world: World) -> None:
    """Note every time that a user's bar goes back."""
    with world.admin() as conn:
        conn.execute("""
            create table public.falls (task_id uuid, was float8, became float8);
            create function public.note_a_fall() returns trigger language plpgsql
            security definer as $$
            begin
              insert into public.falls values (new.id, old.progress, new.progress);
              return null;
            end $$;
            create trigger note_a_fall after update on public.video_generation_tasks
              for each row when (new.progress < old.progress)
              execute function public.note_a_fall();
        """)


def said(log: Path) -> list[str]:
    """The events of a log, in order."""
    return [json.loads(line)["event"] for line in log.read_text().splitlines() if line[:1] == "{"]


@pytest.mark.slow
async def test_a_deploy_with_200_tasks_in_flight(
    world: World, tmp_path: Path, fork_server: ForkServer
) -> None:
    """SIGTERM: over within a second, nothing paid again, no bar goes back, all end well."""
    watch(world)
    note_falls(world)
    world.runway.set(concurrency=MANY, image_seconds=300)
    # All of one user: more may be lost at once than is usual.
    world.sql("update vidgen.settings set max_unbilled_cost_per_user = 100000")
    tasks = many(world, MANY)
    with fork_server.mortals(tmp_path / "worker.log") as processes:
        old = await processes.start(world.env(**QUICK | TAKES_LONG))
        await until_true(
            world, "select count(*) = %s from vidgen.checkpoints where state = 'generating'", MANY
        )
        before = time.monotonic()
        old.signal(signal.SIGTERM)
        assert await old.ended() == 0
        # One second where the machine is free; on a busy one, long before any lease runs out.
        assert time.monotonic() - before < 10
        waiting = "select count(*) as rows from video_generation_tasks where status = 'pending'"
        assert world.one(waiting)["rows"] == MANY
        assert world.sql("select * from vidgen.workers") == []
        unfinished = [g["state"] for g in world.runway.generations()]
        assert len(unfinished) == MANY
        assert set(unfinished) <= {"THROTTLED", "PENDING", "RUNNING"}
        new = await processes.start(world.env(**QUICK | TAKES_LONG))
        await until_true(
            world,
            "select count(*) = %s from video_generation_tasks "
            "where status = 'processing' and attempt = 2", MANY,
        )  # fmt: skip
        assert len(world.runway.generations()) == MANY
        new.signal(signal.SIGTERM)
        assert await new.ended() == 0
    assert world.sql("select * from falls") == []
    assert len(world.runway.requests()) == MANY
    assert world.books_balance()
    assert len(tasks) == MANY


async def test_resumed_tasks_end_well_and_are_paid_once(
    world: World, tmp_path: Path, fork_server: ForkServer
) -> None:
    """After a deploy in the middle, each stage has one generation and one charge."""
    watch(world)
    note_falls(world)
    many(world, 20, "[[slow 1s]] ")
    environment = QUICK | {"VIDGEN_CONCURRENCY": "20"}
    with fork_server.mortals(tmp_path / "worker.log") as processes:
        for _ in range(2):
            old = await processes.start(world.env(**environment))
            await until_true(
                world, "select exists (select from video_generation_tasks as t "
                "join vidgen.workers as w on w.id = t.worker_id join vidgen.checkpoints as c "
                "on c.task_id = t.id and c.state = 'generating' where w.pid = %s)", old.pid,
            )  # fmt: skip
            old.signal(signal.SIGTERM)
            assert await old.ended() == 0
        async with world.worker(**environment):
            await until_true(world, ENDED)
    assert world.sql("select * from video_generation_tasks where status <> 'completed'") == []
    assert len(world.runway.generations(kind="image")) == 20
    assert len(world.runway.generations(kind="video")) == 20
    assert world.sql("select * from falls") == []
    assert world.books_balance()


async def test_a_drain_lets_the_submit_in_flight_end(
    world: World, tmp_path: Path, fork_server: ForkServer
) -> None:
    """Its answer is recorded before the process ends: the successor attaches to it."""
    watch(world)
    user = world.user()
    task = world.order(user, world.scene(user, image_prompt="[[late 700ms]] x"))
    with fork_server.mortals(tmp_path / "worker.log") as processes:
        old = await processes.start(world.env(**QUICK))
        await until_true(world, "select exists (select from vidgen.submissions)")
        old.signal(signal.SIGTERM)
        assert await old.ended() == 0
    submission = world.one("select * from vidgen.submissions")
    assert submission["answer"] == "generation"
    async with world.worker(**QUICK):
        row = await world.until(task)
    assert (row["status"], row["attempt"]) == ("completed", 2)
    assert len(world.runway.generations()) == 2


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_forces(
    world: World, tmp_path: Path, second: int, fork_server: ForkServer
) -> None:
    """While the drain waits for a submit, the second signal ends the process there and then."""
    watch(world)
    user = world.user()
    world.order(user, world.scene(user, image_prompt="[[late 20s]] x"))
    log = tmp_path / "worker.log"
    with fork_server.mortals(log) as processes:
        worker = await processes.start(world.env(**QUICK | {"VIDGEN_SUBMIT_TIMEOUT": "60s"}))
        await until_true(world, "select exists (select from vidgen.submissions)")
        before = time.monotonic()
        worker.signal(signal.SIGTERM)
        await _says(log, "Worker draining")
        worker.signal(second)
        assert await worker.ended() == 1
    assert time.monotonic() - before < 5
    assert "Worker stopped" not in said(log)


async def _says(log: Path, event: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while event not in said(log):  # noqa: ASYNC110 - another process's file
            await asyncio.sleep(0.01)  # a bounded wait for a line of another process


async def test_sigterm_while_starting(
    world: World, tmp_path: Path, fork_server: ForkServer
) -> None:
    """Postgres does not answer yet: the worker ends in order, and leaves nothing."""
    log = tmp_path / "worker.log"
    async with proxy(world.database.url) as between:
        between.freeze()
        with fork_server.mortals(log) as processes:
            worker = await processes.start(
                world.env(**QUICK, DATABASE_URL=between.url),
                # It falls asleep when it begins, so that the signal surely meets it there.
                "query share_buckets before", by=signal.SIGSTOP,
            )  # fmt: skip
            await stopped(worker.pid)
            worker.signal(signal.SIGTERM)
            before = time.monotonic()
            worker.signal(signal.SIGCONT)
            assert await worker.ended() == 0
    assert time.monotonic() - before < LOOPS_END, "it ended by running out of time"
    assert world.sql("select * from vidgen.workers") == []
    assert "Traceback" not in log.read_text()


async def test_sigterm_while_postgres_is_away(
    world: World, tmp_path: Path, fork_server: ForkServer
) -> None:
    """The drain gives up at its time-out and names every generation; a successor resumes them."""
    watch(world)
    log = tmp_path / "worker.log"
    tasks = many(world, 3, "[[slow 30s]] ")
    async with proxy(world.database.url) as between:
        with fork_server.mortals(log) as processes:
            worker = await processes.start(
                world.env(**QUICK, DATABASE_URL=between.url, VIDGEN_DRAIN_TIMEOUT="1s")
            )
            await until_true(
                world, "select count(*) = 3 from vidgen.checkpoints where state = 'generating'"
            )
            between.cut()
            before = time.monotonic()
            worker.signal(signal.SIGTERM)
            assert await worker.ended() == 0
            assert time.monotonic() - before < 6
    generations = world.runway.generations()
    assert len(generations) == 3
    text = log.read_text()
    last_words = text.partition("Worker draining")[2]
    assert all(generation["id"] in last_words for generation in generations)
    assert {g["state"] for g in generations} <= {"PENDING", "RUNNING"}
    async with world.worker(**QUICK):
        for task in tasks:
            await world.until(task, "processing", attempt=2)
    assert len(world.runway.requests()) == 3


# The poison task.


@pytest.mark.slow
@pytest.mark.timeout(170)
async def test_a_poison_task_takes_nobody_down_with_it(
    world: World, tmp_path: Path, fork_server: ForkServer
) -> None:
    """Three workers die of it; it ends as WORKER_LOST, its 200 neighbours as videos."""
    watch(world)
    note_falls(world)
    world.runway.set(concurrency=MANY)
    neighbours = many(world, MANY)
    user = world.user(30)
    poison = world.order(user, world.scene(user, image_prompt="Poison in a bottle"))
    settings = world.env(**QUICK | {"VIDGEN_CONCURRENCY": "250", "VIDGEN_LEASE": "1s"})
    deaths = 0
    with fork_server.mortals(tmp_path / "worker.log") as processes:
        while True:
            worker = await processes.start(settings, poison=str(poison))
            death = asyncio.create_task(worker.ended())
            end = asyncio.create_task(until_true(world, ENDED, patience=150))
            await asyncio.wait({death, end}, return_when=asyncio.FIRST_COMPLETED)
            if end.done():
                worker.signal(signal.SIGTERM)
                assert await death == 0
                break
            end.cancel()
            assert await death == -signal.SIGKILL
            deaths += 1
            assert deaths <= 3
    assert deaths == 3
    row = world.task(poison)
    assert (row["status"], row["error_code"]) == ("failed", "WORKER_LOST")
    assert world.credits(user) == (30, 0)
    ended = world.sql("select status from video_generation_tasks where id <> %s", poison)
    assert [row["status"] for row in ended] == ["completed"] * len(neighbours)
    budget = world.one("select crashes from vidgen.budgets where task_id = %s", poison)
    assert budget["crashes"] == 0, "deaths count while a task may still run"
    assert world.books_balance()
    assert world.sql("select * from falls") == []


async def test_a_suspect_does_not_starve_under_load(world: World) -> None:
    """Never idle by itself, the worker makes room for the task that is to run alone."""
    watch(world)
    many(world, 40, "[[slow 300ms]] ")
    async with world.worker(**QUICK, VIDGEN_CONCURRENCY="2"):
        user = world.user()
        suspect = world.order(user, world.scene(user))
        world.sql(
            "insert into vidgen.budgets (task_id, crashes, suspect) values (%s, 2, true)", suspect
        )
        row = await world.until(suspect)
        rest = world.one(
            "select count(*) as rows from video_generation_tasks where status = 'pending'"
        )
    assert row["status"] == "completed"
    # Alone until its first checkpoint, then like any other.
    assert row["attempt"] == 2
    assert rest["rows"] > 0, "the others had ended: there was no load"


async def _begun(world: World, words: str) -> UUID:
    """A task whose generation one worker has submitted and left behind."""
    user = world.user()
    async with world.worker(**QUICK), hearing(events.SubmissionRecorded) as submitted:
        task = world.order(user, world.scene(user, image_prompt=f"{words} x"))
        await submitted.wait()
    return task


async def test_a_generation_is_as_old_as_it_is_whoever_follows_it(world: World) -> None:
    """The deadline counts from when the provider accepted, not from when a worker began to look."""
    watch(world)
    task = await _begun(world, "[[stall]]")
    world.sql("update vidgen.checkpoints set generation_started_at = now() - interval '1 day'")
    with recorded() as heard:
        async with world.worker(**QUICK, VIDGEN_RETRY_BACKOFF="1h"):
            await until_true(world, "select failures = 1 from video_generation_tasks")
    assert world.task(task)["status"] == "pending"
    assert [one["state"] for one in world.runway.generations()] == ["CANCELLED"]
    (ended,) = [event for event in heard if isinstance(event, events.GenerationEnded)]
    assert ended.seconds > timedelta(days=1).total_seconds()


async def test_a_suspect_is_alone_until_its_generation_has_ended(world: World) -> None:
    """Then its deaths are forgiven, and it waits for its turn to go on like any other."""
    watch(world)
    task = await _begun(world, "[[slow 300ms]]")
    world.sql("insert into vidgen.budgets (task_id, crashes, suspect) values (%s, 2, true)", task)
    with recorded() as heard:
        async with world.worker(**QUICK):
            row = await world.until(task)
    assert (row["status"], row["attempt"]) == ("completed", 3)
    stored = [event.fence.attempt for event in heard if isinstance(event, events.StageDone)]
    assert stored == [3, 3], "it stored alone what it could have stored in company"
    assert len(world.runway.generations()) == 2


async def test_a_suspect_does_not_wait_for_what_is_only_polled(world: World) -> None:
    """The worker gives a long generation back, and takes it up again afterwards."""
    watch(world)
    async with world.worker(**QUICK):
        async with hearing(events.SubmissionRecorded) as submitted:
            (long,) = many(world, 1, "[[stall]] ")
            await submitted.wait()
        user = world.user()
        suspect = world.order(user, world.scene(user))
        world.sql(
            "insert into vidgen.budgets (task_id, crashes, suspect) values (%s, 2, true)", suspect
        )
        row = await world.until(suspect)
        await world.until(long, "processing", attempt=2)
        (other,) = many(world, 1)
        assert (await world.until(other))["status"] == "completed"
    assert row["status"] == "completed"
    assert len(world.runway.generations(kind="image")) == 3


async def test_a_file_that_kills_workers_ends_its_task(world: World) -> None:
    """Reading its finished generation again is no progress: its deaths are not forgiven for it."""
    watch(world)
    world.storage.fail("upload", times=4, status=503)
    user = world.user()
    async with (
        world.worker(**QUICK, VIDGEN_RETRY_BACKOFF="1h"),
        hearing(events.TaskRequeued) as kept,
    ):
        task = world.order(user, world.scene(user))
        await kept.wait()
    world.sql(
        "insert into vidgen.budgets (task_id, crashes, suspect) values (%s, 2, true)"
        " on conflict (task_id) do update set crashes = 2, suspect = true", task,
    )  # fmt: skip
    world.sql(
        "create function public.die() returns trigger language plpgsql as"
        " $$ begin perform pg_notify('crashes', (select crashes from vidgen.budgets"
        " where task_id = new.task_id)::text); raise exception 'dead'; end $$"
    )
    world.sql(
        "create trigger die before update on vidgen.checkpoints for each row"
        " when (new.state = 'done') execute function public.die()"
    )
    world.sql("update video_generation_tasks set run_after = now() where id = %s", task)
    async with world.worker(**QUICK, VIDGEN_RETRY_BACKOFF="1h"):
        await until_true(
            world,
            "select status = 'pending' and attempt = 2 and run_after > now()"
            " from video_generation_tasks",
        )
    assert world.one("select crashes from vidgen.budgets")["crashes"] == 2


async def test_a_suspect_runs_alone(world: World) -> None:
    """Nothing else is in processing while it is."""
    watch(world)
    with world.admin() as conn:
        conn.execute("""
            create table public.company (tasks bigint);
            create function public.count_company() returns trigger language plpgsql
            security definer as $$
            begin
              insert into public.company
              select count(*) from public.video_generation_tasks as t
                join vidgen.budgets as b on b.task_id = t.id and b.crashes = 2
               where t.status = 'processing'
               group by () having count(*) > 0;
              insert into public.company
              select 1000 from public.video_generation_tasks as t
               where t.status = 'processing' and t.id <> new.id and exists (
                 select from vidgen.budgets as b join public.video_generation_tasks as s
                     on s.id = b.task_id where b.crashes = 2 and s.status = 'processing');
              return null;
            end $$;
            create trigger count_company after update of status on video_generation_tasks
              for each row when (new.status = 'processing')
              execute function public.count_company();
        """)
    tasks = many(world, 6)
    for task in tasks[:3]:
        world.sql(
            "insert into vidgen.budgets (task_id, crashes, suspect) values (%s, 2, true)", task
        )
    async with world.worker(**QUICK):
        await until_true(world, ENDED)
    assert {row["tasks"] for row in world.sql("select tasks from company")} == {1}
    assert world.sql("select * from video_generation_tasks where status <> 'completed'") == []
