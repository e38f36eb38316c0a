"""What a signed-in user might try with nothing but its own token: to stall, to drain, to break.

Each limit is met by overlapping transactions where that matters, says what is reached, and doesn't
bind the application's own bulk writers. Rights are in test_policies.py.
"""

import contextlib
import json
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from psycopg import errors
from storage3.exceptions import StorageApiError
from supabase import AsyncClientOptions, acreate_client

from tests.support.clients import acting, as_user, insert
from tests.support.hands import STAGE, Ground, Held, Later
from tests.support.world import World, recorded
from vidgen_worker.client.database import Database as Client
from vidgen_worker.sandbox.control import StorageControl
from vidgen_worker.telemetry.bus import Event

TASKS = "public.video_generation_tasks"
CANCEL = "select public.cancel_video_generation_task(%s)"
RETRY = "select public.retry_video_generation_task(%s)"
ONE_ORDER = f"insert into {TASKS} (scene_id) values (%s)".encode()


# Draining the operator's account.


def running(ground: Ground, user: UUID, task_id: UUID) -> Held:
    """The user's task with a generation that runs at the provider and costs 5."""
    hand = ground.worker()
    (held,) = hand.claim()
    assert held.id == task_id
    hand.walk(held, "start_task", *STAGE[:2])
    assert ground.task(task_id)["user_id"] == user
    return held


def test_insert_wait_cancel_ends_at_the_limit(ground: Ground) -> None:
    user = ground.user()
    ground.sql("update vidgen.settings set max_unbilled_cost_per_user = 12")
    rounds = 0
    with pytest.raises(psycopg.Error, match="limit reached") as refused:  # noqa: PT012 - a loop
        for _ in range(10):
            held = running(ground, user, insert(ground, user))
            as_user(ground, user, CANCEL, held.id)
            ground.hand(held.worker_id).about(held, "cancel")
            rounds += 1
    assert refused.value.sqlstate == "PT429"
    assert rounds == 2
    wasted = ground.one("select sum(estimated_cost) as cost from vidgen.submissions")["cost"]
    # The third one runs, and will be charged: it can't be cancelled any more.
    assert (wasted, ground.task(held.id)["cancel_requested_at"]) == (15, None)


def test_many_inserted_at_once_and_each_cancelled_as_it_runs_end_at_the_limit(
    ground: Ground,
) -> None:
    user = ground.user()
    ground.sql("update vidgen.settings set max_unbilled_cost_per_user = 12")
    scene = ground.scene(user)
    for _ in range(3):
        as_user(ground, user, ONE_ORDER.decode(), scene)
    hand = ground.worker()
    tasks = hand.claim()
    for held in tasks:
        hand.walk(held, "start_task", *STAGE[:2])
    for held in tasks[:2]:
        as_user(ground, user, CANCEL, held.id)
    with pytest.raises(psycopg.Error, match="can't be cancelled") as refused:
        as_user(ground, user, CANCEL, tasks[2].id)
    assert refused.value.sqlstate == "PT429"
    assert "tomorrow" in str(refused.value.diag.message_hint)
    with acting(ground, "service_role") as conn:
        conn.execute(CANCEL.encode(), [tasks[2].id])


def test_two_cancels_at_once_can_not_pass_the_limit_together(ground: Ground) -> None:
    user = ground.user()
    ground.sql("update vidgen.settings set max_unbilled_cost_per_user = 7")
    scene = ground.scene(user)
    for _ in range(2):
        as_user(ground, user, ONE_ORDER.decode(), scene)
    hand = ground.worker()
    first_task, second_task = hand.claim()
    for held in (first_task, second_task):
        hand.walk(held, "start_task", *STAGE[:2])
    with (  # noqa: PT012 - the refusal comes later
        pytest.raises(psycopg.Error, match="can't be cancelled"),
        acting(ground, "authenticated", user) as second,
    ):
        with acting(ground, "authenticated", user) as first:
            first.execute(CANCEL.encode(), [first_task.id])
            late = Later(
                lambda: second.execute(CANCEL.encode(), [second_task.id]), second.info.backend_pid
            )
            late.start()
            assert ground.waits(late)
        late.result()


