"""Accounts and keys: a generation is followed by those who can see it, and paid for once.

Two keys of one Runway account, or of two, over one database; the double answers 404 for another
account's generation, as the real service does.
"""

from collections import Counter
from typing import Any
from uuid import UUID

from tests.test_submissions import until
from tests.world import World, recorded
from vidgen_worker import events

FIVE = 5
SLOW = "[[slow 2s]]"


def orders(world: World, count: int = FIVE) -> list[UUID]:
    """Tasks of as many users, whose stills take a while."""
    tasks = []
    for number in range(count):
        user = world.user()
        tasks.append(world.order(user, world.scene(user, image_prompt=f"{SLOW} {number}")))
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


def refused(heard: list[events.Event]) -> set[UUID]:
    """The tasks whose generation a worker left to others."""
    return {e.fence.task_id for e in heard if isinstance(e, events.GenerationNotOurs)}


async def test_two_accounts_under_one_label_pay_for_nothing_twice(world: World) -> None:
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
