"""The contract with clients: what a row may become, who may do what, and where the limits are."""

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import errors

from tests.support.clients import TASKS, acting, as_user, insert
from tests.support.hands import STAGE, Ground, Held, Later
from vidgen_worker.domain.task import Status

HOUR = timedelta(hours=1)


def in_status(ground: Ground, status: Status, user_id: UUID | None = None) -> Held:
    """A task that has come to this status on the legal way, for another worker than a test's."""
    hand = ground.worker()
    if status is Status.COMPLETED:
        held = ground.prepared(hand, "complete")
        hand.about(held, "complete")
        return held
    held = ground.held(hand, user_id=user_id)
    match status:
        case Status.PENDING:
            hand.about(held, "requeue")
        case Status.FAILED:
            hand.about(held, "fail")
        case Status.CANCELLED:
            hand.about(held, "cancel")
        case Status.PROCESSING:
            pass
    return held


# The legal changes of a row.

ALLOWED = {
    (Status.PENDING, Status.PROCESSING), (Status.PENDING, Status.CANCELLED),
    (Status.PENDING, Status.FAILED), (Status.PROCESSING, Status.COMPLETED),
    (Status.PROCESSING, Status.FAILED), (Status.PROCESSING, Status.CANCELLED),
    (Status.PROCESSING, Status.PENDING), (Status.FAILED, Status.PENDING),
    (Status.CANCELLED, Status.PENDING),
}  # fmt: skip
PAIRS = [(old, new) for old in Status for new in Status if old is not new]

SHAPES = {
    Status.PENDING: "worker_id = null, completed_at = null, error_code = null, error = null,"
    " error_message = null",
    Status.PROCESSING: "worker_id = gen_random_uuid(), attempt = attempt + 1, completed_at = null,"
    " error_code = null, error = null, error_message = null",
    Status.COMPLETED: "worker_id = null, completed_at = now(), progress = 100,"
    " video_path = 'video-files/' || user_id || '/v.mp4',"
    " error_code = null, error = null, error_message = null",
    Status.FAILED: "worker_id = null, completed_at = now(), error_code = 'INTERNAL_ERROR',"
    " error = '{}', error_message = 'no'",
    Status.CANCELLED: "worker_id = null, completed_at = now(), error_code = null, error = null,"
    " error_message = null",
}
"""How each status looks: every CHECK is satisfied, only the change itself can be refused."""


@pytest.mark.parametrize("role", ["postgres", "service_role", "vidgen_worker", "supabase_admin"])
def test_a_status_changes_only_as_listed_whoever_asks(ground: Ground, role: str) -> None:
    done, said, denied = set(), set(), set()
    for old, new in PAIRS:
        held = in_status(ground, old)
        with ground.admin.transaction(force_rollback=True):
            ground.sql(f"set local role {role}")
            try:
                ground.sql(
                    f"update {TASKS} set status = %s, {SHAPES[new]} where id = %s", new, held.id
                )
            except errors.CheckViolation as refused:
                said.add(f"{refused.diag.message_primary}".removeprefix(f"task {held.id}: "))
            except errors.InsufficientPrivilege:
                denied.add((old, new))
            else:
                done.add((old, new))
        ground.sql(f"delete from {TASKS} where id = %s", held.id)
    assert done | denied == ALLOWED
    # A worker can't restart an ended task by itself.
    again = {(Status.FAILED, Status.PENDING), (Status.CANCELLED, Status.PENDING)}
    assert denied == (again if role == "vidgen_worker" else set())
    assert said == {f"status can't change from {a} to {b}" for a, b in set(PAIRS) - ALLOWED}


def test_processing_begins_with_the_next_attempt(ground: Ground) -> None:
    held = in_status(ground, Status.PENDING)
    for attempt in (held.attempt, held.attempt + 2):
        with pytest.raises(errors.CheckViolation, match="status can't change from pending"):
            ground.sql(
                f"update {TASKS} set status = 'processing', worker_id = gen_random_uuid(),"
                " attempt = %s where id = %s",
                attempt, held.id,
            )  # fmt: skip