def test_a_queue_at_work_does_not_count_as_wasted(ground: Ground) -> None:
    user = ground.user()
    ground.sql("update vidgen.settings set max_unbilled_cost_per_user = 4")
    running(ground, user, insert(ground, user))
    insert(ground, user)


def test_what_waits_is_cancelled_also_beyond_the_limit(ground: Ground) -> None:
    user = ground.user()
    held = running(ground, user, insert(ground, user))
    ground.hand(held.worker_id).about(held, "cancel")
    waiting = insert(ground, user)
    ground.sql("update vidgen.settings set max_unbilled_cost_per_user = 1")
    as_user(ground, user, CANCEL, waiting)
    assert ground.task(waiting)["status"] == "cancelled"
    with pytest.raises(psycopg.Error, match="limit reached: too much") as refused:
        as_user(ground, user, RETRY, waiting)
    assert refused.value.sqlstate == "PT429"


# The roles that the limits bind.


def test_a_role_of_the_applications_own_is_bound_too(ground: Ground) -> None:
    user, role = ground.user(), f"premium_{uuid4().hex[:12]}"
    ground.sql(f"create role {role} in role authenticated")
    try:
        ground.sql(f"grant {role} to postgres")
        ground.sql("update vidgen.settings set max_unfinished_per_user = 1")
        insert(ground, user)
        with (
            pytest.raises(psycopg.Error, match="limit reached: 1 unfinished"),
            acting(ground, role, user) as conn,
        ):
            conn.execute(ONE_ORDER, [ground.scene(user)])
    finally:
        ground.sql(f"drop role {role}")


@pytest.mark.parametrize("role", ["service_role", "postgres"])
def test_bulk_writers_are_not_bound(ground: Ground, role: str) -> None:
    user = ground.user()
    ground.sql("update vidgen.settings set max_unfinished_per_user = 1")
    with acting(ground, role, claims={"role": "service_role"}) as conn:
        conn.execute(
            f"insert into {TASKS} (user_id, scene_id)"
            " select %s, %s from generate_series(1, 100)".encode(),
            [user, ground.scene(user)],
        )
    assert ground.one(f"select count(*) as tasks from {TASKS}")["tasks"] == 100


def test_overlapping_retries_can_not_pass_the_limit_together(ground: Ground) -> None:
    user = ground.user()
    tasks = [insert(ground, user) for _ in range(2)]
    for task in tasks:
        as_user(ground, user, CANCEL, task)
    ground.sql("update vidgen.settings set max_unfinished_per_user = 1")
    with (  # noqa: PT012 - the refusal comes later
        pytest.raises(psycopg.Error, match="limit reached: 1 unfinished"),
        acting(ground, "authenticated", user) as second,
    ):
        with acting(ground, "authenticated", user) as first:
            first.execute(RETRY.encode(), [tasks[0]])
            late = Later(
                lambda: second.execute(RETRY.encode(), [tasks[1]]), second.info.backend_pid
            )
            late.start()
            assert ground.waits(late)
        late.result()


# Jumping the queue.


@pytest.mark.parametrize("column", ["created_at", "attempt", "status", "max_failures", "worker_id"])
def test_what_would_jump_the_queue_can_not_be_set(ground: Ground, column: str) -> None:
    user = ground.user()
    with pytest.raises(errors.InsufficientPrivilege, match="permission denied"):
        insert(ground, user, **{column: None})


@pytest.mark.parametrize("run_after", ["-infinity", "0001-01-01", "1999-01-01"])
def test_an_old_run_after_gains_nothing(ground: Ground, run_after: str) -> None:
    user = ground.user()
    first = insert(ground, user)
    late = insert(ground, user, run_after=run_after)
    assert [held.id for held in ground.worker().claim()] == [first, late]


