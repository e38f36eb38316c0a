"""Zombies: workers that come back after another one has taken their tasks, and orphaned rows.

A zombie is a real process, frozen by SIGSTOP at a named point, past its lease.
"""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.mortal import ForkServer
from tests.support.proxy import proxy
from tests.support.watching import stopped, until_true, watch
from tests.support.world import PATIENCE, World, hearing, recorded
from vidgen_worker.telemetry import events

# A POST that takes a second on a busy machine is none that was lost: it would be paid again.
QUICK = {"VIDGEN_LEASE": "1s", "VIDGEN_SUBMIT_TIMEOUT": "3s", "VIDGEN_QUEUE_POLL": "50ms"}

# Known from the first statement on: a worker that is frozen while it reads the provider's limits
# keeps the others waiting for them, and a submission without an answer keeps its slot.
KNOWN = {"VIDGEN_IMAGE_SLOTS": "2", "VIDGEN_VIDEO_SLOTS": "2"}

# Where it falls asleep, and how many generations of the image there may be afterwards.
ASLEEP = {
    "query start_task before": 1,
    "query begin_submission before": 1,
    "event SubmissionBegun": 1,
    "call provider.submit after": 2,
    "query end_generation before": 1,
    "call storage.put before": 1,
    "query finish_stage before": 1,
    "call storage.sign before": 1,
}


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for something that nobody tells, such as a lease that runs out."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)  # a bounded wait for a condition


def everything_about(world: World, task: object) -> list[dict[str, Any]]:
    """The rows of one task with the transaction that wrote each: any write at all shows."""
    return world.sql(
        """
        select 'task' as what, t.xmin::text as written, to_jsonb(t)::text as said
          from video_generation_tasks as t where t.id = %(task)s
        union all
        select 'checkpoint', c.xmin::text, to_jsonb(c)::text
          from vidgen.checkpoints as c where c.task_id = %(task)s
        union all
        select 'charge', c.xmin::text, to_jsonb(c)::text
          from vidgen.charges as c where c.task_id = %(task)s
        union all
        select 'hold', h.xmin::text, to_jsonb(h)::text
          from vidgen.holds as h where h.task_id = %(task)s
        union all
        select 'credits', u.xmin::text, to_jsonb(u)::text
          from user_credits as u join video_generation_tasks as t using (user_id)
         where t.id = %(task)s
        union all
        select 'entry', e.xmin::text, to_jsonb(e)::text
          from credit_entries as e where e.task_id = %(task)s
        order by 1, 3
        """.replace("%(task)s", f"'{task}'")
    )


@pytest.mark.slow
@pytest.mark.parametrize("point", ASLEEP)
async def test_a_zombie_writes_nothing(
    world: World, tmp_path: Path, fork_server: ForkServer, point: str
) -> None:
    """Frozen past its lease, then continued: not one row changes, and it goes on with new work."""
    watch(world)
    user = world.user(1000)
    task = world.order(user, world.scene(user))
    with fork_server.mortals(tmp_path / "zombie.log") as dying:
        zombie = await dying.start(world.env(**QUICK | KNOWN), point, by=signal.SIGSTOP)
        # Not before: one that is only slow would be declared dead awake, and never get there.
        await stopped(zombie.pid)
        async with world.worker(**QUICK | KNOWN):
            row = await world.until(task)
        assert (row["status"], row["attempt"]) == ("completed", 2)
        before = everything_about(world, task)
        zombie.signal(signal.SIGCONT)
        await until_true(
            world, "select exists (select from vidgen.workers where pid = %s and dead_at is null)",
            zombie.pid,
        )  # fmt: skip
        # Under its new id it claims: new work ends well, and is paid once.
        new = world.order(user, world.scene(user))
        assert (await world.until(new))["status"] == "completed"
        zombie.signal(signal.SIGTERM)
        assert await zombie.ended() == 0
    assert _but_credits(everything_about(world, task)) == _but_credits(before)
    assert world.credits(user) == (1000 - 2 * 30, 0)
    assert world.books_balance()
    images = world.runway.generations(kind="image")
    mine = [g for g in images if str(row["scene_id"]) in str(g)]
    assert len(mine) == ASLEEP[point]
    stored = {o["name"]: o["sha256"] for o in world.storage.objects()}
    for checkpoint in world.sql("select path, sha256 from vidgen.checkpoints"):
        assert stored[checkpoint["path"]] == checkpoint["sha256"]


