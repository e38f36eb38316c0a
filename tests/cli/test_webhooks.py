"""`webhooks` as an operator uses it: a key shown once, and what came of each delivery."""

import asyncio
from uuid import uuid4

from tests.support.commands import Cli, cli, connected
from tests.support.hands import Ground
from tests.support.receiver import receiving
from tests.support.world import World, hearing, told, vidgen
from vidgen_worker.telemetry.events import DeliverySent

__all__ = ["cli", "connected"]


async def test_an_operator_adds_sees_and_removes_a_webhook(world: World) -> None:
    async with receiving() as receiver, hearing(DeliverySent) as tested:
        made = await asyncio.to_thread(told, world, "webhooks", "add", receiver.url)
        assert made["secret"].startswith("whsec_")
        async with world.worker(VIDGEN_WEBHOOK_ALLOW_LOOPBACK="true"):
            await asyncio.wait_for(tested.wait(), 60)
    beginning = made["id"][:8]
    (listed,) = told(world, "webhooks", "list")
    assert (listed["enabled"], listed["waiting"], listed["last_status"]) == (True, 0, 204)
    (sent,) = told(world, "webhooks", "deliveries", "--webhook", beginning)
    assert (sent["event"], sent["state"], sent["tries"]) == ("webhook.test", "delivered", 1)
    shown = (
        vidgen(world, "webhooks", "list").stdout + vidgen(world, "webhooks", "deliveries").stdout
    )
    assert made["secret"] not in shown
    assert "enabled" in shown
    assert "delivered in " in shown
    new = told(world, "webhooks", "rotate", beginning, "--yes")["secret"]
    assert new != made["secret"]
    assert told(world, "webhooks", "resend", beginning, "--since", "1h", "--yes") == {
        "deliveries": 0
    }
    told(world, "webhooks", "remove", beginning, "--yes")
    assert vidgen(world, "webhooks", "list").stdout.startswith("There is no webhook.")


def test_what_is_mistyped_is_named(connected: Cli, ground: Ground) -> None:
    wrong = connected("webhooks", "add", "http://example.com/")
    assert wrong.code != 0
    assert "url_is_https_without_a_user_or_another_port" in wrong.err
    assert ground.none("select from public.video_webhooks")
    wrong = connected("webhooks", "add", "https://example.com/", "--event", "video.complete")
    assert "Did you mean video.completed?" in wrong.err
    gone = connected("webhooks", "test", str(uuid4()))
    assert "there is no webhook" in gone.err
    nobody = connected("webhooks", "test", "abcd")
    assert "There is no webhook whose id begins with abcd" in nobody.err
