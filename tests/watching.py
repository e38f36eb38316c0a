"""Waiting for a condition in the database: every change of a watched table is a NOTIFY.

It waits for what happens, never for time to pass. It changes no row.
"""

import asyncio
from typing import LiteralString

import psycopg
from psycopg import sql

from tests.world import PATIENCE, World

TABLES = (
    "public.video_generation_tasks", "vidgen.workers", "vidgen.checkpoints", "vidgen.submissions",
    "vidgen.budgets", "vidgen.gates", "vidgen.limits",
)  # fmt: skip

_TELL = """
create or replace function public.tell_of_anything() returns trigger language plpgsql as $$
begin
  perform pg_notify('test_anything', '');
  return null;
end $$
"""


def watch(world: World) -> None:
    """Let every statement that changes one of our tables be heard."""
    with world.admin() as conn:
        conn.execute(_TELL)
        for table in TABLES:
            conn.execute(
                sql.SQL(
                    "create or replace trigger tell_of_anything after insert or update or delete "
                    "on {} for each statement execute function public.tell_of_anything()"
                ).format(sql.Identifier(*table.split(".")))
            )


async def until_true(
    world: World, condition: LiteralString, *parameters: object, patience: float = PATIENCE
) -> None:
    """Wait until a SELECT of one boolean says true. Raises TimeoutError after `patience` s."""
    async with await psycopg.AsyncConnection.connect(
        world.database.admin_url, autocommit=True
    ) as conn:
        await conn.execute("listen test_anything")
        async with asyncio.timeout(patience):
            while True:
                cursor = await conn.execute(condition, parameters)
                found = await cursor.fetchone()
                if found is not None and found[0]:
                    return
                async for _ in conn.notifies(timeout=patience, stop_after=1):
                    pass
