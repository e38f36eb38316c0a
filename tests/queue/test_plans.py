"""Level at scale: a claim reads no more of a big table than of a small one.

Counted in blocks, which no noisy machine changes, with the plans that the worker's own connection
gets (generic, made once). What may grow is the height of an index: a few blocks a probe.
"""

import json
import re
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import ClientCursor

from tests.support.hands import USUAL, Ground, Hand
from vidgen_worker.database.pool import PLANNED_ONCE, QUERIES

TASKS = "video_generation_tasks"
SMALL_USERS, SMALL_ROWS, SLOTS = 20, 5, 20
PRIORITIES = 21
LEVELS = 3
"""By so many blocks an index of 100,000 rows may be higher than one of a hundred, and its leaf."""
CROWD, MANY_USERS = 100_000, 10_000

FRESH = (
    "insert into public.video_generation_tasks (user_id, run_after, created_at)"
    " select {user}, now() + interval '{later}', now() from generate_series(1, {rows}) as n"
)
FINISHED = (
    "insert into public.video_generation_tasks (user_id, status, attempt, progress, started_at,"
    " completed_at, video_path)"
    " select gen_random_uuid(), 'completed', 1, 100, now(), now(), 'v'"
    f" from generate_series(1, {CROWD})"
)
CROWDS = {
    "finished rows": FINISHED,
    "one user's backlog": FRESH.format(user=f"'{uuid4()}'::uuid", later="0", rows=CROWD),
    "rows for later": FRESH.format(user=f"'{uuid4()}'::uuid", later="1 day", rows=CROWD),
    "users who wait": FRESH.format(user="gen_random_uuid()", later="0", rows=MANY_USERS),
    "users with rows for later only": FRESH.format(
        user="gen_random_uuid()", later="1 day", rows=MANY_USERS
    ),
}


def numbered(query: str) -> tuple[str, list[str]]:
    """The query with $1, $2, … and the names they stand for."""
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", query)))
    for place, name in enumerate(names, 1):
        query = query.replace(f"%({name})s", f"${place}")
    return query.replace("%%", "%"), names


def plan_of(ground: Ground, name: str, **parameters: object) -> dict[str, Any]:
    """The top of a query's generic plan, on a new connection, carried out and rolled back."""
    body, names = numbered(QUERIES[name])
    values = {**USUAL, "slots": SLOTS, **parameters}
    arguments = f"({', '.join(f'%({name})s' for name in names)})" if names else ""
    with (
        psycopg.connect(ground.database.url, cursor_factory=ClientCursor) as conn,
        conn.transaction(force_rollback=True),
    ):
        conn.execute(PLANNED_ONCE)
        conn.execute(f"prepare it as {body}".encode())
        row = conn.execute(
            f"explain (analyze, buffers, timing off, format json) execute it{arguments}".encode(),
            values,
        ).fetchone()
    assert row is not None
    answer = row[0] if isinstance(row[0], list) else json.loads(row[0])
    plan: dict[str, Any] = answer[0]["Plan"]
    return plan


def blocks(plan: dict[str, Any]) -> int:
    """How many blocks a plan asked for, whether they were in memory or not."""
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def scanned(plan: dict[str, Any]) -> list[str]:
    """Big tables that the plan reads from end to end."""
    found = [plan["Relation Name"]] if plan["Node Type"] == "Seq Scan" else []
    return [
        name
        for name in [*found, *(name for below in plan.get("Plans", ()) for name in scanned(below))]
        if name == TASKS
    ]


@pytest.fixture
def small(ground: Ground) -> tuple[Ground, Hand]:
    """A few users, a few rows, fresh statistics; nothing renews them behind the test's back."""
    for table in (f"public.{TASKS}", "vidgen.turns", "vidgen.arrivals", "vidgen.resumes"):
        ground.sql(f"alter table {table} set (autovacuum_enabled = false)")
    hand = ground.worker()
    for _ in range(SMALL_USERS):
        ground.sql(FRESH.format(user=f"'{uuid4()}'::uuid", later="0", rows=SMALL_ROWS))
    hand("line_up")
    ground.sql("vacuum analyze")
    return ground, hand


def line_up_all(ground: Ground, hand: Hand) -> None:
    """Merge the whole mailbox: 2,000 arrivals a time."""
    while not ground.none("select from vidgen.arrivals"):
        hand("line_up")
    # Autovacuum does this within a minute.
    ground.sql("vacuum vidgen.arrivals")


