"""Gates: one refusal that concerns everybody stops what is paid for, and nothing else."""

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from tests.support.watching import until
from tests.support.world import World, crowd, hearing, posts, probe_now, recorded
from vidgen_worker.domain.faults import IN_A_ROW
from vidgen_worker.telemetry import bus, events

NEVER = {
    "VIDGEN_GATE_PROBE": "1h",
    # An outage from the start on: the account can't be read, and storms are counted in submissions.
    "VIDGEN_IMAGE_SLOTS": "100",
    "VIDGEN_VIDEO_SLOTS": "100",
}


def seen_by(world: World, user: UUID) -> list[tuple[str, str]]:
    """Model and reason of the closed gates, as a signed-in user sees them."""
    rows = world.as_user(user, "select * from public.video_generation_gates order by model")
    assert all("paused" in row["message"] for row in rows)
    assert all("runway" not in row["message"].lower() for row in rows)
    return [(row["model"], row["reason"]) for row in rows]


def versions(world: World, tasks: Iterable[UUID]) -> dict[UUID, Any]:
    """Which transaction wrote each row last."""
    rows = world.sql(
        "select id, xmin::text, updated_at from video_generation_tasks where id = any(%s)",
        list(tasks),
    )
    return {row["id"]: (row["xmin"], row["updated_at"]) for row in rows}


CLOSES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "PROVIDER_UNFUNDED": ({"credit_balance": 0}, {"credit_balance": 10_000}, "*"),
    "PROVIDER_DENIED": ({"key_disabled": True}, {"key_disabled": False}, "*"),
    "PROVIDER_QUOTA": ({"daily_limit": 0}, {"daily_limit": None}, "gen4_image"),
}


@pytest.mark.parametrize("reason", CLOSES)
async def test_a_gate_stops_what_is_paid_for_and_nothing_else(world: World, reason: str) -> None:
    closing, opening, model = CLOSES[reason]
    user = world.user()
    running_scene = world.scene(user, visual_prompt="[[slow 2s]] around it")
    with recorded() as heard:
        async with world.worker(**NEVER) as one, world.worker(**NEVER) as other:
            running = world.order(user, running_scene)
            await until(world, lambda: posts(world) == (1, 1))
            async with hearing(events.GateClosed) as closed:
                world.runway.set(**closing)
                met = world.order(user, world.scene(user))
                await closed.wait()
            # It may have begun before the running generation met the same trouble.
            await world.until(met, "pending")
            refused = posts(world)
            waiting: list[UUID] = []
            for _ in range(3):
                somebody = world.user()
                waiting.append(world.order(somebody, world.scene(somebody)))
            before = versions(world, waiting)
            await world.beats(6)
            if reason == "PROVIDER_DENIED":
                # The generation that runs can't be read either: it is kept, and read again.
                assert world.task(running)["status"] == "processing"
            else:
                assert (await world.until(running))["status"] == "completed"
            assert versions(world, waiting) == before
            assert posts(world) == refused
            assert seen_by(world, user) == [(model, reason)]
            put_back = world.task(met)
            assert (put_back["status"], put_back["failures"]) == ("pending", 0)

            async with hearing(events.GateOpened) as opened:
                world.runway.set(**opening)
                world.sql("update video_generation_tasks set run_after = now() where id = %s", met)
                probe_now(world)
                await opened.wait()
            assert seen_by(world, user) == []
            rows = [await world.until(task) for task in (running, met, *waiting)]
            assert one.process.life.queue.worker_id != other.process.life.queue.worker_id
    assert {row["status"] for row in rows} == {"completed"}
    assert {row["failures"] for row in rows} == {0}
    assert [event.code for event in heard if isinstance(event, events.GateClosed)] == [reason]
    assert world.books_balance()


async def test_a_refused_file_store_closes_the_gate_and_keeps_the_generation(world: World) -> None:
    user = world.user()
    async with world.worker(**NEVER):
        async with hearing(events.GateClosed) as closed:
            world.storage.fail("upload", times=1, status=403)
            met = world.order(user, world.scene(user))
            await closed.wait()
        waiting = world.order(user, world.scene(user))
        before = versions(world, [waiting])
        await world.beats(3)
        assert versions(world, [waiting]) == before
        assert seen_by(world, user) == [("*", "STORAGE_DENIED")]
        assert posts(world) == (1, 0)
        # Its generation is paid: the output is stored as soon as the pause is over.
        world.sql("update video_generation_tasks set run_after = now() where id = %s", met)
        await until(world, lambda: world.task(met)["image_path"] is not None)
        await until(world, lambda: world.task(met)["status"] == "pending")
        assert posts(world) == (1, 0)
        probe_now(world)
        rows = [await world.until(task) for task in (met, waiting)]
    assert {row["status"] for row in rows} == {"completed"}
    assert posts(world) == (2, 2)


