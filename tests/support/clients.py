"""Clients as PostgREST makes them: a role, the claims of a user, orders as its own."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from tests.support.hands import Connection, Ground, Row

TASKS = "public.video_generation_tasks"


@contextmanager
def acting(
    ground: Ground, role: str, user_id: UUID | None = None, *, claims: dict[str, Any] | None = None
) -> Iterator[Connection]:
    """A connection that is who PostgREST would make of these claims, until the block ends."""
    with ground.hand() as hand, hand.conn.transaction():
        claims = claims or {"role": role} | ({"sub": str(user_id)} if user_id else {})
        hand.conn.execute("select set_config('request.jwt.claims', %s, true)", [json.dumps(claims)])
        hand.conn.execute(f"set local role {role}".encode())
        yield hand.conn


def as_user(ground: Ground, user_id: UUID, statement: str, *parameters: object) -> list[Row]:
    """One statement of a signed-in user, committed."""
    with acting(ground, "authenticated", user_id) as conn:
        cursor = conn.execute(statement.encode(), parameters)
        return cursor.fetchall() if cursor.description else []


def insert(ground: Ground, user_id: UUID, /, **columns: object) -> UUID:
    """A task, ordered by its user."""
    values = {"scene_id": ground.scene(user_id), **columns}
    places = ", ".join(["%s"] * len(values))
    (row,) = as_user(
        ground, user_id,
        f"insert into {TASKS} ({', '.join(values)}) values ({places}) returning id",
        *values.values(),
    )  # fmt: skip
    task_id: UUID = row["id"]
    return task_id
