"""Accounts and keys: a generation is followed by those who can see it, and paid for once.

Two keys of one Runway account, or of two, over one database; the double answers 404 for another
account's generation, as the real service does.
"""

from collections import Counter
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.support.watching import until
from tests.support.world import PATIENCE, World, recorded
from vidgen_worker.telemetry import bus, events

FIVE = 5
SLOW = "[[slow 3s]]"


@pytest.fixture(autouse=True)
def _slots_for_all(world: World) -> None:
    """Set limits, so that stills begin at once, before a worker has read the account."""
    world.environment = {"VIDGEN_IMAGE_SLOTS": "20", "VIDGEN_VIDEO_SLOTS": "20"}


def orders(world: World, count: int = FIVE, words: str = SLOW) -> list[UUID]:
    """Tasks of as many users, whose stills take a while."""
    tasks = []
    for number in range(count):
        user = world.user()
        tasks.append(world.order(user, world.scene(user, image_prompt=f"{words} {number}")))
    return tasks


def paid(world: World) -> Counter[tuple[str, str]]:
    """How many generations of each kind each account has made."""
    return Counter((one["account"], one["kind"]) for one in world.runway.generations())


def kinds(world: World) -> Counter[str]:
    """How many generations of each kind were paid."""
    return Counter(one["kind"] for one in world.runway.generations())


def states(world: World, tasks: list[UUID]) -> list[str]:
    """The statuses of the tasks."""
    return [world.task(task)["status"] for task in tasks]


async def submitted(world: World, tasks: list[UUID]) -> None:
    """Wait until each of them has a generation at the provider."""
    await until(world, lambda: len(generating(world)) == len(tasks))


def generating(world: World) -> list[dict[str, Any]]:
    """The checkpoints that follow a generation."""
    return world.sql("select * from vidgen.checkpoints where state = 'generating'")


def refused(heard: list[bus.Event]) -> set[UUID]:
    """The tasks whose generation a worker left to others."""
    return {e.fence.task_id for e in heard if isinstance(e, events.GenerationNotOurs)}


async def test_two_accounts_under_one_label_pay_for_no_stage_twice(world: World) -> None:
    """Five needed, five paid: a stranger's 404 is no end of a generation."""
    other = world.runway.another_key("other")
    async with world.worker():
        tasks = orders(world)
        await submitted(world, tasks)
    with recorded() as heard:
        async with world.worker(RUNWAYML_API_SECRET=other):
            await until(world, lambda: refused(heard) == set(tasks))
            async with world.worker():
                rows = [await world.until(task) for task in tasks]
    assert {row["status"] for row in rows} == {"completed"}
    assert {row["failures"] for row in rows} == {0}
    assert kinds(world) == {"image": FIVE, "video": FIVE}
    assert world.books_balance()


async def test_workers_of_another_label_never_ask_for_a_generation(world: World) -> None:
    """They go on with new tasks meanwhile: generations of others delay none of them."""
    other = world.runway.another_key("other")
    async with world.worker(VIDGEN_ACCOUNT="one"):
        tasks = orders(world)
        await submitted(world, tasks)
    with recorded() as heard:
        async with world.worker(VIDGEN_ACCOUNT="two", RUNWAYML_API_SECRET=other):
            new = orders(world, 1)[0]
            assert (await world.until(new))["status"] == "completed"
            assert states(world, tasks) == ["pending"] * FIVE
            assert refused(heard) == set()
            async with world.worker(VIDGEN_ACCOUNT="one"):
                rows = [await world.until(task) for task in tasks]
    assert {row["status"] for row in rows} == {"completed"}
    assert (paid(world)["first", "image"], paid(world)["other", "image"]) == (FIVE, 1)
    assert kinds(world) == {"image": FIVE + 1, "video": FIVE + 1}
    labels = world.sql("select distinct account, key_fingerprint from vidgen.submissions")
    assert {row["account"] for row in labels} == {"one", "two"}
    assert len(labels) == 2


@pytest.mark.parametrize("how", ["drained", "killed"])
async def test_a_rotation_of_keys_loses_and_repeats_no_generation(
    world: World, tmp_path: Path, how: str
) -> None:
    """Same account, new key: the old one is revoked as soon as its worker is gone."""
    new = world.runway.another_key()
    with world.process(tmp_path / "old.log") as old:
        tasks = orders(world)
        await submitted(world, tasks)
        if how == "killed":
            old.kill()
        else:
            old.terminate()
        old.wait(PATIENCE)
    world.runway.revoke(world.runway.key)
    async with world.worker(RUNWAYML_API_SECRET=new):
        rows = [await world.until(task) for task in tasks]
    assert {row["status"] for row in rows} == {"completed"}
    assert {row["failures"] for row in rows} == {0}
    assert kinds(world) == {"image": FIVE, "video": FIVE}
    assert world.books_balance()


