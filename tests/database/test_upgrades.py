"""A new column in any table of ours breaks nothing, and worker N-1 works beside worker N."""

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.support.hands import STAGE, Ground, Hand, Held
from tests.support.world import World, told, vidgen
from vidgen_worker.client.database import QUERIES as CLIENT_QUERIES
from vidgen_worker.database.pool import QUERIES
from vidgen_worker.database.statements import read_queries

FORMER = Path(__file__).parent / "former_queries.sql"
NAMES = re.compile(r"\b[a-z_]{2,40}\b")


def tables(ground: Ground) -> list[str]:
    """Every table of ours, and those of the application that we read."""
    rows = ground.sql(
        "select quote_ident(n.nspname) || '.' || quote_ident(c.relname) as name"
        "  from pg_class as c join pg_namespace as n on n.oid = c.relnamespace"
        " where c.relkind = 'r' and n.nspname in ('public', 'vidgen') order by 1"
    )
    return [row["name"] for row in rows]


def columns(ground: Ground, table: str) -> set[str]:
    rows = ground.sql(
        "select attname::text as name from pg_attribute"
        " where attrelid = %s::regclass and attnum > 0 and not attisdropped",
        table,
    )
    return {row["name"] for row in rows}


def plain(ground: Ground, table: str) -> None:
    ground.sql(f"alter table {table} add column extra_note text")


def with_a_default(ground: Ground, table: str) -> None:
    ground.sql(f"alter table {table} add column extra_number integer default 7")


def not_null_with_a_default(ground: Ground, table: str) -> None:
    ground.sql(f"alter table {table} add column extra_kind text not null default 'usual'")


def generated(ground: Ground, table: str) -> None:
    known = min(columns(ground, table))
    ground.sql(
        f"alter table {table} add column extra_length integer"
        f" generated always as (octet_length({known}::text)) stored"
        if is_immutable(ground, table, known)
        else f"alter table {table} add column extra_length integer generated always as (7) stored"
    )


def is_immutable(ground: Ground, table: str, column: str) -> bool:
    row = ground.one(
        "select atttypid::regtype::text as type from pg_attribute"
        " where attrelid = %s::regclass and attname = %s",
        table, column,
    )  # fmt: skip
    return row["type"] in {"text", "uuid", "integer", "bigint", "smallint"}


def one_that_came_and_went(ground: Ground, table: str) -> None:
    """A dropped column keeps its place in every row: what came after it has another number."""
    ground.sql(f"alter table {table} add column extra_first text")
    ground.sql(f"alter table {table} add column extra_second text")
    ground.sql(f"alter table {table} drop column extra_first")


def every_name_we_use(ground: Ground, table: str) -> None:
    """Of our variables, parameters and other tables' columns: a type that can't be compared."""
    bodies = ground.sql(
        "select prosrc, proargnames from pg_proc where pronamespace = 'vidgen'::regnamespace"
    )
    variables = {
        name
        for row in bodies
        for part in re.findall(r"declare(.*?)\bbegin\b", row["prosrc"], re.DOTALL)
        for name in re.findall(r"^\s*(\w+)\s", part, re.MULTILINE)
    }
    parameters = {name for row in bodies for name in row["proargnames"] or () if name}
    of_others = {name for other in tables(ground) for name in columns(ground, other)}
    taken = columns(ground, table) | {"ctid", "xmin", "xmax", "cmin", "cmax", "tableoid", "oid"}
    added = sorted((variables | parameters | of_others) - taken)
    assert {"price", "hold", "task", "scene", "owner"} & set(added)
    ground.sql(f"alter table {table} " + ", ".join(f'add column "{name}" json' for name in added))


ADDITIONS: list[Callable[[Ground, str], None]] = [
    plain, with_a_default, not_null_with_a_default, generated, one_that_came_and_went,
    every_name_we_use,
]  # fmt: skip


class Caller:
    """A session that was there before the column came: what it has planned must still go."""

    def __init__(self, ground: Ground, role: str, user: UUID | None) -> None:
        self.conn = psycopg.connect(ground.database.url, autocommit=True, row_factory=dict_row)
        ground.stack.enter_context(self.conn)
        # Poolers and our own clients do so; a client's own prepared `select *` is not our concern.
        self.conn.prepare_threshold = None
        self.role = role
        self.claims = json.dumps({"role": role} | ({"sub": str(user)} if user else {}))

    def __call__(self, statement: str, *parameters: object) -> list[dict[str, Any]]:
        with self.conn.transaction():
            self.conn.execute(f"set local role {self.role}".encode())
            self.conn.execute("select set_config('request.jwt.claims', %s, true)", [self.claims])
            cursor = self.conn.execute(statement.encode(), parameters)
            return cursor.fetchall() if cursor.description else []