@pytest.mark.parametrize("status", Status)
def test_an_attempt_never_goes_down(ground: Ground, status: Status) -> None:
    held = in_status(ground, status)
    with pytest.raises(errors.CheckViolation, match=r"attempt never goes down|it has ended"):
        ground.sql(f"update {TASKS} set attempt = attempt - 1 where id = %s", held.id)


@pytest.mark.parametrize("status", [Status.PENDING, Status.PROCESSING])
def test_progress_never_goes_down(ground: Ground, status: Status) -> None:
    held = in_status(ground, status)
    ground.sql(f"update {TASKS} set progress = 40 where id = %s", held.id)
    ground.sql(f"update {TASKS} set progress = 1 where id = %s", held.id)
    assert ground.task(held.id)["progress"] == 40


def test_two_writes_of_one_transaction_have_two_times(ground: Ground) -> None:
    """Events overtake each other: clients keep the row with the greater `updated_at`."""
    task = ground.order()
    write = f"update {TASKS} set message = %s where id = %s returning updated_at"
    with ground.admin.transaction():
        times = [ground.one(write, message, task)["updated_at"] for message in ("one", "two")]
    assert times[0] < times[1]


@pytest.mark.parametrize("status", [status for status in Status if status.terminal])
def test_a_task_that_has_ended_does_not_change(ground: Ground, status: Status) -> None:
    """Every column, but a scene that goes away and a URL that is signed again."""
    held = in_status(ground, status)
    row = ground.task(held.id)
    kinds = {
        "uuid": "gen_random_uuid()", "text": "'other'", "timestamp with time zone": "now() + '1s'",
        "jsonb": "'{\"other\": 1}'", "smallint": "5", "integer": "5", "double precision": "3",
    }  # fmt: skip
    columns = ground.sql(
        "select column_name, data_type from information_schema.columns"
        " where table_schema = 'public' and table_name = 'video_generation_tasks'"
    )
    changed = set()
    for column in columns:
        name = column["column_name"]
        value = "null" if name == "scene_id" else kinds[column["data_type"]]
        with ground.admin.transaction(force_rollback=True):
            try:
                ground.sql(f"update {TASKS} set {name} = {value} where id = %s", held.id)
            except errors.CheckViolation:
                continue
            changed.add(name)
    assert changed == {"scene_id", "video_url", "video_url_expires_at", "updated_at"}
    ground.sql(f"update {TASKS} set updated_at = now() + interval '1 day' where id = %s", held.id)
    after = ground.task(held.id)
    assert after["updated_at"] - row["updated_at"] < HOUR, "the clock is the database's"


@pytest.mark.parametrize("role", ["postgres", "service_role", "supabase_admin"])
@pytest.mark.parametrize(
    "columns",
    [
        {"status": "processing", "worker_id": uuid4()},
        {"status": "completed", "video_path": "v", "progress": 100, "completed_at": "now"},
        {"status": "cancelled", "completed_at": "now"},
        {"attempt": 1, "started_at": "now"},
        {"worker_id": uuid4()},
    ],
    ids=" ".join,
)
def test_a_row_is_born_pending_whoever_inserts_it(
    ground: Ground, role: str, columns: dict[str, Any]
) -> None:
    user = ground.user()
    values = {"user_id": user, "scene_id": ground.scene(user), **columns}
    places = ", ".join(["%s"] * len(values))
    with ground.admin.transaction(force_rollback=True):
        ground.sql(f"set local role {role}")
        with pytest.raises(errors.CheckViolation, match="a task is born pending, with attempt 0"):
            ground.sql(
                f"insert into {TASKS} ({', '.join(values)}) values ({places})", *values.values()
            )


def test_a_new_row_reads_as_promised(ground: Ground) -> None:
    row = ground.task(insert(ground, ground.user()))
    assert (row["status"], row["progress"], row["attempt"], row["failures"]) == ("pending", 0, 0, 0)
    assert (row["current_step"], row["message"]) == (
        "Initializing", "Video generation task started",
    )  # fmt: skip


