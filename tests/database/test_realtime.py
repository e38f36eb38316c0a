"""What Realtime would send: read from a logical slot, as its own reader does.

One committed UPDATE per change that a user can see, none for leases, heartbeats, checkpoints or
gates, and never a DELETE. The server needs wal_level=logical; the wheel and the container have it.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from uuid import uuid4

import pytest

from tests.support.world import World

COLUMN = re.compile(r"(\w+)\[[^\]]+\]:('(?:[^']|'')*'|\S+)")
TABLE = "table public.video_generation_tasks:"


@contextmanager
def slot(world: World) -> Iterator[str]:
    """A logical slot that ends with the block."""
    if world.one("show wal_level")["wal_level"] != "logical":
        pytest.skip("this server's wal_level is not logical")
    name = f"test_{uuid4().hex[:12]}"
    world.sql("select pg_create_logical_replication_slot(%s, 'test_decoding')", name)
    try:
        yield name
    finally:
        world.sql("select pg_drop_replication_slot(%s)", name)


def changes(world: World, name: str) -> list[tuple[str, dict[str, str]]]:
    """The events of the watched table: the verb, and the row at that time."""
    rows = world.sql("select data from pg_logical_slot_get_changes(%s, null, null)", name)
    found = []
    for row in rows:
        if row["data"].startswith(TABLE):
            verb, _, values = row["data"].removeprefix(TABLE).strip().partition(":")
            found.append((verb, dict(COLUMN.findall(values))))
    return found


def visible(row: dict[str, str]) -> dict[str, str]:
    """The row without the clock that every update moves."""
    return {name: value for name, value in row.items() if name != "updated_at"}


@pytest.mark.parametrize(
    "table", ["video_generation_tasks", "video_generation_gates", "video_renditions"]
)
def test_realtime_delivers_updates_to_clients(world: World, table: str) -> None:
    rows = world.sql(
        "select 1 as yes from pg_publication_tables where pubname = 'supabase_realtime'"
        " and schemaname = 'public' and tablename = %s and rowfilter is null",
        table,
    )
    assert len(rows) == 1


async def test_each_update_changes_a_visible_column(world: World) -> None:
    """Many heartbeats and every checkpoint of a whole task: only visible changes are sent."""
    user = world.user()
    scene = world.scene(user, visual_prompt="[[throttle 1s]] slow")
    with slot(world) as name:
        async with world.worker(VIDGEN_LEASE="3s"):
            await world.until(world.order(user, scene))
            await world.beats(2)
        seen = changes(world, name)
    assert [verb for verb, _ in seen[:1]] == ["INSERT"]
    assert {verb for verb, _ in seen[1:]} == {"UPDATE"}
    rows = [visible(row) for _, row in seen]
    assert all(before != after for before, after in pairwise(rows))
    # Claim, scene, and for each stage submit, stored output, checkpoint; then the end. What is
    # beyond that is progress: one a second and task at most.
    started, ended = (seen[i][1]["updated_at"] for i in (1, -1))
    seconds = world.one(
        "select extract(epoch from %s::timestamptz - %s::timestamptz)::float as s",
        ended.strip("'"), started.strip("'"),
    )["s"]  # fmt: skip
    assert len(seen) - 1 <= 10 + seconds + 1


async def test_leases_checkpoints_and_gates_are_never_sent(world: World) -> None:
    """While nothing visible happens, nothing is sent, however busy the workers are."""
    user = world.user()
    async with world.worker(RUNWAYML_ENABLED="false"):
        task = world.order(user, world.scene(user))
        with slot(world) as name:
            await world.beats(3)
            world.sql(
                "insert into vidgen.gates (provider, scope, model, reason, message)"
                " values ('runway', '*', '*', 'PROVIDER_UNFUNDED', 'paused')"
            )
            world.sql("delete from vidgen.gates")
            assert changes(world, name) == []
    assert world.task(task)["status"] == "pending"


@pytest.mark.parametrize("role", ["anon", "authenticated", "vidgen_worker"])
def test_no_client_and_no_worker_deletes_a_row(world: World, role: str) -> None:
    """Realtime sends a DELETE to all who watch the table, not only to the row's owner."""
    row = world.one(
        "select has_table_privilege(%s, 'public.video_generation_tasks', 'delete') as may", role
    )
    assert row == {"may": False}


async def test_control_an_update_without_a_visible_change_is_found(world: World) -> None:
    user = world.user()
    task = world.order(user, world.scene(user))
    with slot(world) as name:
        world.sql("update video_generation_tasks set message = 'a' where id = %s", task)
        world.sql("update video_generation_tasks set message = 'a' where id = %s", task)
        seen = changes(world, name)
    assert len(seen) == 2
    assert visible(seen[0][1]) == visible(seen[1][1])