def test_a_priority_moves_nothing_but_ones_own(ground: Ground) -> None:
    patient, pushy = ground.user(), ground.user()
    first = insert(ground, patient, priority=-10)
    hand = ground.worker()
    hand("line_up")
    insert(ground, pushy, priority=-10)
    urgent = insert(ground, pushy, priority=10)
    assert [held.id for held in hand.claim(1)] == [first]
    assert [held.id for held in hand.claim(1)] == [urgent]


@pytest.mark.parametrize("run_after", ["infinity", "294276-12-31", "10000-01-01"])
def test_no_row_is_for_a_day_that_programs_can_not_read(ground: Ground, run_after: str) -> None:
    """One such row would make every list that shows it fail, an operator's too."""
    task = insert(ground, ground.user(), run_after=run_after)
    assert ground.worker().claim() == []
    with contextlib.closing(Client(ground.database.url)) as client:
        (row,) = client.rows("tasks", {"user_id": None, "status": None, "limit": 10})
    assert (row["id"], row["run_after"].year) == (task, 9999)


# Other ways to the same rows.


@pytest.mark.parametrize(
    "statement",
    [
        "insert into {} (id) values (%(task)s) on conflict (id) do update set priority = 10",
        "merge into {} using (select) on id = %(task)s when matched then update set attempt = 1",
        "merge into {} using (select) on id = %(task)s when matched then delete",
        "select id from {} where id = %(task)s for update",
        "select id from {} where id = %(task)s for key share",
        "lock table {} in row share mode",
        "truncate {}",
        "create trigger mine after insert on {} for each row execute function suppress_changes()",
        "create index on {} (id)",
        "create policy mine on {} using (true)",
        "alter table {} disable trigger all",
        "set session_replication_role = replica",
    ],
)
def test_no_other_verb_is_a_way_around(ground: Ground, statement: str) -> None:
    user = ground.user()
    task = insert(ground, user)
    with (
        pytest.raises(errors.InsufficientPrivilege),
        acting(ground, "authenticated", user) as conn,
    ):
        conn.execute(statement.format(TASKS).encode(), {"task": task})


def test_a_function_in_a_filter_is_shown_ones_own_rows_only(ground: Ground) -> None:
    """However cheap it says it is: row level security comes first."""
    mine, others = ground.user(), ground.user()
    insert(ground, others)
    task = insert(ground, mine)
    with acting(ground, "authenticated", mine) as conn:
        conn.execute("create temp table shown (id uuid)")
        conn.execute(
            "create function pg_temp.spy(id uuid) returns boolean cost 0.000001 language plpgsql"
            " as $$ begin insert into pg_temp.shown values (id); return true; end $$"
        )
        conn.execute(f"select from {TASKS} where pg_temp.spy(id)".encode())
        assert conn.execute("select id from shown").fetchall() == [{"id": task}]


TYPES = ("uuid", "text", "jsonb", "timestamptz", "regclass")
"""The types that a function of ours may cast to."""


@pytest.mark.parametrize("act", ["order", "cancel", "retry"])
def test_a_type_in_a_temporary_schema_never_runs_as_another_role(ground: Ground, act: str) -> None:
    """A domain's CHECK is code; a cast inside a definer function would run it as the owner."""
    user = ground.user()
    scene, task = ground.scene(user), insert(ground, user)
    ended = insert(ground, user)
    as_user(ground, user, CANCEL, ended)
    with acting(ground, "authenticated", user) as conn:
        conn.execute(
            "create function pg_temp.mine() returns boolean language plpgsql as $$ begin"
            " if current_user <> 'authenticated' then raise 'now I am %', current_user; end if;"
            " return true; end $$"
        )
        for name in TYPES:
            conn.execute(
                f"create domain pg_temp.{name} as pg_catalog.{name} check (pg_temp.mine())".encode()
            )
        match act:
            case "order":
                conn.execute(ONE_ORDER, [scene])
            case "cancel":
                conn.execute(CANCEL.encode(), [task])
            case _:
                conn.execute(RETRY.encode(), [ended])


# Standing in the way.