def test_a_row_can_t_jump_the_queue_by_an_old_run_after(ground: Ground) -> None:
    user = ground.user()
    row = ground.task(insert(ground, user, run_after="2000-01-01"))
    assert row["run_after"] == row["created_at"]
    later = ground.task(insert(ground, user, run_after="2100-01-01"))
    assert later["run_after"].year == 2100


@pytest.mark.parametrize("priority", [-11, 11])
def test_a_priority_has_its_range(ground: Ground, priority: int) -> None:
    with pytest.raises(errors.CheckViolation, match="priority_is_from_minus_10_to_10"):
        insert(ground, ground.user(), priority=priority)


# The rights of each role.

CLIENT_SETS = {"id", "cut", "scene_id", "user_id", "priority", "run_after", "reference"}


def test_a_client_sets_its_columns_and_no_other(ground: Ground) -> None:
    rows = ground.sql(
        "select attname as name,"
        "       has_column_privilege('authenticated', attrelid, attnum, 'insert') as inserts,"
        "       has_column_privilege('authenticated', attrelid, attnum, 'update') as updates"
        "  from pg_attribute where attrelid = %s::regclass and attnum > 0 and not attisdropped",
        TASKS,
    )
    assert {row["name"] for row in rows if row["inserts"]} == CLIENT_SETS
    assert not any(row["updates"] for row in rows)
    user = ground.user()
    for name in ("status", "created_at", "attempt", "max_failures", "video_url"):
        with pytest.raises(errors.InsufficientPrivilege):
            insert(ground, user, **{name: None})


@pytest.mark.parametrize(
    "statement",
    [f"update {TASKS} set priority = 5", f"delete from {TASKS}", f"truncate {TASKS}"],
)
@pytest.mark.parametrize("role", ["authenticated", "anon"])
def test_a_client_changes_nothing_but_through_the_calls(
    ground: Ground, role: str, statement: str
) -> None:
    user = ground.user()
    insert(ground, user)
    with pytest.raises(errors.InsufficientPrivilege), acting(ground, role, user) as conn:
        conn.execute(statement.encode())


def test_an_anonymous_client_sees_nothing(ground: Ground) -> None:
    for table in (TASKS, "public.user_credits", "public.video_generation_gates"):
        with (
            pytest.raises(errors.InsufficientPrivilege),
            acting(ground, "anon") as conn,
        ):
            conn.execute(f"select * from {table}".encode())


def test_owners_see_their_own_rows_only(ground: Ground) -> None:
    me, other = ground.user(70), ground.user(50)
    mine, _theirs = insert(ground, me), insert(ground, other)
    assert [row["id"] for row in as_user(ground, me, f"select id from {TASKS}")] == [mine]
    assert as_user(ground, me, "select balance from public.user_credits") == [{"balance": 70}]
    assert as_user(ground, me, "select amount from public.credit_entries") == [{"amount": 70}]
    assert len(as_user(ground, me, "select * from public.credit_prices")) == 2
    with acting(ground, "authenticated") as conn:
        assert conn.execute(f"select id from {TASKS}".encode()).fetchall() == []


def test_a_task_for_somebody_else_or_of_a_foreign_scene_is_refused_alike(ground: Ground) -> None:
    """An absent scene, a stranger's and none at all get the same message."""
    me, other = ground.user(), ground.user()
    said = set()
    for columns in (
        {"user_id": other, "scene_id": ground.scene(other)},
        {"scene_id": ground.scene(other)},
        {"scene_id": uuid4()},
        {"scene_id": None},
    ):
        with pytest.raises(errors.InsufficientPrivilege) as refused:
            insert(ground, me, **columns)
        said.add((str(refused.value), refused.value.diag.message_detail))
    assert len(said) == 1
    assert "violates row-level security policy" in said.pop()[0]


