"""Cancel, at every point of a task's life.

What still runs at the provider is cancelled there, what has finished is never deleted; the hold
goes back, what is stored and settled stays, and a retry goes on from it.
"""

from uuid import UUID

import pytest

from tests.support.watching import until
from tests.support.world import Row, World, cancel, hearing, posts, recorded
from vidgen_worker.telemetry import bus, events

SOON = 30.0
"""Seconds: far below the heartbeat of a worker with LONG_LEASE."""
LONG_LEASE = {"VIDGEN_LEASE": "10m"}


def retry(world: World, user: UUID, task: UUID) -> None:
    world.as_user(user, "select public.retry_video_generation_task(%s)", task)


def states(world: World) -> list[str]:
    return [generation["state"] for generation in world.runway.generations()]


def ended(world: World, user: UUID, task: UUID, *, charged: int = 0) -> None:
    """The row says cancelled, nothing is held any more, the books balance."""
    row = world.task(task)
    assert (row["status"], row["current_step"]) == ("cancelled", "Cancelled")
    assert (row["error_code"], row["worker_id"], row["failures"]) == (None, None, 0)
    assert row["completed_at"] is not None
    assert world.credits(user) == (100 - charged, 0)
    assert world.books_balance()


async def test_before_the_claim_it_is_cancelled_at_once(world: World) -> None:
    user = world.user(100)
    task = world.order(user, world.scene(user))
    assert cancel(world, user, task)["status"] == "cancelled"
    async with world.worker():
        await world.beats(2)
    ended(world, user, task)
    assert world.runway.requests() == []


async def test_a_strangers_cancel_changes_nothing(world: World) -> None:
    user = world.user(100)
    task = world.order(user, world.scene(user))
    with pytest.raises(Exception, match="no task"):
        cancel(world, world.user(), task)
    assert world.task(task)["status"] == "pending"


@pytest.mark.parametrize("moment", [events.TaskStarted, events.ResolutionMapped])
async def test_between_claim_and_submit_nothing_is_paid(
    world: World, moment: type[bus.Event]
) -> None:
    user = world.user(100)
    asked: list[Row] = []

    def ask(event: bus.Event) -> None:
        if isinstance(event, moment):
            assert isinstance(event, bus.TaskEvent)
            asked.append(cancel(world, user, event.fence.task_id))

    with bus.subscribed(ask):
        async with world.worker(**LONG_LEASE):
            task = world.order(user, world.scene(user))
            await world.until(task, patience=SOON)
    assert [row["status"] for row in asked] == ["processing"]
    ended(world, user, task)
    assert world.runway.requests() == []


@pytest.mark.parametrize(
    ("words", "state"),
    [("[[stall]]", "CANCELLED"), ("", "SUCCEEDED")],
    ids=["it still runs then", "it has finished by then"],
)
async def test_a_submit_in_flight_is_not_waited_for(world: World, words: str, state: str) -> None:
    """The row says so at once; the answer is recorded when it comes, and its generation ended."""
    user = world.user(100)
    scene = world.scene(user, image_prompt=f"[[late 6s]] {words} a bottle")
    with recorded() as heard:
        async with world.worker(**LONG_LEASE), hearing(events.LateAnswer) as late:
            task = world.order(user, scene)
            await until(world, lambda: posts(world) == (1, 0))
            assert cancel(world, user, task)["status"] == "processing"
            await world.until(task)
            assert not any(isinstance(e, events.SubmissionAnswered) for e in heard)
            await late.wait()
    ended(world, user, task)
    assert states(world) == [state]
    (row,) = world.sql("select * from vidgen.submissions")
    assert (row["answer"], row["ended_state"]) == ("generation", state.lower())


async def test_a_submit_recorded_while_its_cancel_is_written_is_ended_too(world: World) -> None:
    """Its task is read for the cancel before the record of the answer, and ended after."""
    user = world.user(100)
    world.sql(
        "create function public.record_is_slow() returns trigger language plpgsql as $$"
        " begin perform pg_sleep(1); return null; end $$"
    )
    world.sql(
        "create trigger record_is_slow after update of answer on vidgen.submissions"
        " for each row execute function public.record_is_slow()"
    )

    def ask(event: bus.Event) -> None:
        if isinstance(event, events.SubmissionAnswered):
            cancel(world, user, event.fence.task_id)

    with bus.subscribed(ask):
        async with world.worker(**LONG_LEASE):
            task = world.order(user, world.scene(user, image_prompt="[[stall]] a bottle"))
            await world.until(task, patience=SOON)
    ended(world, user, task)
    assert states(world) == ["CANCELLED"]
    (row,) = world.sql("select * from vidgen.submissions")
    assert (row["answer"], row["ended_state"]) == ("generation", "cancelled")