@pytest.mark.parametrize("call", [CANCEL, RETRY])
def test_a_strangers_call_waits_for_nobody(ground: Ground, call: str) -> None:
    """Nor does it lock the row: who knows a task's id can't keep a worker from it."""
    task = insert(ground, ground.user())
    stranger = ground.user()
    with (
        acting(ground, "authenticated", stranger) as conn,
        ground.admin.transaction(),
    ):
        ground.sql(f"select from {TASKS} where id = %s for update", task)
        late = Later(lambda: conn.execute(call.encode(), [task]), conn.info.backend_pid)
        late.start()
        with pytest.raises(psycopg.Error, match="there is no task"):
            ground.waits(late)


def test_a_row_that_its_user_holds_stops_nobody_elses_progress(ground: Ground) -> None:
    """Deleting a scene that very many tasks were for takes as long as its user pleases."""
    slow, other, hand = ground.user(), ground.user(), ground.worker()
    scene = ground.scene(slow)
    as_user(ground, slow, ONE_ORDER.decode(), scene)
    insert(ground, other)
    held = {ground.task(h.id)["user_id"]: h for h in hand.claim()}
    for one in held.values():
        hand.walk(one, "start_task")
    with acting(ground, "authenticated", slow) as conn:
        conn.execute("select public.delete_video_scene(%s)", [scene])
        late = hand.later(
            lambda: hand(
                "report",
                task_ids=[h.id for h in held.values()], attempts=[1, 1], progress=[39.0, 39.0],
                stage_progress=[50.0, 50.0], messages=["at work", "at work"],
                seconds_left=[None, None],
            )
        )  # fmt: skip
        assert not ground.waits(late)
        assert ground.task(held[other].id)["progress"] == 39
    assert ground.task(held[slow].id)["progress"] < 39


def test_a_repeated_cancel_writes_nothing_and_wakes_nobody(ground: Ground) -> None:
    user = ground.user()
    held = running(ground, user, insert(ground, user))
    as_user(ground, user, CANCEL, held.id)
    version = ground.one(f"select xmin::text as x from {TASKS} where id = %s", held.id)
    ground.sql("listen vidgen_tasks")
    for _ in range(20):
        (row,) = as_user(ground, user, f"select * from public.{CANCEL[14:]}", held.id)
        assert row["cancel_requested_at"] is not None
    assert ground.one(f"select xmin::text as x from {TASKS} where id = %s", held.id) == version
    assert list(ground.admin.notifies(timeout=0)) == []


# Odd texts.

ODD = {
    "control characters": "a\x01\x02\x1b[31mred\x07\r\nnew line\x7f",
    "right to left": "\u202ebackwards\u202c \u05d0\u05d1 \u0627\u0644",
    "a log line": 'x\n{"level": "error", "event": "forged"}',
    "an emoji": "👩‍👩‍👧‍👦" * 10,
    "quotes": "'; drop table public.video_generation_tasks; -- \" \\ $$",
    "as much as is read": "x" * 39_900,
}


def row_size(world: World) -> int:
    row = world.one(f"select max(octet_length(t::text)) as size from {TASKS} as t")
    return int(row["size"])


@pytest.mark.parametrize("name", ODD)
async def test_odd_texts_break_neither_row_nor_event(world: World, name: str) -> None:
    """Prompts, references and resolutions, wherever they come out again."""
    user = world.user()
    scenes = [
        world.scene(user, image_prompt=ODD[name]),
        world.scene(user, product_reference_image_url=f"https://{ODD[name]}"),
        world.scene(user, resolution=ODD[name]),
    ]
    with recorded() as heard:
        async with world.worker():
            for scene in scenes:
                row = await world.until(world.order(user, scene))
                assert row["status"] in {"completed", "failed"}
                assert row["error_code"] in {None, "INVALID_REQUEST", "RESOLUTION_UNSUPPORTED"}
    assert row_size(world) < 20_000
    assert max(len(said(event)) for event in heard) < 20_000


def said(event: Event) -> str:
    """The event as one line of the log."""
    return json.dumps(repr(event))


