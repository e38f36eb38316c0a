"""`vidgen-worker reconcile` and `gate`: when the books or the provider don't fit."""

import json
from uuid import uuid4

import httpx
import pytest

from tests.support.world import World, vidgen


async def test_what_the_worker_did_is_explained(world: World) -> None:
    """Generations and credits of a task that ran fit the provider's own counters."""
    first = vidgen(world, "reconcile")
    assert first.returncode == 0, first.stderr
    user = world.user()
    async with world.worker():
        await world.until(world.order(user, world.scene(user)))
    found = vidgen(world, "reconcile", "--json")
    assert found.returncode == 0, found.stderr
    told = json.loads(found.stdout)
    assert {m["model"]: (m["provider"], m["ours"]) for m in told["models"]} == {
        "gen4_image": (1, 1), "gen4_turbo": (1, 1),
    }  # fmt: skip
    assert told["unexplained"] == 0
    assert float(told["credits"]["gone since"]) > 0
    assert float(told["credits"]["unexplained"]) == 0


def test_a_generation_that_nobody_recorded_is_found(world: World) -> None:
    """Somebody else uses the key: one generation and its credits are unexplained."""
    assert vidgen(world, "reconcile").returncode == 0
    answer = httpx.post(
        f"{world.runway.url}/v1/text_to_image",
        headers={"Authorization": f"Bearer {world.runway.key}", "X-Runway-Version": "2024-11-06"},
        json={"model": "gen4_image", "promptText": "not ours", "ratio": "1280:720"},
    )
    assert answer.status_code == 200, answer.text
    found = vidgen(world, "reconcile")
    assert found.returncode == 1
    assert "can explain" in found.stderr
    told = json.loads(vidgen(world, "reconcile", "--json").stdout)
    assert told["unexplained"] == 1


async def test_an_ambiguous_submission_explains_a_generation(world: World) -> None:
    """What may have been paid is counted as such, not as a riddle."""
    user = world.user()
    scene = world.scene(user, image_prompt=f"[[drop-after-accept]] {uuid4()}")
    async with world.worker():
        await world.until(world.order(user, scene))
    told = json.loads(vidgen(world, "reconcile", "--json").stdout)
    (image,) = [m for m in told["models"] if m["model"] == "gen4_image"]
    assert (image["provider"], image["ours"], image["unknown"], image["unexplained"]) == (
        2,
        1,
        1,
        0,
    )


@pytest.mark.parametrize("model", ["*", "gen4_turbo"])
async def test_an_operator_closes_and_opens_a_gate_by_hand(world: World, model: str) -> None:
    """Closed, nothing new starts; the task goes on by itself once it is open again."""
    closed = vidgen(world, "gate", "close", model, "--yes")
    assert closed.returncode == 0, closed.stderr
    user = world.user()
    task = world.order(user, world.scene(user))
    seen = world.as_user(user, "select model, reason, message from video_generation_gates")
    assert [(row["model"], row["reason"]) for row in seen] == [(model, "OPERATOR")]
    async with world.worker():
        await world.beats(2)
        assert world.task(task)["status"] == "pending"
        assert world.runway.requests() == []
        listed = vidgen(world, "gate", "list")
        assert "OPERATOR" in listed.stdout
        opened = vidgen(world, "gate", "open", model, "--yes")
        assert opened.returncode == 0, opened.stderr
        assert (await world.until(task))["status"] == "completed"
    assert vidgen(world, "gate", "list").stdout.strip() == "All gates are open."
    assert vidgen(world, "gate", "open", model, "--yes").returncode == 1


def test_closing_a_gate_needs_a_yes(world: World) -> None:
    """It says what it would do, and does nothing."""
    asked = vidgen(world, "gate", "close")
    assert asked.returncode == 2
    assert "every worker" in asked.stdout + asked.stderr
    assert world.sql("select * from vidgen.gates") == []