RUNNING = {
    "THROTTLED": "[[throttle 10m]]",
    "PENDING": "[[slow 10m]]",
    "RUNNING": "[[stall]]",
}


@pytest.mark.parametrize("stage", ["image", "video"])
@pytest.mark.parametrize("state", RUNNING)
async def test_what_runs_at_the_provider_is_cancelled_there(
    world: World, state: str, stage: str
) -> None:
    user = world.user(100)
    prompt = {f"{'image' if stage == 'image' else 'visual'}_prompt": f"{RUNNING[state]} a bottle"}
    async with world.worker(**LONG_LEASE):
        task = world.order(user, world.scene(user, **prompt))
        await until(world, lambda: state in states(world))
        assert cancel(world, user, task)["status"] == "processing"
        await world.until(task, patience=SOON)
    ended(world, user, task, charged=0 if stage == "image" else 5)
    assert states(world)[-1] == "CANCELLED"
    assert states(world)[:-1] == ([] if stage == "image" else ["SUCCEEDED"])
    submission = world.sql("select * from vidgen.submissions order by sent_at")[-1]
    assert submission["ended_state"] == "cancelled"
    assert submission["estimated_cost"] > 0


async def test_without_listen_it_takes_one_heartbeat(world: World) -> None:
    user = world.user(100)
    async with world.worker(VIDGEN_LISTEN="off", VIDGEN_LEASE="4s"):
        task = world.order(user, world.scene(user, image_prompt="[[stall]] a bottle"))
        await until(world, lambda: states(world) == ["RUNNING"])
        cancel(world, user, task)
        await world.until(task, patience=SOON)
    ended(world, user, task)
    assert states(world) == ["CANCELLED"]


async def test_during_a_download_the_finished_generation_is_kept(world: World) -> None:
    user = world.user(100)
    scene = world.scene(user, image_prompt="[[truncate-download x3]] a bottle")

    def ask(event: bus.Event) -> None:
        if isinstance(event, events.GenerationEnded) and event.fence.attempt == 1:
            cancel(world, user, event.fence.task_id)

    with bus.subscribed(ask):
        async with world.worker(**LONG_LEASE):
            task = world.order(user, scene)
            await world.until(task, patience=SOON)
            ended(world, user, task)
            assert states(world) == ["SUCCEEDED"]
            retry(world, user, task)
            row = await world.until(task, "completed")
    assert row["cancel_requested_at"] is None
    assert posts(world) == (1, 1)
    assert world.credits(user) == (70, 0)


@pytest.mark.parametrize("stage", ["image", "video"])
async def test_during_an_upload_that_hangs(world: World, stage: str) -> None:
    user = world.user(100)
    async with world.worker(**LONG_LEASE):

        def hang(event: bus.Event) -> None:
            if isinstance(event, events.GenerationEnded) and event.stage == stage:
                world.storage.fail("upload", hang=60)

        with bus.subscribed(hang):
            task = world.order(user, world.scene(user))
            uploads = 1 if stage == "image" else 2
            await until_uploading(world, uploads)
            cancel(world, user, task)
            await world.until(task, patience=SOON)
        ended(world, user, task, charged=0 if stage == "image" else 5)
        assert set(states(world)) == {"SUCCEEDED"}
        assert len(world.storage.objects()) == uploads - 1
        world.storage.heal()
        retry(world, user, task)
        await world.until(task, "completed")
    assert posts(world) == (1, 1)
    assert world.credits(user) == (70, 0)
    assert world.books_balance()


async def until_uploading(world: World, count: int) -> None:
    """Wait until so many uploads have begun; heartbeats give the rhythm of looking."""

    def begun() -> bool:
        world.sql("notify test_beats")
        return [request["kind"] for request in world.storage.requests()].count("upload") >= count

    await until(world, begun)