def test_a_taken_id_answers_the_same_whoever_owns_it(ground: Ground) -> None:
    me, other = ground.user(), ground.user()
    said = set()
    for owner in (me, other):
        taken = insert(ground, owner)
        with pytest.raises(errors.UniqueViolation) as refused:
            insert(ground, me, id=taken)
        said.add(str(refused.value).replace(str(taken), "…"))
        repeated = as_user(
            ground, me,
            f"insert into {TASKS} (id, scene_id) values (%s, %s) on conflict do nothing"
            " returning id",
            taken, ground.scene(me),
        )  # fmt: skip
        assert repeated == []
    assert len(said) == 1


@pytest.mark.parametrize("role", ["anon", "authenticated", "service_role"])
def test_the_private_schema_is_closed_to_clients(ground: Ground, role: str) -> None:
    row = ground.one("select has_schema_privilege(%s, 'vidgen', 'usage') as open", role)
    assert not row["open"]


def test_no_function_is_open_to_more_than_it_is_meant_for(ground: Ground) -> None:
    rows = ground.sql(
        "select p.proname as name, r.rolname as role from pg_proc as p"
        " cross join (select rolname from pg_roles"
        "   where rolname in ('anon', 'authenticated', 'service_role')) as r"
        " where p.pronamespace in ('vidgen'::regnamespace, 'public'::regnamespace)"
        "   and has_function_privilege(r.rolname, p.oid, 'execute')"
    )
    open_to: dict[str, set[str]] = {}
    for row in rows:
        open_to.setdefault(row["role"], set()).add(row["name"])
    calls = {"cancel_video_generation_task", "retry_video_generation_task"}
    inner = {"cancel_task", "retry_task"}
    webhooks = {
        "create_video_webhook", "rotate_video_webhook_secret", "test_video_webhook",
        "resend_video_deliveries", "delete_video_webhook",
    }  # fmt: skip
    checks = {"times_can_be_read", "texts_are_at_most_40000_bytes", "signed_in_user"}
    assert open_to == {
        "anon": checks | {"our_buckets", "is_unpaid"},
        "authenticated": calls
        | inner
        | checks
        | {"delete_video_scene", "delete_scene", "owns_scene"}
        | webhooks
        | {"our_buckets", "is_paid", "is_unpaid"},
        "service_role": calls
        | inner
        | checks
        | webhooks
        | {"grant_video_credits", "grant_credits", "our_buckets", "is_unpaid"},
    }


def test_owners_sign_their_own_clips_only(ground: Ground) -> None:
    me, other = ground.user(), ground.user()
    ground.sql("insert into storage.buckets (id, name) values ('video-files', 'v'), ('x', 'x')")
    for bucket, name in (
        ("video-files", f"video-files/{me}/mine.mp4"),
        ("video-files", f"video-files/{me}/not-charged.mp4"),
        ("video-files", f"video-files/{other}/theirs.mp4"),
        ("video-files", f"other/{me}/elsewhere.mp4"),
        ("x", f"video-files/{me}/another-bucket.mp4"),
    ):
        ground.sql("insert into storage.objects (bucket_id, name) values (%s, %s)", bucket, name)
    assert as_user(ground, me, "select name from storage.objects") == []
    for owner, name in ((me, "mine"), (other, "theirs"), (me, "another-bucket")):
        ground.sql(
            f"update {TASKS} set video_path = %s where id = %s",
            f"video-files/{owner}/{name}.mp4", ground.order(owner),
        )  # fmt: skip
    seen = as_user(ground, me, "select name from storage.objects")
    assert seen == [{"name": f"video-files/{me}/mine.mp4"}]
    ground.sql("update vidgen.settings set videos_bucket = 'x'")
    seen = as_user(ground, me, "select name from storage.objects")
    assert seen == [{"name": f"video-files/{me}/another-bucket.mp4"}]


