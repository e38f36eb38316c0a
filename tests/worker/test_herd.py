"""A thundering herd: many rows in one statement, many idle workers, one NOTIFY that wakes them all.

What each worker sends until its slots are full is counted, and is bounded: it doesn't depend on how
many rows came, nor on how many workers race for the same user's turn.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack, closing

import pytest

from tests.support.world import World
from vidgen_worker.database.pool import Database, Rows
from vidgen_worker.telemetry.bus import Event, subscribed
from vidgen_worker.telemetry.events import TaskStarted
from vidgen_worker.worker.claiming import MOST_EMPTY_CLAIMS

WORKERS, SLOTS, ROWS = 8, 2, 1000
PER_CLAIM = 2
"""line_up and claim."""


def counted(database: Database, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the statements of one pool of a worker by name; they are carried out as ever."""
    counts: Counter[str] = Counter()
    send = database._send

    async def counting(names: tuple[str, ...], parameters: Mapping[str, object]) -> Rows:
        counts.update(names)
        return await send(names, parameters)

    monkeypatch.setattr(database, "_send", counting)
    return counts


@pytest.mark.parametrize("users", [1, 50])
async def test_a_herd_costs_each_worker_a_bounded_number_of_statements(
    world: World, users: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.runway.set(unlimited=True)
    people = [world.user() for _ in range(users)]
    # Generations that never end: whoever has begun keeps its slot. No more than three of one input.
    scenes = [
        world.scene(people[n % users], image_prompt=f"[[stall]] {n}", visual_prompt="It turns")
        for n in range(50)
    ]
    begun: set[object] = set()
    full = asyncio.Event()

    def hear(event: Event) -> None:
        if isinstance(event, TaskStarted):
            begun.add(event.fence.task_id)
            if len(begun) == WORKERS * SLOTS:
                full.set()

    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(
                world.worker(
                    VIDGEN_CONCURRENCY=str(SLOTS), VIDGEN_QUEUE_POLL="1m", VIDGEN_LEASE="30s",
                    VIDGEN_POLL_INTERVAL="1m", VIDGEN_DATABASE_POOL="2",
                )
            )
            for _ in range(WORKERS)
        ]  # fmt: skip
        for worker in workers:
            async with asyncio.timeout(60):
                await worker.process.listener.proved.wait()
            assert worker.process.listener.listening
        counts = [counted(worker.process.databases.claims, monkeypatch) for worker in workers]
        with subscribed(hear):
            await asyncio.to_thread(
                world.sql,
                "insert into public.video_generation_tasks (user_id, scene_id)"
                " select (%s::uuid[])[1 + n %% %s], (%s::uuid[])[1 + n %% %s]"
                " from generate_series(1, %s) as n",
                people, users, scenes, len(scenes), ROWS,
            )  # fmt: skip
            async with asyncio.timeout(60):
                await full.wait()
        # Every slot is taken: nobody claims any more, until the drain at the end of the block.
        assert len(begun) == WORKERS * SLOTS
        for count in counts:
            assert count["claim"] >= 1
            assert sum(count.values()) <= PER_CLAIM * (SLOTS + MOST_EMPTY_CLAIMS), count


async def test_what_nobody_can_begin_costs_an_idle_worker_few_statements(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look takes a whole row of claims, each next one half of the last."""
    user = world.user()
    task = world.order(user, world.scene(user))
    looks = 0
    looked = asyncio.Event()
    with closing(world.admin()) as client, client.transaction():
        client.execute("select from video_generation_tasks where id = %s for update", [task])
        async with world.worker(VIDGEN_QUEUE_POLL="500ms") as worker:
            claiming = worker.claiming
            wait, counts = (
                claiming._wait_for_wake,
                counted(worker.process.databases.claims, monkeypatch),
            )

            async def waiting(seconds: float) -> None:
                nonlocal looks
                looks += 1
                if looks == 10:
                    looked.set()
                await wait(seconds)

            monkeypatch.setattr(claiming, "_wait_for_wake", waiting)
            async with asyncio.timeout(60):
                await looked.wait()
            assert counts["claim"] >= 10
            assert counts["claim"] <= 10 * 2 + 2 * MOST_EMPTY_CLAIMS
