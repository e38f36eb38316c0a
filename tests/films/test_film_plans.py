"""Level at scale: what films cost, beside many tasks that have ended."""

from collections.abc import Mapping
from typing import Any

import psycopg
import pytest
from psycopg import ClientCursor

from tests.support.hands import USUAL, Ground
from tests.support.sources import numbered
from vidgen_worker.database.pool import PLANNED_ONCE, QUERIES

TASKS = "public.video_generation_tasks"
CROWD, FILMS = 30_000, 5
MOST_BLOCKS = {"wake_films": 500, "claim_films": 300, "load_film": 50}
"""Of one film: its row, its parts, the turn of its user, and what its change writes."""
BLOCKS_OF_A_CANCEL = 600
"""Of a film and its two parts, with what a cancel counts and releases."""


@pytest.mark.slow
def test_plans_made_while_there_was_nothing_stay_good(ground: Ground) -> None:
    """A worker plans once, on a new project; then there are many tasks, and many parts."""
    for table in (TASKS, "vidgen.parts", "vidgen.turns", "vidgen.endings", "vidgen.films"):
        ground.sql(f"alter table {table} set (autovacuum_enabled = false)")
    hand = ground.worker()
    values = {
        **USUAL,
        "worker_id": hand.worker_id,
        "task_id": hand.worker_id,
        "attempt": 1,
        "lane": 0,
    }
    with psycopg.connect(ground.database.url, cursor_factory=ClientCursor, autocommit=True) as conn:
        conn.execute(PLANNED_ONCE)
        execute = {name: prepared(conn, name) for name in MOST_BLOCKS}
        for statement in execute.values():
            conn.execute(statement, values)
        crowd(ground)
        for _ in range(FILMS):
            ground.held_film(hand, "order_parts", "wait_for_parts")
        for part in hand.claim():
            hand.about(part, "fail")
        read = {"wake_films": blocks(conn, execute["wake_films"], values)}
        hand("wake_films")
        hand("line_up")
        read["claim_films"] = blocks(conn, execute["claim_films"], values)
        film = hand.claim_films()[0]
        values |= {"task_id": film.id, "attempt": film.attempt}
        read["load_film"] = blocks(conn, execute["load_film"], values)
        cancel = b"select vidgen.cancel_task(%(task_id)s)"
        assert blocks(conn, cancel, values) <= BLOCKS_OF_A_CANCEL
    most = {"wake_films": FILMS, "claim_films": FILMS, "load_film": 1}
    assert {name: n for name, n in read.items() if n > most[name] * MOST_BLOCKS[name]} == {}


def crowd(ground: Ground) -> None:
    """Many tasks that have ended, each the part of a film."""
    with ground.admin.transaction():
        ground.sql("set local session_replication_role = replica")
        ground.sql(
            f"insert into {TASKS} (user_id, status, attempt, progress, started_at,"
            " completed_at, video_path) select gen_random_uuid(), 'completed', 1, 100,"
            " now(), now(), 'v' from generate_series(1, %s)", CROWD,
        )  # fmt: skip
        ground.sql(
            "insert into vidgen.parts (film_id, position, task_id)"
            f" select gen_random_uuid(), 1, id from {TASKS}"
        )


def prepared(conn: psycopg.Connection[Any], name: str) -> bytes:
    """Prepare a query; what executes it."""
    body, names = numbered(QUERIES[name])
    conn.execute(f"prepare {name} as {body}".encode())
    arguments = f"({', '.join(f'%({one})s' for one in names)})" if names else ""
    return f"execute {name}{arguments}".encode()


def blocks(conn: psycopg.Connection[Any], execute: bytes, values: Mapping[str, Any]) -> int:
    """How many blocks it asks for; what it did is taken back."""
    with conn.transaction(force_rollback=True):
        row = conn.execute(
            b"explain (analyze, buffers, timing off, format json) " + execute, values
        ).fetchone()
    assert row is not None
    plan = row[0][0]["Plan"]
    assert plan["Actual Rows"] > 0
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
