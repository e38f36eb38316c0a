"""Paid POSTs whose answer is lost, late or nonsense: counted, never repeated blindly, kept."""

import asyncio
import signal
from pathlib import Path
from uuid import UUID

import pytest

from tests.support.watching import until
from tests.support.world import PATIENCE, World, forget, hearing, posts, recorded, submissions
from vidgen_worker.telemetry import events

AMBIGUOUS = {
    "no answer in time": "hang-after-accept 90s",
    "dropped": "drop-after-accept",
    "500": "500-after-accept",
    "503": "503-after-accept",
    "504": "504-after-accept",
    "a page of HTML": "html-200",
    "an empty object": "empty-200",
    "broken JSON": "broken-json-200",
    "an id that is none": "bad-id-200",
}
SUBMIT = {"VIDGEN_SUBMIT_TIMEOUT": "2s"}


@pytest.mark.parametrize("name", AMBIGUOUS)
async def test_with_a_cap_of_one_it_is_never_paid_twice(world: World, name: str) -> None:
    user = world.user(100)
    scene = world.scene(user, image_prompt=f"[[{AMBIGUOUS[name]}]] a bottle")
    with recorded() as heard:
        async with world.worker(VIDGEN_MAX_SUBMISSIONS="1", **SUBMIT):
            row = await world.until(world.order(user, scene))
    assert (row["status"], row["error_code"]) == ("failed", "SUBMISSION_UNKNOWN")
    assert posts(world) == (1, 0)
    assert len(world.runway.generations()) == 1
    assert world.credits(user) == (100, 0)
    (submission,) = submissions(world)
    assert (submission["answer"], submission["counted"]) == ("unknown", True)
    (said,) = [event for event in heard if isinstance(event, events.SubmissionUnknown)]
    assert said.fingerprint == submission["fingerprint"]
    assert said.submission == submission["id"]


@pytest.mark.parametrize("name", AMBIGUOUS)
async def test_with_a_cap_of_two_it_is_tried_once_more(world: World, name: str) -> None:
    user = world.user(100)
    scene = world.scene(user, visual_prompt=f"[[{AMBIGUOUS[name]}]] around it")
    async with world.worker(**SUBMIT):
        row = await world.until(world.order(user, scene))
    assert (row["status"], row["failures"]) == ("completed", 1)
    assert posts(world) == (1, 2)
    assert [row["answer"] for row in submissions(world)] == ["generation", "unknown", "generation"]
    assert world.credits(user) == (70, 0)
    assert world.books_balance()


@pytest.mark.parametrize("cap", [1, 2, 3])
async def test_the_cap_is_never_exceeded(world: World, cap: int) -> None:
    user = world.user(100)
    scene = world.scene(user, image_prompt="[[503-after-accept x9]] a bottle")
    async with world.worker(VIDGEN_MAX_SUBMISSIONS=str(cap)):
        row = await world.until(world.order(user, scene))
    assert row["error_code"] == "SUBMISSION_UNKNOWN"
    assert posts(world) == (cap, 0)
    assert world.credits(user) == (100, 0)


async def test_the_cap_is_counted_anew_for_a_retry_and_holds_there_too(world: World) -> None:
    user = world.user(100)
    scene = world.scene(user, image_prompt="[[503-after-accept x9]] a bottle")
    async with world.worker(VIDGEN_MAX_SUBMISSIONS="1"):
        task = world.order(user, scene)
        await world.until(task)
        world.as_user(user, "select public.retry_video_generation_task(%s)", task)
        await world.until(task, attempt=2)
    assert posts(world) == (2, 0)


# Answers that come late.


async def robbed(world: World, image: str) -> tuple[UUID, UUID]:
    """A task whose worker is declared dead while its POST is in flight: (user, task)."""
    user = world.user(100)
    scene = world.scene(user, image_prompt=f"{image} a bottle")
    async with hearing(events.StageResumed) as resumed:
        async with hearing(events.SubmissionBegun) as begun:
            task = world.order(user, scene)
            await begun.wait()
        world.sql(
            "update vidgen.workers set dead_at = now() where id = "
            "(select worker_id from video_generation_tasks where id = %s)",
            task,
        )
        await resumed.wait()
    return user, task


async def test_a_successor_attaches_to_an_answer_that_outlives_the_lease(world: World) -> None:
    with recorded() as heard:
        async with world.worker(), world.worker():
            user, task = await robbed(world, "[[late 2s]]")
            row = await world.until(task)
    assert (row["status"], row["attempt"], row["failures"]) == ("completed", 2, 0)
    assert posts(world) == (1, 1)
    assert len(world.runway.generations(kind="image")) == 1
    assert [row["answer"] for row in submissions(world)] == ["generation", "generation"]
    assert not [event for event in heard if isinstance(event, events.SubmissionUnknown)]
    assert world.credits(user) == (70, 0)
    assert world.books_balance()


