"""From a row's end to a receiver: real workers, a real receiver, deaths in between."""

import asyncio
import json
import signal
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from standardwebhooks import Webhook

from tests.support.receiver import Receiver, receiving, status
from tests.support.watching import until_true
from tests.support.world import World, hearing, recorded
from vidgen_worker.telemetry.events import (
    DeliveryFailed,
    DeliverySent,
    WebhookDisabled,
)
from vidgen_worker.webhooks import schedule

LOOPBACK = {"VIDGEN_WEBHOOK_ALLOW_LOOPBACK": "true"}


def webhook(world: World, receiver: Receiver, *events: str) -> tuple[UUID, str]:
    """The id of a webhook of the operator's, and its secret."""
    (row,) = world.sql(
        "select public.create_video_webhook(%s, %s) as made",
        receiver.url,
        list(events or ["video.*"]),
    )
    return UUID(row["made"]["id"]), row["made"]["secret"]


def kinds(receiver: Receiver) -> list[str]:
    return [json.loads(one.body)["type"] for one in receiver.told]


async def test_a_receiver_is_told_of_an_end_as_the_standard_says(world: World) -> None:
    user = world.user()
    async with receiving() as receiver, hearing(DeliverySent) as tested:
        _, secret = webhook(world, receiver)
        async with world.worker(**LOOPBACK):
            await asyncio.wait_for(tested.wait(), 60)
            task = world.order(user, world.scene(user))
            await world.until(task, "completed")
            told = await receiver.until(2)
    body = Webhook(secret).verify(told[1].body, told[1].headers)
    assert (body["type"], body["data"]["task_id"]) == ("video.completed", str(task))
    assert body["data"]["credits"] == 30
    assert body["data"]["video_path"] == world.task(task)["video_path"]
    assert told[1].headers["user-agent"].startswith("vidgen-worker/")
    (shown,) = world.sql("select enabled, last_status from public.video_webhooks")
    assert (shown["enabled"], shown["last_status"]) == (True, 204)


async def test_a_refused_event_is_sent_again_with_the_same_id(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "PAUSES", (timedelta(seconds=0.05),) * 9)
    async with receiving() as receiver, hearing(DeliverySent) as arrived:
        receiver.answers.extend([status(500), status(302, "location: /other"), status(429)])
        webhook(world, receiver)
        with recorded() as heard:
            async with world.worker(**LOOPBACK):
                await asyncio.wait_for(arrived.wait(), 60)
    assert len(receiver.told) == 4
    assert len({one.headers["webhook-id"] for one in receiver.told}) == 1
    assert len({one.body for one in receiver.told}) == 1
    failures = [event for event in heard if isinstance(event, DeliveryFailed)]
    assert [event.error for event in failures] == ["status 500", "status 302", "status 429"]
    assert {event.follows for event in failures} == {"again"}


async def test_410_ends_it(world: World) -> None:
    async with receiving() as receiver, hearing(DeliverySent) as tested:
        webhook(world, receiver)
        async with world.worker(**LOOPBACK):
            await asyncio.wait_for(tested.wait(), 60)
            receiver.answers.append(status(410))
            async with hearing(WebhookDisabled) as disabled:
                world.sql("select vidgen.deliver('video.failed', null, null, 'one', '{}')")
                await asyncio.wait_for(disabled.wait(), 60)
    assert kinds(receiver) == ["webhook.test", "video.failed"]


async def test_without_the_setting_nothing_on_this_machine_is_reached(world: World) -> None:
    async with receiving() as receiver, hearing(DeliveryFailed) as refused:
        webhook(world, receiver)
        with recorded() as heard:
            async with world.worker():
                await asyncio.wait_for(refused.wait(), 60)
    (event,) = [event for event in heard if isinstance(event, DeliveryFailed)]
    assert "not a public one" in event.error
    assert receiver.connections == 0


async def test_a_dead_receiver_holds_up_nobody_else(world: World) -> None:
    async with receiving() as dead, receiving() as alive:
        for one in (dead, alive):
            webhook(world, one)
        async with world.worker(**LOOPBACK):
            await asyncio.gather(dead.until(1), alive.until(1))
            await until_true(world, "select count(*) = 2 from public.video_webhooks where enabled")
            dead.open.clear()
            world.sql(
                "select vidgen.deliver('video.failed', null, null, n::text, '{}')"
                " from generate_series(1, 30) as n"
            )
            await alive.until(31)
            assert dead.most_waiting <= 2
            dead.open.set()


async def test_a_killed_worker_s_event_arrives_by_another(world: World, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    async with receiving() as receiver:
        receiver.open.clear()
        webhook(world, receiver)
        with world.process(log, **LOOPBACK) as first:
            await receiver.until(1)
            first.send_signal(signal.SIGKILL)
        receiver.open.set()
        # Its lease is a minute: let it be over.
        world.sql("update vidgen.deliveries set leased_until = now(), next_at = now()")
        async with world.worker(**LOOPBACK), hearing(DeliverySent) as arrived:
            await asyncio.wait_for(arrived.wait(), 60)
    assert len({one.headers["webhook-id"] for one in receiver.told}) == 1
    (row,) = world.sql("select tries, delivered_at from vidgen.deliveries")
    assert row["tries"] == 2
    assert row["delivered_at"] is not None


async def test_a_drain_gives_back_what_is_under_way(world: World) -> None:
    async with receiving() as receiver:
        receiver.open.clear()
        webhook(world, receiver)
        async with world.worker(**LOOPBACK):
            await receiver.until(1)
        (row,) = world.sql("select leased_until, next_at <= now() as due from vidgen.deliveries")
        assert (row["leased_until"], row["due"]) == (None, True)


async def test_an_end_that_nobody_waits_for_makes_no_delivery(world: World) -> None:
    user = world.user()
    async with world.worker():
        await world.until(world.order(user, world.scene(user)), "completed")
    assert world.sql("select from vidgen.deliveries") == []