def test_realtime_publishes_what_clients_watch_and_nothing_else(ground: Ground) -> None:
    rows = ground.sql(
        "select schemaname, tablename from pg_publication_tables"
        " where pubname = 'supabase_realtime'"
    )
    assert {(row["schemaname"], row["tablename"]) for row in rows} == {
        ("public", "video_generation_tasks"), ("public", "video_generation_gates"),
        ("public", "video_renditions"),
    }  # fmt: skip


def test_leases_and_heartbeats_never_touch_the_watched_row(ground: Ground) -> None:
    """Realtime sends an event for every UPDATE, also of hidden columns."""
    hand = ground.worker()
    held = ground.held(hand, "start_task", "begin_submission")
    before = ground.one(f"select xmin::text, ctid::text from {TASKS}")
    hand("heartbeat", task_ids=[held.id], attempts=[held.attempt])
    hand.about(held, "answer_submission")
    hand("close_gate", model="*")
    hand("open_gate", model="*")
    assert ground.one(f"select xmin::text, ctid::text from {TASKS}") == before


# The calls.

CANCEL, RETRY = "cancel_video_generation_task", "retry_video_generation_task"


@pytest.mark.parametrize("call", [CANCEL, RETRY])
def test_an_absent_a_foreign_and_no_id_get_the_same_answer(ground: Ground, call: str) -> None:
    me = ground.user()
    foreign = in_status(ground, Status.FAILED, ground.user()).id
    said = set()
    for task_id in (foreign, uuid4(), None):
        with pytest.raises(psycopg.Error) as refused:
            as_user(ground, me, f"select public.{call}(%s)", task_id)
        assert refused.value.sqlstate == "PT404"
        said.add(str(refused.value.diag.message_primary).replace(str(task_id), "<NULL>"))
    assert said == {"there is no task <NULL> of yours"}
    assert ground.task(foreign)["status"] == "failed"


@pytest.mark.parametrize("call", [CANCEL, RETRY])
def test_a_token_without_a_user_has_no_right(ground: Ground, call: str) -> None:
    held = in_status(ground, Status.FAILED)
    with pytest.raises(psycopg.Error) as refused, acting(ground, "authenticated") as conn:
        conn.execute(f"select public.{call}(%s)".encode(), [held.id])
    assert refused.value.sqlstate == "PT404"


@pytest.mark.parametrize("call", [CANCEL, RETRY])
def test_an_anonymous_client_may_not_call(ground: Ground, call: str) -> None:
    with pytest.raises(errors.InsufficientPrivilege), acting(ground, "anon") as conn:
        conn.execute(f"select public.{call}(%s)".encode(), [uuid4()])


def test_the_service_role_may_act_on_any_task(ground: Ground) -> None:
    task = insert(ground, ground.user())
    with acting(ground, "service_role") as conn:
        row = conn.execute(f"select * from public.{CANCEL}(%s)".encode(), [task]).fetchone()
    assert row is not None
    assert (row["id"], row["status"]) == (task, "cancelled")
    with acting(ground, "service_role") as conn:
        row = conn.execute(f"select * from public.{RETRY}(%s)".encode(), [task]).fetchone()
    assert row is not None
    assert row["status"] == "pending"


def session_of(ground: Ground, login: str, role: str, task_id: UUID) -> str | None:
    """Cancel over a direct connection without claims; the SQLSTATE of a refusal."""
    with psycopg.connect(ground.database.admin_url) as conn:
        conn.execute(f"set session authorization {login}".encode())
        conn.execute(f"set role {role}".encode())
        try:
            conn.execute(f"select public.{CANCEL}(%s)".encode(), [task_id])
        except psycopg.Error as refused:
            return refused.sqlstate
    return None


def test_a_direct_connection_is_judged_by_its_login_role(ground: Ground) -> None:
    """No claims there: who may write the table may cancel; PostgREST's own login may not."""
    task = insert(ground, ground.user())
    ground.sql("drop role if exists stranger")
    ground.sql("create role stranger login in role authenticated")
    try:
        assert session_of(ground, "stranger", "authenticated", task) == "PT404"
        assert session_of(ground, "authenticator", "authenticated", task) == "PT404"
        assert session_of(ground, "authenticator", "service_role", task) == "PT404"
        assert ground.task(task)["status"] == "pending"
        assert session_of(ground, "postgres", "postgres", task) is None
        assert ground.task(task)["status"] == "cancelled"
    finally:
        ground.sql("drop role stranger")