@pytest.mark.slow
@pytest.mark.parametrize("crowd", CROWDS)
def test_a_claim_reads_no_more_rows_beside_many_waiting_tasks(
    small: tuple[Ground, Hand], crowd: str
) -> None:
    ground, hand = small

    def read(name: str) -> int:
        plan = plan_of(ground, name, worker_id=hand.worker_id)
        assert scanned(plan) == []
        return blocks(plan)

    alone = {name: read(name) for name in ("line_up",)}
    claim_alone = blocks(plan_of(ground, "claim", worker_id=hand.worker_id))

    with ground.admin.transaction():
        if crowd == "finished rows":
            # None is ever born so.
            ground.sql("set local session_replication_role = replica")
        ground.sql(CROWDS[crowd])
    line_up_all(ground, hand)

    def is_level() -> None:
        # Each user of the line is looked up once per priority, and a row or two.
        probes = SLOTS * (PRIORITIES + 2)
        assert read("claim") <= claim_alone + probes * LEVELS
        for name, before in alone.items():
            assert read(name) <= before + 10 * LEVELS, name

    # The statistics are those of the small table.
    is_level()
    ground.sql(
        "delete from pg_statistic where starelid in"
        " (%s::regclass, 'vidgen.turns'::regclass, 'vidgen.arrivals'::regclass)",
        f"public.{TASKS}",
    )  # fmt: skip
    ground.sql(
        "update pg_class set reltuples = -1, relpages = 0"
        " where oid in (%s::regclass, 'vidgen.turns'::regclass, 'vidgen.arrivals'::regclass)",
        f"public.{TASKS}",
    )
    # There are none, as after an upgrade of PostgreSQL.
    is_level()
    ground.sql("analyze")
    is_level()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "idle"),
    [
        ("claim", True),
        ("resume", True),
        ("resume", False),
        ("line_up", True),
    ],
)
def test_a_plan_made_on_empty_tables_stays_fast(ground: Ground, name: str, idle: bool) -> None:
    """A worker plans once, on a new project; then a hundred thousand rows are inserted."""
    for table in (f"public.{TASKS}", "vidgen.turns", "vidgen.arrivals", "vidgen.resumes"):
        ground.sql(f"alter table {table} set (autovacuum_enabled = false)")
    hand = ground.worker()
    body, names = numbered(QUERIES[name])
    arguments = f"({', '.join(f'%({name})s' for name in names)})" if names else ""
    values = {**USUAL, "worker_id": hand.worker_id, "slots": SMALL_ROWS, "idle": idle}
    with psycopg.connect(ground.database.url, cursor_factory=ClientCursor, autocommit=True) as conn:
        conn.execute(PLANNED_ONCE)
        conn.execute(f"prepare it as {body}".encode())
        conn.execute(f"execute it{arguments}".encode(), values)
        for _ in range(SMALL_USERS):
            ground.sql(
                FRESH.format(user=f"'{uuid4()}'::uuid", later="0", rows=CROWD // SMALL_USERS)
            )
        if name != "line_up":
            hand("line_up")
        if name == "resume":
            ground.sql(
                "insert into vidgen.resumes (task_id, user_id, lane, stage, resume_at)"
                f" select id, user_id, lane, 'video', now() from public.{TASKS} limit 20"
            )
            ground.sql(
                "insert into vidgen.budgets (task_id, crashes, suspect)"
                f" select id, 2, true from public.{TASKS}"
                " where id not in (select task_id from vidgen.resumes) limit 3"
            )
        with conn.transaction(force_rollback=True):
            row = conn.execute(
                "explain (analyze, buffers, timing off, format json)"
                f" execute it{arguments}".encode(),
                values,
            ).fetchone()
    assert row is not None
    assert blocks(row[0][0]["Plan"]) < SMALL_USERS * PRIORITIES * LEVELS * 2


def drained(ground: Ground, hand: Hand, users: list[Any], tasks: int) -> None:
    """Order, claim and end this many tasks, a few at a time."""
    for _ in range(tasks // SMALL_ROWS):
        ground.sql(
            f"insert into public.{TASKS} (user_id)"
            " select (%s::uuid[])[1 + (random() * %s)::integer] from generate_series(1, %s)",
            users, len(users) - 1, SMALL_ROWS,
        )  # fmt: skip
        for held in hand.claim(slots=SMALL_ROWS):
            assert hand.about(held, "fail")


SLOPE = 1.2
"""Blocks that one more task costs each claim while its dead rows can't be removed."""


def growth(ground: Ground, hand: Hand, tasks: int) -> tuple[float, int]:
    """By how many blocks a claim grows for each task that ends, and its blocks before."""
    users = [row["user_id"] for row in ground.sql("select user_id from vidgen.turns")]
    hand.conn.prepare_threshold = 0
    hand.conn.execute(PLANNED_ONCE)
    drained(ground, hand, users, 50)
    before = blocks(plan_of(ground, "claim", worker_id=hand.worker_id, slots=SMALL_ROWS))
    drained(ground, hand, users, tasks)
    after = blocks(plan_of(ground, "claim", worker_id=hand.worker_id, slots=SMALL_ROWS))
    return (after - before) / tasks, before


def test_a_claim_grows_little_while_somebody_holds_an_old_snapshot(
    small: tuple[Ground, Hand],
) -> None:
    """A report, a pg_dump: what is dead since can't be removed, from no table and no index.

    It grows by most of a block a task, whatever we do: each dead entry of an index is looked at. A
    minute of the provider's highest tier is some twenty tasks.
    """
    ground, hand = small
    with ground.hand() as reader:
        reader.conn.execute("begin transaction isolation level repeatable read")
        reader.conn.execute("select from vidgen.turns")
        slope, before = growth(ground, hand, 500)
        assert not ground.none("select from pg_stat_activity where backend_xmin is not null")
    assert slope < SLOPE
    assert before < 1100