async def test_two_keys_of_one_account_share_its_tier(world: World) -> None:
    """Nothing is ever throttled, because nothing is ever sent beyond the limit.

    Neither has places for three, so both work; together they have places for four.
    """
    world.environment = {"VIDGEN_CONCURRENCY": "2"}
    world.runway.set(concurrency=3)
    async with world.worker(), world.worker(RUNWAYML_API_SECRET=world.runway.another_key()):
        rows = [await world.until(task) for task in orders(world, 6)]
    assert {row["status"] for row in rows} == {"completed"}
    assert {one["throttledSeconds"] for one in world.runway.generations()} == {0}
    keys = world.sql("select distinct key_fingerprint from vidgen.submissions")
    assert len(keys) == 2, "both have worked"


async def test_a_generation_whose_key_is_gone_for_an_hour_is_paid_again(world: World) -> None:
    """Within the cap: the user is not left waiting for good."""
    other = world.runway.another_key("other")
    async with world.worker():
        tasks = orders(world, 1)
        await submitted(world, tasks)
    async with world.worker(RUNWAYML_API_SECRET=other) as worker:
        with recorded() as heard:
            await until(world, lambda: refused(heard) == set(tasks))
            await worker.janitor.strays.end()
            # Its last sign of life is recent.
            await world.until(tasks[0], "pending")
            world.sql(
                "update vidgen.keys set heard_at = now() - interval '61 minutes'"
                " where key_fingerprint <> %s", worker.process.life.queue.key.fingerprint,
            )  # fmt: skip
            world.sql("update vidgen.submissions set sent_at = now() - interval '61 minutes'")
            await worker.janitor.strays.end()
            row = await world.until(tasks[0])
    assert row["status"] == "completed"
    assert paid(world) == {("first", "image"): 1, ("other", "image"): 1, ("other", "video"): 1}
    ends = world.sql("select account, ended_state from vidgen.submissions order by sent_at")
    assert [end["ended_state"] for end in ends] == ["gone", "succeeded", "succeeded"]


async def test_a_cancel_ends_a_generation_with_the_account_that_made_it(world: World) -> None:
    other = world.runway.another_key("other")
    async with world.worker():
        tasks = orders(world, 1)
        await submitted(world, tasks)
    (user,) = world.sql("select user_id from video_generation_tasks")
    async with world.worker(RUNWAYML_API_SECRET=other):
        world.as_user(user["user_id"], "select public.cancel_video_generation_task(%s)", tasks[0])
        await until(world, lambda: only_its_key(world))
        assert world.runway.generations()[0]["state"] != "CANCELLED"
        async with world.worker():
            row = await world.until(tasks[0])
    assert row["status"] == "cancelled"
    assert [one["state"] for one in world.runway.generations()] == ["CANCELLED"]
    assert world.one("select ended_state from vidgen.submissions")["ended_state"] == "cancelled"


def only_its_key(world: World) -> bool:
    """Whether its generation is left to the key that made it."""
    found: str = world.one("select followed_by from vidgen.submissions")["followed_by"]
    return found == "key"


async def test_strays_are_ended_by_the_account_that_made_them(world: World) -> None:
    """A stranger's 404 would book an end without a cost, and free a place that is taken."""
    other = world.runway.another_key("other")
    async with world.worker():
        await submitted(world, orders(world, 1, "[[stall]]"))
    world.sql("delete from vidgen.checkpoints")
    world.sql("update video_generation_tasks set status = 'cancelled', completed_at = now()")
    world.sql("update vidgen.submissions set answered_at = now() - interval '2 minutes'")
    async with world.worker(RUNWAYML_API_SECRET=other) as stranger:
        await world.beats(4)
        await stranger.janitor.strays.end()
        assert world.one("select ended_at from vidgen.submissions")["ended_at"] is None
        async with world.worker() as maker:
            await until(world, lambda: len(world.sql("select id from vidgen.workers")) == 2)
            world.sql("update vidgen.submissions set looked_at = null")
            await maker.janitor.strays.end()
    assert world.one("select ended_state from vidgen.submissions")["ended_state"] == "cancelled"