async def test_a_clip_that_is_stored_is_concluded_behind_a_closed_gate(world: World) -> None:
    user = world.user()
    async with world.worker(**NEVER):
        async with hearing(events.GateClosed) as closed:
            world.storage.fail("sign", status=403, times=2)  # with the last stage, and after it
            task = world.order(user, world.scene(user))
            await closed.wait()
        await world.until(task, "pending", attempt=1)
        world.sql("update video_generation_tasks set run_after = now() where id = %s", task)
        row = await world.until(task)
        assert seen_by(world, user) == [("*", "STORAGE_DENIED")]
    assert row["status"] == "completed"


async def test_the_daily_limit_of_one_model_leaves_the_still_alone(world: World) -> None:
    user = world.user()
    world.sql(
        "insert into vidgen.gates (provider, scope, model, reason, message) "
        "values ('runway', '*', 'gen4.5', 'PROVIDER_QUOTA', 'paused')"
    )
    async with world.worker():
        row = await world.until(world.order(user, world.scene(user)))
    assert row["status"] == "completed"


async def test_probes_get_rarer_up_to_five_minutes(world: World) -> None:
    world.runway.set(key_disabled=True)
    user = world.user()
    pauses: list[timedelta] = []
    async with world.worker(VIDGEN_GATE_PROBE="1s"):
        async with hearing(events.GateClosed) as closed:
            world.order(user, world.scene(user))
            await closed.wait()
        for probes in (0, 1, 2, 3, 20):
            async with hearing(events.GateProbed) as probed:
                world.sql("update vidgen.gates set probe_at = now(), probes = %s", probes)
                await probed.wait()
            gate = world.one("select probe_at, until, probe_at - now() as rest from vidgen.gates")
            assert gate["probe_at"] == gate["until"]
            pauses.append(gate["rest"])
    for pause, seconds in zip(pauses, (2, 4, 8, 16, 300), strict=True):
        assert timedelta(seconds=seconds - 1) < pause <= timedelta(seconds=seconds)
    assert posts(world) == (1, 0)


async def test_a_bad_key_closes_nothing_for_the_others(world: World) -> None:
    user = world.user()
    async with world.worker(RUNWAYML_API_SECRET="key_" + "0" * 128, **NEVER) as bad:
        async with hearing(events.GateClosed) as closed:
            first = world.order(user, world.scene(user))
            await closed.wait()
        await world.until(first, "pending", attempt=1)
        world.sql("update video_generation_tasks set run_after = now() where id = %s", first)
        async with world.worker(**NEVER) as good:
            rows = [
                await world.until(task) for task in (first, world.order(user, world.scene(user)))
            ]
            assert seen_by(world, user) == [], "somebody works"
    assert {row["status"] for row in rows} == {"completed"}
    (gate,) = world.sql("select scope from vidgen.gates")
    assert gate["scope"] == f"key:{bad.process.life.queue.key.fingerprint}"
    assert bad.process.life.queue.key.fingerprint != good.process.life.queue.key.fingerprint


async def test_an_operator_closes_and_opens_by_hand(world: World) -> None:
    user = world.user()
    async with world.worker():
        world.sql(
            "insert into vidgen.gates (provider, scope, model, reason, message) values "
            "('runway', '*', '*', 'MAINTENANCE', 'Video generation is paused until noon.')"
        )
        assert seen_by(world, user) == [("*", "MAINTENANCE")]
        task = world.order(user, world.scene(user))
        before = versions(world, [task])
        await world.beats(3)
        assert versions(world, [task]) == before
        world.sql("delete from vidgen.gates")
        assert seen_by(world, user) == []
        row = await world.until(task)
    assert row["status"] == "completed"
    assert posts(world) == (1, 1)


async def test_a_gate_that_closes_between_claim_and_submit_holds(world: World) -> None:
    """The statement that records the submission looks at the gate itself."""
    user = world.user()

    def close(event: bus.Event) -> None:
        if isinstance(event, events.ResolutionMapped):
            world.sql(
                "insert into vidgen.gates (provider, scope, model, reason, message) "
                "values ('runway', '*', 'gen4_image', 'MAINTENANCE', 'paused') "
                "on conflict do nothing"
            )

    with bus.subscribed(close):
        async with world.worker(), hearing(events.TaskRequeued) as requeued:
            task = world.order(user, world.scene(user))
            await requeued.wait()
            await world.beats(2)
    row = world.task(task)
    assert (row["status"], row["failures"], row["attempt"]) == ("pending", 0, 1)
    assert posts(world) == (0, 0)
    assert world.sql("select * from vidgen.submissions") == []


# Storms.


async def closed_by(
    world: World, orders: Callable[[], list[UUID]], **settings: str
) -> tuple[str, str, list[UUID]]:
    """Order, wait until the gate is closed and all are put back: reason, model, tasks."""
    with recorded() as heard:
        async with world.worker(**NEVER | settings), hearing(events.GateClosed) as closed:
            tasks = orders()
            await closed.wait()
            # A drain in between would hand the last ones back as if they had never failed.
            await until(world, lambda: put_back(heard) >= set(tasks))
    gate = world.one("select model, reason from vidgen.gates")
    return gate["reason"], gate["model"], tasks