def test_a_waiting_task_is_cancelled_at_once(ground: Ground) -> None:
    user = ground.user()
    task = insert(ground, user)
    (row,) = as_user(ground, user, f"select * from public.{CANCEL}(%s)", task)
    assert (row["status"], row["current_step"]) == ("cancelled", "Cancelled")
    (again,) = as_user(ground, user, f"select * from public.{CANCEL}(%s)", task)
    assert again == row


@pytest.mark.parametrize("running", [True, False])
def test_a_task_with_a_live_generation_is_cancelled_by_a_worker(
    ground: Ground, *, running: bool
) -> None:
    user, hand = ground.user(), ground.worker()
    held = ground.held(hand, "start_task", *STAGE[:2], user_id=user)
    if not running:
        hand.about(held, "requeue")
    (row,) = as_user(ground, user, f"select * from public.{CANCEL}(%s)", held.id)
    assert row["status"] == ("processing" if running else "pending")
    assert row["cancel_requested_at"] is not None
    (again,) = as_user(ground, user, f"select * from public.{CANCEL}(%s)", held.id)
    assert again["cancel_requested_at"] == row["cancel_requested_at"]


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED])
def test_a_cancel_of_an_ended_task_changes_nothing(ground: Ground, status: Status) -> None:
    held = in_status(ground, status)
    before = ground.dump()
    ground.sql(f"select public.{CANCEL}(%s)", held.id)
    assert ground.dump() == before


@pytest.mark.parametrize("status", [Status.PENDING, Status.PROCESSING, Status.COMPLETED])
def test_only_a_failed_or_cancelled_task_is_retried(ground: Ground, status: Status) -> None:
    held = in_status(ground, status)
    with pytest.raises(psycopg.Error, match="only a failed or cancelled task") as refused:
        ground.sql(f"select public.{RETRY}(%s)", held.id)
    assert refused.value.sqlstate == "PT409"


def test_a_retry_clears_the_end_and_the_budgets(ground: Ground) -> None:
    user, hand = ground.user(), ground.worker()
    held = ground.held(hand, "start_task", *STAGE, user_id=user)
    as_user(ground, user, f"select public.{CANCEL}(%s)", held.id)
    ground.sql(
        "insert into vidgen.budgets (task_id, crashes, suspect) values (%s, 2, true)", held.id
    )
    hand.about(held, "cancel")
    (row,) = as_user(ground, user, f"select * from public.{RETRY}(%s)", held.id)
    assert (row["status"], row["progress"], row["failures"], row["attempt"]) == ("pending", 0, 0, 1)
    assert (row["cancel_requested_at"], row["completed_at"], row["error_code"]) == (None,) * 3
    assert ground.one("select crashes, retries from vidgen.budgets") == {"crashes": 0, "retries": 1}
    assert ground.one("select state from vidgen.checkpoints")["state"] == "done", "and is kept"
    assert [again.id for again in hand.claim()] == [held.id]


def test_a_task_is_retried_three_times_at_most(ground: Ground) -> None:
    user, hand = ground.user(), ground.worker()
    held = ground.held(hand, user_id=user)
    for _ in range(3):
        hand.about(held, "fail")
        as_user(ground, user, f"select public.{RETRY}(%s)", held.id)
        (held,) = hand.claim()
    hand.about(held, "fail")
    with pytest.raises(psycopg.Error, match="was retried 3 times already") as refused:
        as_user(ground, user, f"select public.{RETRY}(%s)", held.id)
    assert refused.value.sqlstate == "PT409"