async def test_after_the_end_it_changes_nothing(world: World) -> None:
    user = world.user(100)
    async with world.worker():
        task = world.order(user, world.scene(user))
        await world.until(task)
    before = world.one("select *, xmin::text from video_generation_tasks where id = %s", task)
    assert cancel(world, user, task)["status"] == "completed"
    after = world.one("select *, xmin::text from video_generation_tasks where id = %s", task)
    assert after == before
    assert states(world) == ["SUCCEEDED", "SUCCEEDED"]


async def handed_back(world: World, image: str) -> tuple[UUID, UUID]:
    """A waiting task whose generation has been submitted: (user, task)."""
    user = world.user(100)
    async with world.worker(), hearing(events.SubmissionRecorded) as submitted:
        task = world.order(user, world.scene(user, image_prompt=f"{image} a bottle"))
        await submitted.wait()
    assert world.task(task)["status"] == "pending"
    return user, task


SERVED = {
    "by an ordinary worker": {},
    "by one that claims nothing": {"RUNWAYML_ENABLED": "false"},
    "without LISTEN": {"VIDGEN_LISTEN": "off"},
}


@pytest.mark.parametrize("gate", [False, True], ids=["gate open", "gate closed"])
@pytest.mark.parametrize("how", SERVED)
async def test_a_waiting_task_whose_generation_runs(world: World, how: str, gate: bool) -> None:
    user, task = await handed_back(world, "[[stall]]")
    if gate:
        world.sql(
            "insert into vidgen.gates (provider, scope, model, reason, message) "
            "values ('runway', '*', '*', 'MAINTENANCE', 'paused')"
        )
    # Far from due: a cancel waits for no pause.
    world.sql(
        "update video_generation_tasks set run_after = now() + interval '1 hour' where id = %s",
        task,
    )
    asked = cancel(world, user, task)
    assert (asked["status"], asked["cancel_requested_at"] is None) == ("pending", False)
    async with world.worker(**SERVED[how]):
        await world.until(task, patience=SOON)
    ended(world, user, task)
    assert states(world) == ["CANCELLED"]


async def test_a_waiting_tasks_cancel_reaches_a_worker_by_notify(world: World) -> None:
    user, task = await handed_back(world, "[[stall]]")
    settings = {"RUNWAYML_ENABLED": "false", "VIDGEN_QUEUE_POLL": "10m", **LONG_LEASE}
    async with hearing(events.ListenChanged) as listening, world.worker(**settings):
        await listening.wait()
        cancel(world, user, task)
        await world.until(task, patience=SOON)
    ended(world, user, task)


async def test_a_generation_that_has_finished_meanwhile_is_kept_for_a_retry(world: World) -> None:
    user, task = await handed_back(world, "")
    cancel(world, user, task)
    async with world.worker(RUNWAYML_ENABLED="false"):
        await world.until(task, patience=SOON)
    ended(world, user, task)
    assert states(world) == ["SUCCEEDED"]
    retry(world, user, task)
    async with world.worker():
        await world.until(task, "completed")
    assert posts(world) == (1, 1)
    assert world.credits(user) == (70, 0)


async def test_while_the_provider_cannot_be_reached_the_cancel_waits(world: World) -> None:
    user = world.user(100)
    async with world.worker():
        task = world.order(user, world.scene(user, image_prompt="[[stall]] a bottle"))
        await until(world, lambda: states(world) == ["RUNNING"])
        async with hearing(events.TaskRequeued) as put_back:
            world.runway.set(outage=True)
            cancel(world, user, task)
            await put_back.wait()
        assert world.task(task)["status"] in ("pending", "processing")
        assert world.credits(user) == (100, 30)
        assert states(world) == ["RUNNING"]
        world.runway.set(outage=False)
        await world.until(task)
    ended(world, user, task)
    assert states(world) == ["CANCELLED"]
    assert posts(world) == (1, 0)


async def test_a_retry_after_a_cancel_keeps_the_still(world: World) -> None:
    user = world.user(100)
    async with world.worker():
        task = world.order(user, world.scene(user, visual_prompt="[[stall x1]] around it"))
        await until(world, lambda: states(world) == ["SUCCEEDED", "RUNNING"])
        cancel(world, user, task)
        still = (await world.until(task))["image_path"]
        assert still is not None
        ended(world, user, task, charged=5)
        retry(world, user, task)
        row = await world.until(task, "completed")
    assert row["image_path"] == still
    assert posts(world) == (1, 2)
    assert states(world) == ["SUCCEEDED", "CANCELLED", "SUCCEEDED"]
    assert world.credits(user) == (70, 0)
    assert world.books_balance()