def use_everything(ground: Ground, hand: Hand, callers: tuple[Caller, Caller], user: UUID) -> None:
    """Every RPC as its role, a task's whole walk, its other ends, a deletion, every view."""
    owner, service = callers
    hand("register_worker")
    granted = service(
        "select * from public.grant_video_credits(%s, 50, %s)", user, f"payment {uuid4()}"
    )
    assert granted[0]["user_id"] == user
    scene = ground.scene(user)
    order = "insert into public.video_generation_tasks (scene_id) values (%s) returning id"
    (task,) = owner(order, scene)
    (held,) = hand.claim()
    assert held.id == task["id"]
    hand.walk(held, "load_task", "start_task", *STAGE)
    hand.about(held, "report")
    hand.walk(Held(held.id, held.attempt, held.worker_id), *STAGE, stage="video")
    hand.walk(held, "complete")

    (task,) = owner(order, scene)
    (cancelled,) = owner("select * from public.cancel_video_generation_task(%s)", task["id"])
    assert (cancelled["id"], cancelled["status"]) == (task["id"], "cancelled")
    (retried,) = owner("select * from public.retry_video_generation_task(%s)", task["id"])
    assert (retried["id"], retried["status"], retried["user_id"]) == (task["id"], "pending", user)
    (held,) = hand.claim()
    hand.walk(held, "start_task", *STAGE)
    hand.about(held, "fail")
    (retried,) = service("select * from public.retry_video_generation_task(%s)", task["id"])
    assert retried["status"] == "pending"
    service("select * from public.cancel_video_generation_task(%s)", task["id"])
    owner("select * from public.video_generation_tasks")
    owner("select * from public.user_credits")

    hand("close_gate")
    hand("open_gate")
    hand("set_limit", max_generations=2, model="gen4_image")
    hand("set_limit", max_generations=None, model="gen4_image")
    # An application deletes a scene whose tasks have ended, then an ended task.
    ground.sql("delete from public.video_scenes where id = %s", scene)
    ground.sql("delete from public.video_generation_tasks where id = %s", task["id"])
    assert ground.books_balance()
    hand("leave")


def prepare_everything(ground: Ground) -> None:
    """Every named query of worker and client is still understood."""
    from tests.support.sources import numbered  # noqa: PLC0415 - a test module of its own

    for name, body in (*QUERIES.items(), *CLIENT_QUERIES.items()):
        ground.admin.execute(f"prepare it as {numbered(body)[0]}".encode())
        ground.admin.execute("deallocate it")
        assert name
    views = ground.sql(
        "select quote_ident(schemaname) || '.' || quote_ident(viewname) as name from pg_views"
        " where schemaname in ('public', 'vidgen')"
    )
    assert views
    for view in views:
        ground.sql(f"select * from {view['name']}")


@pytest.mark.parametrize("addition", ADDITIONS, ids=lambda addition: addition.__name__)
def test_a_new_column_in_each_table_breaks_no_call_and_no_query(
    ground: Ground, addition: Callable[[Ground, str], None]
) -> None:
    user = ground.user(500)
    callers = Caller(ground, "authenticated", user), Caller(ground, "service_role", None)
    # A worker's statements are prepared before the columns come.
    hand = ground.hand()
    hand.conn.prepare_threshold = 0
    use_everything(ground, hand, callers, user)
    for table in tables(ground):
        addition(ground, table)
        # One by one: a failure names its table.
        try:
            use_everything(ground, hand, callers, user)
        except psycopg.Error as error:
            raise AssertionError(f"a column of {table}: {error}") from error
    prepare_everything(ground)


VERBS = (
    ("tasks", "list"), ("stats",), ("workers",), ("credits", "audit"), ("gate", "list"),
)  # fmt: skip


async def test_a_running_worker_and_the_command_line_accept_new_columns(
    world: World, ground: Ground
) -> None:
    user = world.user()
    async with world.worker():
        before = world.order(user, world.scene(user))
        assert (await world.until(before))["status"] == "completed"
        for table in tables(ground):
            for addition in (plain, not_null_with_a_default, generated, one_that_came_and_went):
                await asyncio.to_thread(addition, ground, table)
        scene = world.scene(user)
        tasks = [world.order(user, scene) for _ in range(2)]
        for task in tasks:
            assert (await world.until(task))["status"] == "completed"
        shown = await asyncio.to_thread(told, world, "tasks", "show", str(tasks[0]))
        assert str(tasks[0]) in json.dumps(shown)
        for verb in (*VERBS, ("credits", "show", str(user))):
            await asyncio.to_thread(told, world, *verb)
        planned = await asyncio.to_thread(vidgen, world, "prune")
        assert planned.returncode == 2
    assert world.books_balance()


def test_every_function_reads_its_variable_where_a_column_has_the_same_name(
    ground: Ground,
) -> None:
    """A new column may have any name: without it the name would be ambiguous (42702)."""
    rows = ground.sql(
        "select p.oid::regprocedure::text as name from pg_proc as p"
        "  join pg_language as l on l.oid = p.prolang"
        " where p.pronamespace = 'vidgen'::regnamespace and l.lanname = 'plpgsql'"
        "   and position('#variable_conflict ' in p.prosrc) = 0"
    )
    assert [row["name"] for row in rows] == []