def test_rejected_content_is_retried_only_when_it_has_changed(ground: Ground) -> None:
    user, hand = ground.user(), ground.worker()
    held = ground.held(hand, user_id=user)
    (loaded,) = hand.about(held, "load_task")
    hand.walk(held, "start_task")
    hand.about(held, "begin_submission", inputs=loaded["inputs"])
    hand.walk(held, "answer_submission")
    hand.about(held, "end_generation", ended_state="failed")
    hand.about(held, "fail", code="CONTENT_REJECTED")
    with pytest.raises(psycopg.Error, match="rejected this scene, and it is unchanged"):
        as_user(ground, user, f"select public.{RETRY}(%s)", held.id)
    as_user(ground, user, "update public.video_scenes set visual_prompt = 'a bowl'")
    (row,) = as_user(ground, user, f"select * from public.{RETRY}(%s)", held.id)
    assert row["status"] == "pending"


# Limits.


def test_the_limit_of_unfinished_tasks_is_exact(ground: Ground) -> None:
    user, hand = ground.user(), ground.worker()
    ground.sql("update vidgen.settings set max_unfinished_per_user = 3")
    scene = ground.scene(user)
    held = ground.held(hand, user_id=user)
    many = f"insert into {TASKS} (scene_id) select %s from generate_series(1, %s)"
    with pytest.raises(psycopg.Error, match="limit reached: 3 unfinished tasks") as refused:
        as_user(ground, user, many, scene, 3)
    assert refused.value.sqlstate == "PT429"
    as_user(ground, user, many, scene, 2)
    with pytest.raises(psycopg.Error, match="limit reached"):
        insert(ground, user)
    hand.about(held, "fail")
    insert(ground, user)
    with pytest.raises(psycopg.Error, match="limit reached"):
        as_user(ground, user, f"select public.{RETRY}(%s)", held.id)
    assert ground.task(held.id)["status"] == "failed"
    insert(ground, ground.user())
    ground.order(user)


def test_overlapping_transactions_can_t_pass_the_limit_together(ground: Ground) -> None:
    user = ground.user()
    ground.sql("update vidgen.settings set max_unfinished_per_user = 1")
    scene = ground.scene(user)
    statement = f"insert into {TASKS} (scene_id) values (%s)".encode()
    with (  # noqa: PT012 - it is refused when the other lets go
        pytest.raises(psycopg.Error, match="limit reached: 1 unfinished tasks"),
        acting(ground, "authenticated", user) as second,
    ):
        with acting(ground, "authenticated", user) as first:
            first.execute(statement, [scene])
            late = Later(lambda: second.execute(statement, [scene]), second.info.backend_pid)
            late.start()
            assert ground.waits(late)
        late.result()
    assert ground.one(f"select count(*) as tasks from {TASKS}")["tasks"] == 1


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ("cost = 11", True),
        ("cost = null, estimated_cost = 11", True),
        ("cost = 10", False),
        ("cost = 11, sent_at = now() - interval '25 hours'", False),
    ],
)
def test_the_cost_without_a_charge_is_limited_per_day(
    ground: Ground, change: str, *, refused: bool
) -> None:
    """Insert, wait until it runs, cancel, repeat: that must not drain the operator's account."""
    user, hand = ground.user(), ground.worker()
    held = ground.held(hand, "start_task", *STAGE[:2], user_id=user)
    hand.about(held, "cancel")
    ground.sql("update vidgen.settings set max_unbilled_cost_per_user = 10")
    ground.sql(f"update vidgen.submissions set {change}")
    insert(ground, ground.user())
    if refused:
        with pytest.raises(psycopg.Error, match="too much was generated for you today") as error:
            insert(ground, user)
        assert error.value.sqlstate == "PT429"
    else:
        insert(ground, user)


def test_a_charged_cost_does_not_count_against_the_day(ground: Ground) -> None:
    user, hand = ground.user(), ground.worker()
    ground.held(hand, "start_task", *STAGE, user_id=user)
    ground.sql("update vidgen.settings set max_unbilled_cost_per_user = 10")
    ground.sql("update vidgen.submissions set cost = 11")
    insert(ground, user)