async def test_a_cost_is_not_called_gone_by_a_stranger(world: World) -> None:
    other = world.runway.another_key("other")
    user = world.user()
    async with world.worker(VIDGEN_RETRY_BACKOFF="1h") as maker:
        scene = world.scene(user, image_prompt="[[fail INTERNAL cost 3]]")
        await world.until(world.order(user, scene), "pending", attempt=1)
        world.sql(
            "update vidgen.submissions set ended_at = now() - interval '6 minutes', cost = null"
        )
        world.sql("update vidgen.submissions set cost_read_at = ended_at")
        async with world.worker(RUNWAYML_API_SECRET=other) as stranger:
            await world.beats(2)
            await stranger.janitor.strays.read_costs_again()
            assert world.one("select cost from vidgen.submissions")["cost"] is None
            await maker.janitor.strays.read_costs_again()
    row = world.one("select ended_state, cost from vidgen.submissions")
    assert (row["ended_state"], row["cost"]) == ("failed", 3)


async def test_a_key_follows_generations_from_before_its_label(world: World) -> None:
    """Generations of the previous version have the default label, and their own key."""
    async with world.worker():
        tasks = orders(world, 2)
        await submitted(world, tasks)
    async with world.worker(VIDGEN_ACCOUNT="main"):
        rows = [await world.until(task) for task in tasks]
    assert {row["status"] for row in rows} == {"completed"}
    assert kinds(world) == {"image": 2, "video": 2}


async def test_a_retried_task_goes_to_the_account_that_has_its_output(world: World) -> None:
    """A retry waits in the line of everybody; the wrong worker hands it back once, unharmed."""
    other = world.runway.another_key("other")
    async with world.worker(VIDGEN_ACCOUNT="one"):
        tasks = orders(world, 1)
        await submitted(world, tasks)
    world.sql("update vidgen.checkpoints set state = 'storing'")
    world.sql(
        "update video_generation_tasks set status = 'failed', error_code = 'X',"
        " error_message = 'x', error = '{}', completed_at = now() where id = %s", tasks[0],
    )  # fmt: skip
    world.sql("select public.retry_video_generation_task(%s)", tasks[0])
    with recorded() as heard:
        async with world.worker(VIDGEN_ACCOUNT="two", RUNWAYML_API_SECRET=other):
            await until(world, lambda: refused(heard) == set(tasks))
            await world.beats(3)
            assert world.task(tasks[0])["status"] == "pending"
            assert world.task(tasks[0])["attempt"] == 2, "claimed once, and never again"
            async with world.worker(VIDGEN_ACCOUNT="one"):
                row = await world.until(tasks[0])
    assert row["status"] == "completed"
    assert kinds(world) == {"image": 1, "video": 1}


async def test_one_machine_with_a_wrong_key_of_runways_stops_nobody_else(world: World) -> None:
    """The worker keeps tasks that it has taken up for others, and stands aside."""
    user = world.user()
    async with world.worker(RUNWAYML_API_SECRET="key_" + "0" * 128, VIDGEN_GATE_PROBE="1h") as bad:
        first = [world.order(user, world.scene(user)) for _ in range(3)]
        await until(world, lambda: put_back(world, first))
        async with world.worker(VIDGEN_GATE_PROBE="1h"):
            # They were put back for the time of a probe: nobody else was there then.
            world.sql("update video_generation_tasks set run_after = now()")
            more = [world.order(user, world.scene(user)) for _ in range(9)]
            rows = [await world.until(task) for task in (*more, *first)]
            assert world.as_user(user, "select * from video_generation_gates") == []
        assert bad.process.held.tasks == {}
    assert {row["status"] for row in rows} == {"completed"}
    assert kinds(world) == {"image": 12, "video": 12}


def put_back(world: World, tasks: list[UUID]) -> bool:
    """Whether a gate is closed, and all of them wait."""
    rows = [world.task(task) for task in tasks]
    closed = world.one("select exists (select from vidgen.gates) as closed")["closed"]
    return bool(closed) and {row["status"] for row in rows} == {"pending"}


async def test_a_worker_whose_key_is_refused_hands_its_generations_to_another_key(
    world: World,
) -> None:
    """A key that is revoked while its worker runs: what it follows goes on elsewhere."""
    new = world.runway.another_key()
    async with world.worker(VIDGEN_GATE_PROBE="1h"):
        tasks = orders(world, 2)
        await submitted(world, tasks)
        async with world.worker(RUNWAYML_API_SECRET=new):
            world.runway.revoke(world.runway.key)
            rows = [await world.until(task) for task in tasks]
    assert {row["status"] for row in rows} == {"completed"}
    assert kinds(world) == {"image": 2, "video": 2}
    (gate,) = world.sql("select scope, reason from vidgen.gates")
    assert gate["scope"].startswith("key:")
    assert gate["reason"] == "PROVIDER_DENIED"