@pytest.mark.parametrize(
    ("words", "state", "cost"),
    [("[[stall x1]]", "CANCELLED", None), ("", "SUCCEEDED", 8)],
    ids=["it still runs", "it has finished, so its output is left alone"],
)
async def test_an_answer_after_the_successor_gave_up_is_recorded_and_ended(
    world: World, words: str, state: str, cost: int | None
) -> None:
    with recorded() as heard:
        async with world.worker(), world.worker(), hearing(events.LateAnswer) as late:
            user, task = await robbed(world, f"[[late 4s]] {words}")
            forget(world)
            row = await world.until(task)
            await late.wait()
    assert row["status"] == "completed"
    assert posts(world) == (2, 1)
    lost, used = world.runway.generations(kind="image")
    (stored,) = world.sql("select generation_id from vidgen.checkpoints where stage = 'image'")
    assert str(stored["generation_id"]) == used["id"]
    assert lost["state"] == state
    submission = submissions(world)[0]
    assert str(submission["generation_id"]) == lost["id"]
    assert (submission["answer"], submission["ended_state"]) == ("generation", state.lower())
    assert (submission["cost"], submission["estimated_cost"]) == (cost, 8)
    (unknown,) = [event for event in heard if isinstance(event, events.SubmissionUnknown)]
    assert unknown.fingerprint == submission["fingerprint"]
    assert world.credits(user) == (70, 0)


async def test_an_answer_after_the_task_has_failed_is_ended_too(world: World) -> None:
    """A cap of one: the successor gives up for good, and nobody waits for the generation."""
    settings = {"VIDGEN_MAX_SUBMISSIONS": "1"}
    servants = world.worker(**settings), world.worker(**settings)
    async with servants[0], servants[1], hearing(events.LateAnswer) as late:
        _, task = await robbed(world, "[[late 4s]] [[stall]]")
        forget(world)
        row = await world.until(task)
        assert not late.is_set()
        await late.wait()
    assert row["error_code"] == "SUBMISSION_UNKNOWN"
    assert posts(world) == (1, 0)
    assert [g["state"] for g in world.runway.generations()] == ["CANCELLED"]
    (submission,) = submissions(world)
    assert (submission["answer"], submission["ended_state"]) == ("generation", "cancelled")


async def test_a_repeated_record_of_a_late_answer_says_the_same(world: World) -> None:
    """A lost acknowledgement: the second time it is late still."""
    async with world.worker(VIDGEN_MAX_SUBMISSIONS="1") as worker:
        user = world.user(100)
        task = world.order(user, world.scene(user, image_prompt="[[html-200]] a bottle"))
        await world.until(task)
        (submission,) = submissions(world)
        generation = world.runway.generations()[0]["id"]
        fates = [
            (await worker.process.databases.work.once(
                "answer_submission", task_id=task, attempt=1,
                worker_id=worker.process.life.queue.worker_id,
                stage="image", submission_id=submission["id"], answer="generation",
                generation_id=UUID(generation), estimated_cost=8, details="",
                scopes=worker.process.key.scopes.all(), follow=True,
            ))[0]["fate"]
            for _ in range(2)
        ]  # fmt: skip
    assert fates == ["superseded", "superseded"]


# Drains.


async def test_a_drain_lets_the_post_in_flight_end(world: World, tmp_path: Path) -> None:
    user = world.user(100)
    scene = world.scene(user, image_prompt="[[late 2s]] [[slow 1s]] a bottle")
    log = tmp_path / "worker.log"
    with world.process(log) as process:
        task = world.order(user, scene)
        await until(world, lambda: posts(world) == (1, 0))
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, PATIENCE) == 0
    (submission,) = submissions(world)
    assert submission["answer"] == "generation", log.read_text()
    assert world.task(task)["status"] == "pending"
    async with world.worker():
        row = await world.until(task)
    assert (row["status"], row["failures"]) == ("completed", 0)
    assert posts(world) == (1, 1)


async def test_no_post_begins_while_draining(world: World) -> None:
    """One POST holds the drain up; another task ends its still meanwhile, and stops there."""
    user = world.user(100)
    slow = world.scene(user, image_prompt="[[late 3s]] a bottle")
    quick = world.scene(user, image_prompt="[[slow 1s]] a bottle")
    async with world.worker() as worker:
        other = world.order(user, quick)
        async with hearing(events.SubmissionRecorded) as recorded_:
            await recorded_.wait()
        async with hearing(events.SubmissionBegun) as begun, hearing(events.StageDone) as done:
            world.order(user, slow)
            await begun.wait()
            worker.stop()
            await done.wait()
    assert posts(world) == (2, 0)
    assert [row["answer"] for row in submissions(world)] == ["generation", "generation"]
    assert world.task(other)["status"] == "pending"