def _but_credits(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The balance moves for the new task; it is compared as a number."""
    return [row for row in rows if row["what"] != "credits"]


async def test_a_worker_without_postgres_starts_nothing_and_keeps_what_it_has(
    world: World,
) -> None:
    """Cut off for longer than its lease: no POST, and the result is written once it is back."""
    watch(world)
    user = world.user()
    async with proxy(world.database.url) as between:  # noqa: SIM117 - one needs the other
        async with world.worker(**QUICK, DATABASE_URL=between.url) as worker:
            tasks = [
                world.order(user, world.scene(user, image_prompt=f"[[slow 3s]] {n}"))
                for n in range(5)
            ]
            await until_true(
                world,
                "select count(*) = 5 from vidgen.checkpoints where state = 'generating'",
            )
            between.cut()
            await eventually(lambda: not worker.process.life.lease.held())
            await eventually(lambda: not world.runway.generations(state="RUNNING"))
            late = world.order(user, world.scene(user))
            posts = len(world.runway.requests())
            license_ = asyncio.create_task(worker.process.license())
            await asyncio.sleep(0)
            assert not license_.done()
            assert posts == 5
            between.mend()
            for task in [*tasks, late]:
                row = await world.until(task)
                assert (row["status"], row["attempt"]) == ("completed", 1)
            await license_
    assert len(world.runway.generations()) == 12
    assert world.books_balance()


async def test_results_of_a_worker_declared_dead_meanwhile_bounce(world: World) -> None:
    """Two live workers, one of them cut off: the other one's rows stand."""
    watch(world)
    user = world.user()
    async with proxy(world.database.url) as between:  # noqa: SIM117 - one needs the other
        async with world.worker(**QUICK, DATABASE_URL=between.url) as cut_off:
            task = world.order(user, world.scene(user, image_prompt="[[slow 300ms]] x"))
            await until_true(
                world, "select exists (select from vidgen.checkpoints where state = 'generating')"
            )
            between.cut()
            async with world.worker(**QUICK):
                row = await world.until(task)
            assert (row["status"], row["attempt"]) == ("completed", 2)
            before = everything_about(world, task)
            dead = cut_off.process.life.queue.worker_id
            between.mend()
            await eventually(
                lambda: (
                    cut_off.process.life.queue.worker_id != dead
                    and cut_off.process.life.lease.held()
                )
            )
            assert everything_about(world, task) == before
            assert (await world.until(world.order(user, world.scene(user))))["attempt"] == 1
    assert len(world.runway.generations()) == 4


# Orphans of a live worker.


async def test_a_claim_whose_answer_was_lost_is_handed_back(world: World) -> None:
    """Committed, and nobody runs it: the next heartbeat gives it back, and it is run."""
    watch(world)
    user = world.user()
    task = world.order(user, world.scene(user))
    async with proxy(world.database.url) as between:
        between.lose_the_answer_to(b"-- Begin an attempt on")
        async with hearing(events.OrphansHandedBack) as handed_back:
            async with world.worker(**QUICK, DATABASE_URL=between.url):
                async with asyncio.timeout(PATIENCE):
                    await between.lost.wait()
                row = await world.until(task)
            assert handed_back.is_set()
    assert (row["status"], row["attempt"]) == ("completed", 2)
    assert len(world.runway.generations()) == 2


async def test_a_coroutine_that_died_leaves_no_row_behind(world: World) -> None:
    """A task that this worker has forgotten goes back with the next heartbeat."""
    watch(world)
    user = world.user()
    async with world.worker(**QUICK) as worker:
        task = world.order(user, world.scene(user, image_prompt="[[slow 300ms]] x"))
        await until_true(
            world, "select exists (select from vidgen.checkpoints where state = 'generating')"
        )
        _, working = worker.process.held.tasks.pop(task)
        working.cancel()
        row = await world.until(task)
    assert (row["status"], row["attempt"]) == ("completed", 2)
    assert len(world.runway.generations()) == 2


async def test_an_abandoned_task_is_handed_back(world: World) -> None:
    """Lost, the worker falls silent about it; still in its name, it goes back."""
    watch(world)
    user = world.user()
    with recorded() as heard:
        async with world.worker(**QUICK):
            task = world.order(user, world.scene(user, image_prompt="[[slow 300ms]] x"))
            await until_true(
                world, "select exists (select from vidgen.checkpoints where state = 'generating')"
            )
            world.sql("update video_generation_tasks set attempt = attempt + 1 where id = %s", task)
            row = await world.until(task)
    assert (row["status"], row["attempt"]) == ("completed", 3)
    assert any(isinstance(event, events.LeaseLost) for event in heard)
    assert any(isinstance(event, events.OrphansHandedBack) for event in heard)
    assert len(world.runway.generations()) == 2