def test_an_application_s_own_column_may_change_after_the_end(ground: Ground) -> None:
    ground.sql("alter table public.video_generation_tasks add column seen boolean default false")
    hand = ground.worker()
    held = ground.held(hand)
    hand.about(held, "fail")
    ground.sql("update public.video_generation_tasks set seen = true where id = %s", held.id)
    assert ground.task(held.id)["seen"] is True
    with pytest.raises(psycopg.Error, match="it has ended"):
        ground.sql("update public.video_generation_tasks set message = 'x' where id = %s", held.id)


def test_an_ended_task_keeps_each_of_its_columns(ground: Ground) -> None:
    """A column that a migration adds to the contract is added to the trigger too."""
    free = {"scene_id", "video_url", "video_url_expires_at", "updated_at", "status"}
    free |= {"cut", "film_id"}  # held for every status, above; a film that is deleted is left
    body = ground.one(
        "select prosrc from pg_proc where oid = 'vidgen.task_changes()'::regprocedure"
    )["prosrc"]
    kept = {
        name for name in NAMES.findall(body) if f"old.{name}," in body or f"old.{name}\n" in body
    }
    assert columns(ground, "public.video_generation_tasks") - free - kept == set()


# Worker N-1. At a release, `former_queries.sql` becomes the statements of its boxes.

FORMER_QUERIES = read_queries(FORMER.read_text(), FORMER.name)


class FormerHand(Hand):
    """A connection of a worker of the release before, with its statements word for word."""

    queries = FORMER_QUERIES

    def about(self, held: Held, name: str, **parameters: object) -> list[dict[str, Any]]:
        """A step that the release before does not know is none of its own."""
        return super().about(held, name, **parameters) if name in FORMER_QUERIES else [{}]


def former(ground: Ground) -> FormerHand:
    hand = FormerHand(ground.database.url)
    hand("register_worker")
    return ground.stack.enter_context(hand)


@pytest.mark.parametrize("name", FORMER_QUERIES)
def test_a_statement_of_the_release_before_is_understood(ground: Ground, name: str) -> None:
    """By its own role, with all the rights that it needs."""
    from tests.support.sources import numbered  # noqa: PLC0415 - a test module of its own

    body, names = numbered(FORMER_QUERIES[name])
    with ground.admin.transaction(force_rollback=True):
        ground.sql("set local role vidgen_worker")
        ground.admin.execute(f"prepare it as {body}".encode())
        nulls = f"({', '.join(['null'] * len(names))})" if names else ""
        ground.admin.execute(f"explain execute it{nulls}".encode())


def walk(hand: Hand, held: Held, *, until: str = "complete") -> None:
    steps = [("start_task", "image"), *((step, "image") for step in STAGE)]
    video = Held(held.id, held.attempt, held.worker_id)
    steps += [(step, "video") for step in STAGE]
    for step, stage in [*steps, ("complete", "image")]:
        hand.walk(video if stage == "video" else held, step, stage=stage)
        if step == until:
            return


def test_a_worker_of_the_release_before_completes_tasks_beside_one_of_this(ground: Ground) -> None:
    old, new = former(ground), ground.worker()
    user = ground.user()
    for hand in (old, new, old, new):
        walk(hand, ground.held(hand, user_id=user))
    statuses = ground.sql("select status from public.video_generation_tasks")
    assert [row["status"] for row in statuses] == ["completed"] * 4
    assert ground.books_balance()


@pytest.mark.parametrize("old_first", [True, False])
@pytest.mark.parametrize("until", STAGE)
def test_a_task_goes_from_one_release_to_the_other_at_every_step(
    ground: Ground, until: str, *, old_first: bool
) -> None:
    old, new = former(ground), ground.worker()
    first, second = (old, new) if old_first else (new, old)
    held = ground.held(first)
    walk(first, held, until=until)
    first("hand_back", task_ids=None)
    (again,) = second.claim()
    assert again.id == held.id
    again = Held(
        again.id, again.attempt, again.worker_id, held.submission_id, held.generation_id,
        held.upload_id,
    )  # fmt: skip
    second.about(again, "load_task")
    second.walk(again, "start_task", *STAGE[STAGE.index(until) :])
    second.walk(Held(again.id, again.attempt, again.worker_id), *STAGE, stage="video")
    second.walk(again, "complete")
    assert ground.books_balance()


@pytest.mark.parametrize("old_dies", [True, False])
def test_each_release_takes_over_from_the_other(ground: Ground, *, old_dies: bool) -> None:
    old, new = former(ground), ground.worker()
    dead, successor = (old, new) if old_dies else (new, old)
    held = ground.held(dead)
    ground.silent(dead.worker_id)
    assert [row["id"] for row in successor("take_over")] == [held.id]
    assert dead("heartbeat", task_ids=[held.id], attempts=[held.attempt]) in ([], [
        {"kind": "lost", "task_id": held.id, "attempt": held.attempt}
    ])  # fmt: skip