def put_back(heard: list[bus.Event]) -> set[UUID]:
    """The tasks that were put back so far."""
    return {event.fence.task_id for event in heard if isinstance(event, events.TaskRequeued)}


async def test_a_storm_closes_the_gate_and_one_task_opens_it(world: World) -> None:
    world.runway.set(outage=True)
    reason, model, tasks = await closed_by(
        world, lambda: crowd(world, IN_A_ROW), VIDGEN_RETRY_BACKOFF="1m"
    )
    assert (reason, model) == ("PROVIDER_STORM", "gen4_image")
    assert posts(world) == (IN_A_ROW, 0)
    (fresh,) = crowd(world, 1)
    with recorded() as heard:
        async with world.worker(**NEVER, VIDGEN_RETRY_BACKOFF="1m"):
            # The account can be read again, but a POST still fails: one pays for finding out.
            world.runway.set(outage=False)
            world.sql(
                "update video_scenes set image_prompt = '[[500-before-accept]] x' where id = "
                "(select scene_id from video_generation_tasks where id = %s)",
                fresh,
            )
            async with hearing(events.TaskRequeued) as failed:
                probe_now(world)
                await failed.wait()
            assert posts(world) == (IN_A_ROW + 1, 0)
            assert world.task(fresh)["attempt"] == 1
            assert seen_by(world, world.user()) == [("gen4_image", "PROVIDER_STORM")]

            async with hearing(events.GateOpened) as opened:
                world.sql(
                    "update video_generation_tasks set run_after = now() where id = %s", fresh
                )
                probe_now(world)
                await opened.wait()
            world.sql(
                "update video_generation_tasks set run_after = now() "
                "where status = 'pending' and id = any(%s)",
                tasks,
            )
            rows = [await world.until(task) for task in (fresh, *tasks)]
    assert {row["status"] for row in rows} == {"completed"}
    assert posts(world) == (2 * IN_A_ROW + 2, IN_A_ROW + 1)
    opened_by = [event for event in heard if isinstance(event, events.GateOpened)]
    assert [(event.code, event.model) for event in opened_by] == [("PROVIDER_STORM", "gen4_image")]
    assert world.books_balance()


async def test_only_one_task_is_let_through_by_any_number_of_workers(world: World) -> None:
    world.sql(
        "insert into vidgen.gates (provider, scope, model, reason, message, probe_at) "
        "select 'runway', 'default', 'gen4_image', 'PROVIDER_STORM', 'paused',"
        " now() + interval '1 hour'"
    )
    tasks = crowd(world, 4, "[[stall]]")
    async with (
        world.worker(**NEVER),
        world.worker(**NEVER),
        hearing(events.SubmissionRecorded) as it,
    ):
        for _ in range(3):
            async with hearing(events.GateProbed) as probed:
                probe_now(world)
                await probed.wait()
        await it.wait()
        await world.beats(4)
        states = [world.task(task)["status"] for task in tasks]
    assert sorted(states) == ["pending", "pending", "pending", "processing"]
    assert posts(world) == (1, 0)


async def test_a_long_storage_outage_stops_new_submits_and_keeps_what_was_paid(
    world: World,
) -> None:
    world.storage.fail("upload", times=100_000, status=503)
    reason, model, tasks = await closed_by(world, lambda: crowd(world, IN_A_ROW))
    assert (reason, model) == ("STORAGE_UNAVAILABLE", "*")
    paid = posts(world)
    assert paid == (IN_A_ROW, 0)
    (late,) = crowd(world, 1)
    async with world.worker(**NEVER):
        await world.beats(2)
        assert posts(world) == paid
        world.storage.heal()
        probe_now(world)
        rows = [await world.until(task) for task in (*tasks, late)]
    assert {row["status"] for row in rows} == {"completed"}
    assert {row["failures"] for row in rows} == {0}
    assert posts(world) == (IN_A_ROW + 1, IN_A_ROW + 1)


async def test_a_rate_of_broken_outputs_closes_the_gate(world: World) -> None:
    reason, model, _ = await closed_by(
        world, lambda: crowd(world, IN_A_ROW, "[[garbage]]"), VIDGEN_RETRY_BACKOFF="1m"
    )
    assert (reason, model) == ("PROVIDER_STORM", "gen4_image")


async def test_one_users_odd_prompts_close_nothing_for_the_others(world: World) -> None:
    user = world.user()
    async with hearing(events.UserBraked) as braked, world.worker():
        tasks = [
            world.order(user, world.scene(user, image_prompt=f"[[fail INTERNAL]] {number}"))
            for number in range(5)
        ]
        await braked.wait()
        (other,) = crowd(world, 1)
        assert (await world.until(other))["status"] == "completed"
        assert {world.task(task)["status"] for task in tasks} <= {"pending", "processing", "failed"}
    assert seen_by(world, user) == []