def test_a_scene_of_many_megabytes_is_never_given_whole_to_the_worker(ground: Ground) -> None:
    """Twenty of them at once would be all its memory, and everybody's tasks."""
    user, hand = ground.user(), ground.worker()
    scene = ground.scene(user)
    # An application's own table accepts it.
    ground.sql("alter table public.video_scenes drop constraint texts_are_at_most_40000_bytes")
    as_user(
        ground, user, "update public.video_scenes set visual_prompt = repeat('x', 20000000),"
        " image_prompt = repeat('👩', 5000000),"
        " product_reference_image_url = repeat('u', 20000000)",
    )  # fmt: skip
    as_user(ground, user, ONE_ORDER.decode(), scene)
    (held,) = hand.claim()
    (row,) = hand.about(held, "load_task")
    assert len(json.dumps(row["scene"], ensure_ascii=False)) < 50_000
    assert {len(row["scene"][n]) for n in ("visual_prompt", "image_prompt")} == {10_000}


@pytest.mark.parametrize("value", ["\\u0000", "\\ud800"])
def test_a_text_that_can_not_be_stored_is_refused_at_its_insert(ground: Ground, value: str) -> None:
    """NUL and a lone surrogate in a request's JSON: PostgreSQL takes neither."""
    with (
        pytest.raises(psycopg.DataError),
        acting(ground, "authenticated", ground.user()) as conn,
    ):
        conn.execute("select (%s::jsonb ->> 'p')::text", [f'{{"p": "{value}"}}'])


def test_odd_claims_identify_no_user(ground: Ground) -> None:
    task = insert(ground, ground.user())
    odd: list[dict[str, Any]] = [
        {"role": "authenticated"},
        {"role": "authenticated", "sub": ""},
        {"role": "authenticated", "sub": "not-a-uuid"},
        {"role": "authenticated", "sub": str(uuid4()), "user_role": "service_role"},
    ]
    for claims in odd:
        with pytest.raises(psycopg.Error), acting(ground, "authenticated", claims=claims) as conn:
            conn.execute(CANCEL.encode(), [task])
    assert ground.task(task)["status"] == "pending"


def test_a_taken_id_answers_the_same_whoever_owns_it(ground: Ground) -> None:
    mine, other = ground.user(), ground.user()
    taken = {"mine": insert(ground, mine), "theirs": insert(ground, other)}
    answers = []
    for task in taken.values():
        with pytest.raises(errors.UniqueViolation) as refused:
            insert(ground, mine, id=task)
        diag = refused.value.diag
        answers.append((diag.sqlstate, diag.message_primary, diag.message_detail))
        kept = as_user(
            ground, mine, f"insert into {TASKS} (id, scene_id) values (%s, %s)"
            " on conflict (id) do nothing returning id", task, ground.scene(mine),
        )  # fmt: skip
        assert kept == []
    assert answers[0] == answers[1]
    assert answers[0][2] is None


# Signing.


async def signed(storage: StorageControl, user: UUID, bucket: str, path: str) -> str | None:
    """The answer of createSignedUrl to a browser with this user's token."""
    token = storage.keys.user_token(user)
    async with httpx.AsyncClient() as http:
        options = AsyncClientOptions(
            httpx_client=http, headers={"Authorization": f"Bearer {token}"}
        )
        client = await acreate_client(storage.url, storage.keys.anon, options)
        try:
            answer = await client.storage.from_(bucket).create_signed_url(path, 3600)
        except StorageApiError:
            return None
        url = str(answer["signedURL"])
        assert (await http.get(url)).content[4:8] == b"ftyp"
        return url


@pytest.mark.parametrize("bucket", ["video-files", "our-clips"])
async def test_owners_sign_for_themselves_and_nobody_else_does(world: World, bucket: str) -> None:
    user, stranger = world.user(), world.user()
    async with world.worker(STORAGE_BUCKET_VIDEOS=bucket):
        row = await world.until(world.order(user, world.scene(user)))
    path = row["video_path"]
    assert await signed(world.storage, user, bucket, path)
    assert await signed(world.storage, stranger, bucket, path) is None
