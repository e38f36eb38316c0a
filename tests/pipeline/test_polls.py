"""Polls of one generation by a worker: never too close, learnt from, and shown to its user."""

import time
from itertools import pairwise
from typing import Any

from tests.support.world import World, hearing
from vidgen_worker.telemetry import bus, events

LEARNT = (
    "insert into vidgen.generation_times (provider, model, seconds, ended_after, ended_by)"
    " values ('runway', 'gen4_image', 0, '{30}', '{40}'),"
    "        ('runway', 'gen4_turbo', 5, '{60}', '{70}')"
)


async def test_a_resumed_generation_is_not_polled_sooner_than_a_running_one(world: World) -> None:
    """The double answers at once, so what is said of a generation is as old as its poll."""
    polled: list[float] = []

    def note(event: bus.Event) -> None:
        if isinstance(event, events.Progressed | events.GenerationEnded):
            polled.append(time.monotonic())

    user = world.user(100)
    scene = world.scene(user, image_prompt="[[slow 2s]] a bottle")
    with bus.subscribed(note):
        async with world.worker(VIDGEN_POLL_INTERVAL="1s"), hearing(events.Progressed) as seen:
            world.order(user, scene)
            await seen.wait()
        async with (
            world.worker(VIDGEN_POLL_INTERVAL="1s"), hearing(events.StageResumed) as resumed,
            hearing(events.GenerationEnded) as ended,
        ):  # fmt: skip
            await resumed.wait()
            await ended.wait()
    assert min(after - before for before, after in pairwise(polled)) >= 0.75, polled


async def test_a_user_is_shown_when_the_whole_task_is_expected_to_end(world: World) -> None:
    world.sql(LEARNT)
    user = world.user(100)
    task = world.order(user, world.scene(user, image_prompt="[[slow 1m]] a bottle", duration=5))
    async with world.worker(), hearing(events.SubmissionRecorded) as begun:
        await begun.wait()
        row: Any = world.as_user(
            user,
            "select extract(epoch from expected_at - now())::float as seconds"
            " from public.video_generation_tasks where id = %s", task,
        )[0]  # fmt: skip
    assert 105 < row["seconds"] <= 116
    stopped = world.sql("select expected_at from public.video_generation_tasks")
    assert stopped == [{"expected_at": None}]


async def test_what_one_worker_has_seen_the_next_one_knows(world: World) -> None:
    user = world.user(100)
    async with world.worker():
        await world.until(world.order(user, world.scene(user)))
    rows = world.sql("select model, ended_after, ended_by from vidgen.generation_times order by 1")
    assert [row["model"] for row in rows] == ["gen4_image", "gen4_turbo"]
    for row in rows:
        assert 0 <= row["ended_after"][0] < row["ended_by"][0] < 30
    async with world.worker() as worker:
        await worker.process.life.queue.times.read()
        assert len(worker.process.life.queue.times.of("gen4_image", 0)) == 1


async def test_an_end_is_booked_although_the_clock_was_set_while_it_ran(world: World) -> None:
    """It seems to end before it began: the history takes no such time, and is told none."""
    user = world.user(100)
    task = world.order(user, world.scene(user, image_prompt="[[slow 3s]] a bottle"))
    async with world.worker(), hearing(events.SubmissionRecorded) as begun:
        await begun.wait()
    world.sql("update vidgen.checkpoints set generation_started_at = now() + interval '1 hour'")
    async with (
        world.worker(VIDGEN_POLL_INTERVAL="500ms"), hearing(events.SubmissionRecorded) as next_one,
    ):  # fmt: skip
        await next_one.wait()
    assert world.task(task)["image_path"] is not None
    assert world.sql("select error from vidgen.refusals") == []
    kinds = world.sql("select model from vidgen.generation_times where model = 'gen4_image'")
    assert kinds == []
