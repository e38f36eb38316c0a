"""What the roles may not do: claims set by hand, a stolen worker, rows of any size, quoted words.

An attacker here has SQL: as a login of the application's own, or with the worker's password. What
each role may do at most is in test_policies.py; here is played what it would be stolen for.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from psycopg import errors, sql
from psycopg.rows import dict_row

from tests.conftest import Database, PostgresServer
from tests.support.clients import acting, as_user, insert
from tests.support.hands import STAGE, Ground, Hand, Held
from tests.support.statements import grants, needs_of_the_worker
from tests.support.world import World, posts
from vidgen_worker.domain.faults import Fault
from vidgen_worker.domain.scene import SCENE_BYTES_MAX, scene_of
from vidgen_worker.providers.protocol import Request
from vidgen_worker.providers.runway.answers import submit_refused

TASKS = "public.video_generation_tasks"
CANCEL = "select public.cancel_video_generation_task(%s)"
RETRY = "select public.retry_video_generation_task(%s)"

Connection = psycopg.Connection[dict[str, Any]]


@contextmanager
def logged_in(server: PostgresServer, database: Database, role: str) -> Iterator[Connection]:
    """A login of its own that is a member of this role, for as long as the block."""
    name = f"thief_{uuid4().hex[:12]}"
    with psycopg.connect(server.admin_url(), autocommit=True) as admin:
        made = sql.SQL("create role {} login password {} in role {}")
        password = admin.info.password or "unused"
        admin.execute(made.format(sql.Identifier(name), password, sql.Identifier(role)))
        try:
            with psycopg.connect(
                server.url(database.name, name), autocommit=True, row_factory=dict_row
            ) as conn:
                yield conn
        finally:
            admin.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


# Claims set by hand.


@dataclass(frozen=True)
class Victim:
    """Somebody with a task of each kind that a call can reach."""

    id: UUID
    scene: UUID
    waiting: UUID
    ended: UUID


@pytest.fixture
def victim(ground: Ground) -> Victim:
    user = ground.user()
    ended = insert(ground, user)
    as_user(ground, user, CANCEL, ended)
    return Victim(user, ground.scene(user), insert(ground, user), ended)


@pytest.fixture
def intruder(
    postgres_server: PostgresServer, database: Database, victim: Victim
) -> Iterator[Connection]:
    """An application's own SQL login with a signed-in user's rights."""
    assert victim.waiting.version
    with logged_in(postgres_server, database, "authenticated") as conn:
        yield conn


CLAIMS = {
    "the service's": {"role": "service_role"},
    "the victim's": {"role": "authenticated", "sub": "VICTIM"},
    "both": {"role": "service_role", "sub": "VICTIM"},
    "an operator's": {"role": "postgres"},
    "the worker's": {"role": "vidgen_worker"},
}


def claim(conn: Connection, claims: dict[str, str], victim: Victim) -> None:
    """Set claims by hand, the way of today and the former one."""
    said = {name: value.replace("VICTIM", str(victim.id)) for name, value in claims.items()}
    conn.execute("select set_config('request.jwt.claims', %s, false)", [json.dumps(said)])
    for name, value in said.items():
        conn.execute("select set_config(%s, %s, false)", [f"request.jwt.claim.{name}", value])


@pytest.mark.parametrize("claims", CLAIMS)
def test_a_claim_set_by_hand_reaches_nobodys_task(
    ground: Ground, intruder: Connection, victim: Victim, claims: str
) -> None:
    claim(intruder, CLAIMS[claims], victim)
    for become in ("reset role", "set role authenticated"):
        intruder.execute(become.encode())
        for call, task in ((CANCEL, victim.waiting), (RETRY, victim.ended)):
            with pytest.raises(psycopg.Error, match="there is no task") as refused:
                intruder.execute(call.encode(), [task])
            assert refused.value.sqlstate == "PT404"
    assert ground.task(victim.waiting)["status"] == "pending"
    assert ground.task(victim.ended)["status"] == "cancelled"


@pytest.mark.parametrize("table", [TASKS, "public.video_scenes", "public.video_scenarios"])
def test_a_user_with_sql_can_put_no_trigger_where_we_write_as_the_owner(
    intruder: Connection, table: str
) -> None:
    """A function of his would run with the owner's rights; here it is PostgreSQL's own."""
    with pytest.raises(errors.InsufficientPrivilege):
        intruder.execute(
            f"create trigger mine before update on {table} for each row"
            " execute function suppress_redundant_updates_trigger()".encode()
        )


OWNED = (TASKS, "public.user_credits", "public.credit_entries", "public.video_scenes")


@pytest.mark.parametrize("claims", CLAIMS)
def test_a_claim_set_by_hand_shows_changes_and_orders_nothing(
    intruder: Connection, victim: Victim, claims: str
) -> None:
    claim(intruder, CLAIMS[claims], victim)
    for table in OWNED:
        assert intruder.execute(f"select * from {table}".encode()).fetchall() == [], table
    assert intruder.execute("update public.video_scenes set visual_prompt = 'x'").rowcount == 0
    deletes = "select public.delete_video_scene(%s) as deleted"
    assert intruder.execute(deletes, [victim.scene]).fetchall() == [{"deleted": False}]
    with pytest.raises(errors.InsufficientPrivilege, match="row-level security"):
        intruder.execute(
            f"insert into {TASKS} (scene_id, user_id) values (%s, %s)".encode(),
            [victim.scene, victim.id],
        )
    with pytest.raises(errors.InsufficientPrivilege):
        intruder.execute("select public.grant_video_credits(%s, 1, 'x')", [victim.id])


def test_a_role_in_the_claims_does_not_lift_a_users_limits(ground: Ground, victim: Victim) -> None:
    """PostgREST sets both alike; a function of the application's may set another claim."""
    ground.sql("update vidgen.settings set max_unfinished_per_user = 1")
    claims = {"role": "service_role", "sub": str(victim.id)}
    with (
        pytest.raises(psycopg.Error, match="limit reached"),
        acting(ground, "authenticated", claims=claims) as conn,
    ):
        conn.execute(RETRY.encode(), [victim.ended])
    other = insert(ground, ground.user())
    with (
        pytest.raises(psycopg.Error, match="there is no task"),
        acting(ground, "authenticated", claims=claims) as conn,
    ):
        conn.execute(CANCEL.encode(), [other])


@pytest.mark.parametrize("role", ["service_role", "postgres", "vidgen_worker"])
def test_only_its_role_lets_a_caller_act_for_all(ground: Ground, victim: Victim, role: str) -> None:
    of_somebody = json.dumps({"role": "authenticated", "sub": str(uuid4())})
    with psycopg.connect(ground.database.admin_url, autocommit=True) as conn:
        conn.execute(f"set role {role}".encode())
        conn.execute(CANCEL.encode(), [victim.waiting])
        conn.execute("select set_config('request.jwt.claims', %s, false)", [of_somebody])
        conn.execute(RETRY.encode(), [victim.ended])
    assert ground.task(victim.waiting)["status"] == "cancelled"
    assert ground.task(victim.ended)["status"] == "pending"


Claims = dict[str, str]


@contextmanager
def request(ground: Ground, role: str, claims: Claims) -> Iterator[Connection]:
    """PostgREST's own session: it logs in as `authenticator` and takes the role of the token."""
    with psycopg.connect(
        ground.database.admin_url, autocommit=True, row_factory=dict_row
    ) as conn:  # fmt: skip
        conn.execute("set session authorization authenticator")
        with conn.transaction():
            conn.execute(
                "select set_config('role', %s, true), set_config('request.jwt.claims', %s, true)",
                [role, json.dumps(claims)],
            )
            yield conn


def test_a_request_acts_as_its_role_and_its_user(ground: Ground, victim: Victim) -> None:
    stranger = {"sub": str(uuid4())}
    nobodys: list[tuple[str, Claims]] = [
        ("authenticated", {"role": "authenticated", **stranger}),
        ("authenticated", {"role": "service_role", **stranger}),
        ("authenticated", {"role": "service_role"}),
        # Not a request of PostgREST's: the claims say less than the role.
        ("service_role", stranger),
    ]
    for role, claims in nobodys:
        with (
            pytest.raises(psycopg.Error, match="there is no task"),
            request(ground, role, claims) as conn,
        ):
            conn.execute(CANCEL.encode(), [victim.waiting])
    owner = {"role": "authenticated", "sub": str(victim.id)}
    with request(ground, "authenticated", owner) as conn:
        conn.execute(CANCEL.encode(), [victim.waiting])
        assert len(conn.execute(f"select from {TASKS}".encode()).fetchall()) == 2
    assert ground.task(victim.waiting)["status"] == "cancelled"
    with request(ground, "service_role", {"role": "service_role"}) as conn:
        conn.execute(RETRY.encode(), [victim.ended])
    assert ground.task(victim.ended)["status"] == "pending"


def test_claims_are_read_in_one_place(ground: Ground) -> None:
    """A function or a policy of ours that asks Supabase's own fails here: see these two."""
    readers = ground.sql(
        "select p.proname from pg_proc as p where p.pronamespace = 'vidgen'::regnamespace"
        "   and p.prosrc ~ 'auth[.](uid|role|jwt)|request[.]jwt'"
    )
    assert {row["proname"] for row in readers} == {"signed_in_user", "acts_for_all"}
    policies = ground.sql(
        "select policyname from pg_policies where schemaname = 'public'"
        "   and concat(qual, with_check) ~ 'auth[.](uid|role|jwt)'"
    )
    assert policies == []


# A stolen vidgen_worker.


@dataclass(frozen=True)
class Loot:
    """The targets of a thief: a user's balance, and a task at every point of its life."""

    user: UUID
    waiting: UUID
    running: Held
    generated: Held
    charged: Held


@pytest.fixture
def loot(ground: Ground) -> Loot:
    user, hand = ground.user(), ground.worker()
    as_user(ground, user, CANCEL, insert(ground, user))
    charged = ground.held(hand, "start_task", *STAGE, user_id=user)
    generated = ground.held(hand, "start_task", *STAGE[:3], user_id=user)
    running = ground.held(hand, user_id=user)
    return Loot(user, ground.order(user), running, generated, charged)


@pytest.fixture
def thief(postgres_server: PostgresServer, database: Database, loot: Loot) -> Iterator[Connection]:
    """A thief with the worker's password."""
    assert loot.waiting.version
    with logged_in(postgres_server, database, "vidgen_worker") as conn:
        yield conn


HOLD = (
    "select vidgen.hold_credits(%(task)s, %(user)s,"
    " jsonb_build_object('image', %(image)s::integer, 'video', %(video)s::integer))"
)
SETTLE = "select vidgen.settle_credits(%(task)s, %(stage)s)"
RELEASE = "select vidgen.release_credits(%(task)s)"
CHARGE = (
    "insert into vidgen.charges (task_id, stage, user_id) values (%(task)s, %(stage)s, %(user)s)"
)

SUBMIT = (
    "insert into vidgen.submissions (id, task_id, user_id, stage, attempt, worker_id, provider,"
    " key_fingerprint, model, fingerprint) values (gen_random_uuid(), %(task)s, %(user)s,"
    " %(stage)s, 1, gen_random_uuid(), 'runway', 'key', 'gen4_image', 'x')"
)

MONEY: dict[str, tuple[str, str, dict[str, object], str]] = {
    "hold for no task": (HOLD, "absent", {}, "VG001"),
    "hold for a waiting task": (HOLD, "waiting", {}, "VG001"),
    "hold for another user": (HOLD, "running", {"user": uuid4()}, "VG001"),
    "hold at any price": (HOLD, "running", {"image": 900, "video": 0}, "VG002"),
    "hold at no price": (HOLD, "running", {"image": 0, "video": 0}, "VG002"),
    "hold at a negative price": (HOLD, "running", {"image": -5, "video": 25}, "VG002"),
    "hold at null": (HOLD, "running", {"image": None, "video": 25}, "VG002"),
    "hold for no stage": (HOLD.replace("'video'", "'sound'"), "running", {}, "VG002"),
    "hold for one stage of two": (
        "select vidgen.hold_credits(%(task)s, %(user)s, '{\"image\": 5}')",
        "running",
        {},
        "VG002",
    ),
    "hold for nothing": (
        "select vidgen.hold_credits(%(task)s, %(user)s, null)",
        "running",
        {},
        "VG002",
    ),
    "settle for no task": (SETTLE, "absent", {}, "VG003"),
    "settle without a hold": (SETTLE, "running", {}, "VG003"),
    "settle without a charge": (SETTLE, "generated", {}, "VG004"),
    "settle a stage twice": (SETTLE, "charged", {}, "VG004"),
    "settle a stage that is none": (SETTLE, "charged", {"stage": "sound"}, "VG004"),
    "charge no task": (CHARGE, "absent", {}, "VG001"),
    "charge another user": (CHARGE, "generated", {"user": uuid4()}, "VG001"),
    "charge what was not generated": (CHARGE, "generated", {"stage": "video"}, "VG003"),
    "charge twice": (CHARGE, "charged", {}, "23505"),
    "spend for no task": (SUBMIT, "absent", {}, "VG001"),
    "spend for a waiting task": (SUBMIT, "waiting", {}, "VG001"),
    "spend in another user's name": (SUBMIT, "running", {"user": uuid4()}, "VG001"),
    "release under a running task": (RELEASE, "charged", {}, "VG005"),
}


def test_a_stolen_role_moves_no_credits_but_for_ordered_work(
    ground: Ground, thief: Connection, loot: Loot
) -> None:
    tasks = {
        "absent": uuid4(), "waiting": loot.waiting, "running": loot.running.id,
        "generated": loot.generated.id, "charged": loot.charged.id,
    }  # fmt: skip
    usual = {"user": loot.user, "image": 5, "video": 25, "stage": "image"}
    before = ground.dump()
    found = {
        name: state_of(thief, statement, {**usual, "task": tasks[task], **changes})
        for name, (statement, task, changes, _) in MONEY.items()
    }
    assert found == {name: state for name, (_, _, _, state) in MONEY.items()}
    assert ground.dump() == before
    assert ground.books_balance()


BEGIN_UPLOAD = (
    "insert into vidgen.uploads (id, task_id, user_id, stage, attempt, worker_id, bucket, path)"
    " select gen_random_uuid(), t.id, t.user_id, 'video', t.attempt, {of},"
    f" 'video-files/' || t.user_id || '/a.mp4' from {TASKS} as t where {{where}} limit 1"
)
REFUSED = (
    f"update {TASKS} set status = 'pending' where status = 'cancelled'",
    *(
        f"update {TASKS} set {column} = {column}"
        for column in (
            "id",
            "user_id",
            "scene_id",
            "priority",
            "max_failures",
            "cancel_requested_at",
            "created_at",
            "updated_at",
        )
    ),
    f"insert into {TASKS} (scene_id, user_id) select scene_id, user_id from {TASKS} limit 1",
    f"delete from {TASKS}",
    *(
        f"update vidgen.submissions set {column} = {column}"
        for column in ("id", "task_id", "user_id", "stage", "attempt", "sent_at", "counted")
    ),
    "update vidgen.checkpoints set task_id = task_id",
    "update vidgen.checkpoints set stage = stage",
    # The object of a checkpoint is signed, and removed with its task.
    "update vidgen.checkpoints set bucket = 'documents' where path is not null",
    "update vidgen.checkpoints set path = 'payroll/all.pdf' where path is not null",
    # A sent request and its generation never change.
    "update vidgen.checkpoints set request = '{\"promptText\": \"mine\"}' where state = 'storing'",
    "update vidgen.submissions set generation_id = gen_random_uuid() where answer = 'generation'",
    "update vidgen.submissions set generation_id = null, answer = 'unknown'",
    "update vidgen.checkpoints set submission_id = null, generation_id = null where path is null",
    "update vidgen.submissions set fingerprint = 'mine'",
    "update vidgen.submissions set digest = 'mine'",
    "update vidgen.submissions set billed = true",
    "update vidgen.user_limits set first_stored_at = now(), rejections = 0",
    "delete from vidgen.rejections",
    "update vidgen.charges set user_id = user_id",
    "update vidgen.charges set settled_at = null",
    "insert into vidgen.charges (task_id, stage, settled_at) values (null, 'image', now())",
    "delete from vidgen.charges",
    "delete from vidgen.submissions",
    "delete from vidgen.budgets",
    "update vidgen.budgets set retries = 0",
    "update vidgen.holds set amount = 0",
    "insert into vidgen.holds (task_id, amount) values (gen_random_uuid(), 1)",
    "delete from vidgen.pruned",
    "update public.credit_prices set credits = 1000000",
    "insert into public.credit_prices values ('generate_scene', 0)",
    "update public.user_credits set balance = 0",
    "insert into public.credit_entries (user_id, kind, amount) values (null, 'grant', 1)",
    "update public.credit_entries set amount = 1",
    "delete from public.credit_entries",
    "select public.grant_video_credits(gen_random_uuid(), 1, 'x')",
    "select vidgen.grant_credits(gen_random_uuid(), 1, 'x')",
    "select vidgen.restore_credits(gen_random_uuid())",
    "select vidgen.take_charge(gen_random_uuid(), 'image', gen_random_uuid())",
    # The janitor would remove such files.
    BEGIN_UPLOAD.format(of="t.worker_id, 'documents'", where="t.status = 'processing'"),
    BEGIN_UPLOAD.format(of="t.worker_id, 'video-files'", where="t.status = 'cancelled'"),
    BEGIN_UPLOAD.format(of="gen_random_uuid(), 'video-files'", where="t.status = 'processing'"),
    "insert into vidgen.stages (name, place, action) values ('free', 9, 'nothing')",
    "update vidgen.stages set bucket = 'private-documents'",
    "update vidgen.settings set videos_bucket = 'private-documents'",
    "update vidgen.settings set images_bucket = 'private-documents', videos_bucket = 'x'",
    "update vidgen.settings set max_unfinished_per_user = 1000000",
    "insert into vidgen.settings default values",
    "delete from vidgen.settings",
    "alter table vidgen.settings disable trigger settings_change",
    "alter table vidgen.charges disable trigger user",
    f"alter table {TASKS} disable row level security",
    f"create policy mine on {TASKS} using (true)",
    "create or replace function vidgen.is_operator() returns boolean language sql as 'select true'",
    "create table vidgen.mine (id int)",
    "create table public.mine (id int)",
    "select * from public.video_scenes",
    "select * from public.video_scenarios",
    "select * from auth.users",
    "select * from storage.objects",
    "select * from storage.buckets",
    "set role service_role",
    "set role authenticated",
    "set role postgres",
    "set session_replication_role = replica",
    f"truncate {TASKS} cascade",
)


def state_of(conn: Connection, statement: str, values: dict[str, object] | None = None) -> str:
    """The SQLSTATE that a statement is refused with; "done" when it is not."""
    try:
        with conn.transaction():
            conn.execute(statement.encode(), values)
    except psycopg.Error as error:
        return error.sqlstate or type(error).__name__
    return "done"


def test_a_stolen_role_is_refused(ground: Ground, thief: Connection) -> None:
    before = ground.dump()
    denied = errors.InsufficientPrivilege.sqlstate
    found = {statement: state_of(thief, statement) for statement in REFUSED}
    assert {said: state for said, state in found.items() if state != denied} == {}
    assert ground.dump() == before


FOLLOWS: dict[str, tuple[str, str]] = {
    "another task's submission": (
        "update vidgen.checkpoints set submission_id = %(other)s where task_id = %(generated)s",
        "42501",
    ),
    "another task's submission that nobody has answered": (
        (
            "update vidgen.checkpoints"
            " set state = 'submitting', generation_id = null, submission_id = %(clip)s"
            " where task_id = %(generated)s"
        ),
        "42501",
    ),
    "a new checkpoint of another task's submission that nobody has answered": (
        (
            "insert into vidgen.checkpoints"
            " (task_id, stage, state, request, inputs, submission_id)"
            " values (%(running)s, 'video', 'submitting', '{}', '', %(clip)s)"
        ),
        "42501",
    ),
    "another stage's submission": (
        "update vidgen.checkpoints set submission_id = %(clip)s where task_id = %(charged)s",
        "42501",
    ),
    "a submission of nobody's": (
        (
            "update vidgen.checkpoints set submission_id = gen_random_uuid()"
            " where task_id = %(generated)s"
        ),
        "23503",
    ),
    "another task's generation": (
        "update vidgen.checkpoints set generation_id = %(stolen)s where task_id = %(generated)s",
        "42501",
    ),
    "a generation of nobody's": (
        (
            "update vidgen.checkpoints set generation_id = gen_random_uuid()"
            " where task_id = %(generated)s"
        ),
        "42501",
    ),
    "a new checkpoint of another task's submission": (
        (
            "insert into vidgen.checkpoints (task_id, stage, state, request, inputs, submission_id)"
            " values (%(running)s, 'image', 'submitting', '{}', '', %(other)s)"
        ),
        "42501",
    ),
    "a new checkpoint with its own submission and another request": (
        (
            "do $$ begin delete from vidgen.checkpoints where task_id = '%(generated)s';"
            " insert into vidgen.checkpoints"
            " (task_id, stage, state, request, inputs, submission_id)"
            " select s.task_id, s.stage, 'submitting', '{}', '', s.id from vidgen.submissions as s"
            " where s.task_id = '%(generated)s'; end $$"
        ),
        "42501",
    ),
    "another task's generation as the answer to a submission": (
        (
            "update vidgen.submissions set answer = 'generation', answered_at = now(),"
            " generation_id = %(stolen)s where id = %(clip)s"
        ),
        "23505",
    ),
}


def test_a_stolen_role_makes_no_worker_follow_another_s_generation(
    ground: Ground, thief: Connection, loot: Loot
) -> None:
    """One user's generation would be stored as another's, or his request sent as another's."""
    hand = ground.hand(loot.charged.worker_id)
    clip = Held(loot.charged.id, loot.charged.attempt, loot.charged.worker_id)
    hand.walk(clip, *STAGE[:1], stage="video")
    values: dict[str, object] = {
        "running": loot.running.id, "generated": loot.generated.id, "charged": loot.charged.id,
        "other": loot.charged.submission_id, "stolen": loot.charged.generation_id,
        "clip": clip.submission_id,
    }  # fmt: skip
    before = ground.dump()
    found = {
        name: state_of(thief, statement % values if "$$" in statement else statement,
                       None if "$$" in statement else values)
        for name, (statement, _) in FOLLOWS.items()
    }  # fmt: skip
    assert found == {name: state for name, (_, state) in FOLLOWS.items()}
    assert ground.dump() == before


@pytest.mark.usefixtures("loot")
def test_a_stage_may_have_a_bucket_of_its_own(ground: Ground, thief: Connection) -> None:
    """Only an operator writes its row; then a worker stores there and nowhere else."""
    begin = BEGIN_UPLOAD.format(of="t.worker_id, %(bucket)s", where="t.status = 'processing'")
    assert state_of(thief, begin, {"bucket": "posters"}) == "42501"
    ground.sql(
        "insert into vidgen.stages (name, place, action, bucket)"
        " values ('poster', 3, 'generate_poster', 'posters')"
    )
    assert state_of(thief, begin, {"bucket": "posters"}) == "done"
    assert state_of(thief, begin, {"bucket": "documents"}) == "42501"


def test_a_stolen_role_does_not_change_the_policy_s_buckets_and_a_worker_is_told(
    ground: Ground, thief: Connection
) -> None:
    asked = "select vidgen.share_buckets('generated-content', %s) as shared"
    assert thief.execute(asked.encode(), ["video-files"]).fetchall() == [{"shared": True}]
    assert thief.execute(asked.encode(), ["documents"]).fetchall() == [{"shared": False}]
    assert ground.one("select videos_bucket as name from vidgen.settings")["name"] == "video-files"
    with psycopg.connect(ground.database.url, autocommit=True) as operator:
        operator.execute(asked.encode(), ["our-clips"])
    assert ground.one("select videos_bucket as name from vidgen.settings")["name"] == "our-clips"


def test_the_grants_of_the_worker_are_what_its_statements_need(ground: Ground) -> None:
    """Said as the GRANTs that are missing or too many: they belong into a migration."""
    rows = ground.sql(
        "select c.oid::regclass::text as name, n.nspname || '.' || c.relname as table,"
        "       v.verb, a.attname as column,"
        "       has_column_privilege('vidgen_worker', c.oid, a.attnum, v.verb) as granted"
        "  from pg_class as c join pg_namespace as n on n.oid = c.relnamespace"
        "  join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped"
        " cross join (values ('insert'), ('update')) as v (verb)"
        " where n.nspname in ('public', 'vidgen') and c.relkind = 'r'"
    )
    needs = needs_of_the_worker(ground)
    granted = {(r["verb"], r["table"], r["column"]) for r in rows if r["granted"]}
    needed = {
        (verb, table, column)
        for verb, tables in (("insert", needs.insert), ("update", needs.update))
        for table, columns in tables.items()
        for column in columns
    }
    said = "\n".join(grants(needs))
    assert {f"missing: {one}" for one in needed - granted} == set(), said
    assert {f"not needed: {one}" for one in granted - needed} == set(), said
    deletes = ground.sql(
        "select n.nspname || '.' || c.relname as name from pg_class as c"
        "  join pg_namespace as n on n.oid = c.relnamespace"
        " where n.nspname in ('public', 'vidgen') and c.relkind = 'r'"
        "   and has_table_privilege('vidgen_worker', c.oid, 'delete')"
    )
    assert {row["name"] for row in deletes} == needs.delete, said


# Rows of an application, whatever is in them.

LARGE = 40_000_000


def without_checks(ground: Ground) -> None:
    """Scenes as an application's own table has them, and as they were before the checks."""
    ground.sql("alter table public.video_scenes drop constraint texts_are_at_most_40000_bytes")


def detoasted(conn: Connection) -> int:
    """How often this transaction has read parts of a scene's large values."""
    row = conn.execute(
        "select coalesce(sum(s.idx_scan + s.seq_scan), 0) as scans"
        "  from pg_stat_xact_all_tables as s join pg_class as c on c.reltoastrelid = s.relid"
        " where c.oid = 'public.video_scenes'::regclass"
    ).fetchone()
    assert row is not None
    return int(row["scans"])


def load(ground: Ground, hand: Hand, held: Held) -> dict[str, Any]:
    """The scene as a worker gets it, with a check that nothing large was read."""
    with hand.conn.transaction():
        (row,) = hand.about(held, "load_task")
        assert detoasted(hand.conn) == 0
    found: dict[str, Any] = row["scene"]
    assert len(json.dumps(found)) < 200_000
    assert ground.task(held.id)["status"] == "processing"
    return found


TEXTS = ("image_prompt", "visual_prompt", "product_reference_image_url")


def test_three_texts_of_forty_megabytes_are_not_read(ground: Ground) -> None:
    without_checks(ground)
    hand = ground.worker()
    held = ground.held(hand)
    # Stored as they are: compressed, forty megabytes of one letter are nothing.
    for name in TEXTS:
        ground.sql(f"alter table public.video_scenes alter {name} set storage external")
    ground.sql(
        "update public.video_scenes set "
        + ", ".join(f"{name} = repeat('x', {LARGE})" for name in TEXTS)
    )
    found = load(ground, hand, held)
    most = SCENE_BYTES_MAX
    assert found["unreadable"] == {name: {"bytes": LARGE, "most": most} for name in TEXTS}
    with pytest.raises(Fault) as invalid:
        scene_of(found)
    assert (invalid.value.name, invalid.value.field) == ("scene_invalid", "image_prompt")
    assert str(LARGE) in invalid.value.message
    assert str(SCENE_BYTES_MAX) in invalid.value.message
    with hand.conn.transaction():
        hand.conn.execute("select md5(image_prompt) from public.video_scenes")
        assert detoasted(hand.conn) > 0, "control: what is read is seen"
    # A worker of the version before refuses what stands in their place, by its length.
    assert {len(found[name]) for name in TEXTS} == {10_000}


TYPES = {
    "varchar": "repeat('x', {size})",
    "char(4000000)": "repeat('x', 10)",
    "bytea": "convert_to(repeat('x', {size}), 'UTF8')",
    "json": "to_json(repeat('x', {size}))",
    "jsonb": "to_jsonb(repeat('x', {size}))",
    "text[]": "array[repeat('x', {size})]",
    "public.long_text": "repeat('x', {size})",
}
"""Types of an adopted column that can be large, and a large value of each."""


def with_prompt_of(ground: Ground, kind: str, size: int) -> None:
    """Let the prompt of every scene be a column of this type, with a value of this size."""
    ground.sql(
        "alter table public.video_scenes drop column visual_prompt,"
        f" add column visual_prompt {kind}, alter visual_prompt set storage external"
    )
    value = TYPES[kind].format(size=size)
    ground.sql(f"update public.video_scenes set visual_prompt = {value}")


def test_a_large_value_of_any_type_is_not_read_and_a_small_one_is(ground: Ground) -> None:
    without_checks(ground)
    ground.sql("create domain public.long_text as text")
    hand = ground.worker()
    held = ground.held(hand)
    for kind in TYPES:
        with_prompt_of(ground, kind, 4_000_000)
        found = load(ground, hand, held)
        assert found["unreadable"]["visual_prompt"]["bytes"] >= 4_000_000, kind
        assert found["image_prompt"] is None
        if "char(" in kind:
            continue  # one that is always so large
        with_prompt_of(ground, kind, 9)
        expected = ground.one("select to_jsonb(visual_prompt) as value from public.video_scenes")
        (row,) = hand.about(held, "load_task")
        assert row["scene"]["visual_prompt"] == expected["value"], kind
        assert "unreadable" not in row["scene"]


@pytest.mark.parametrize("state", ["54000", "53200", "P0004", "22012"])
def test_a_column_whose_reading_raises_is_that_rows_error(ground: Ground, state: str) -> None:
    ground.sql("create type public.odd as enum ('a')")
    ground.sql(
        "create function public.odd_to_json(public.odd) returns json language plpgsql as"
        f" $$ begin raise exception 'no' using errcode = '{state}'; end $$"
    )
    ground.sql("create cast (public.odd as json) with function public.odd_to_json(public.odd)")
    hand = ground.worker()
    held = ground.held(hand)
    without_checks(ground)
    ground.sql(
        "alter table public.video_scenes drop column duration, add column duration public.odd"
    )
    ground.sql("update public.video_scenes set duration = 'a'")
    found = load(ground, hand, held)
    assert found["visual_prompt"] == "a bottle"
    with pytest.raises(Fault) as invalid:
        scene_of(found)
    assert (invalid.value.name, invalid.value.field) == ("scene_invalid", "duration")
    assert state in invalid.value.details


def test_a_scene_is_digested_as_before(ground: Ground) -> None:
    """Inputs rejected before the migration are still known by their digest."""
    user = ground.user()
    scene = ground.scene(user)
    ground.sql(
        "insert into public.video_scenarios (id, resolution)"
        " select scenario_id, '1280:720' from public.video_scenes"
    )
    plain = ground.one(
        "select vidgen.read_scene(s.id, s.user_id) = jsonb_build_object("
        "  'id', s.id, 'image_prompt', s.image_prompt, 'visual_prompt', s.visual_prompt,"
        "  'product_reference_image_url', s.product_reference_image_url, 'duration', s.duration,"
        "  'resolution', '1280:720') as same, vidgen.scene_digest(s.id, s.user_id) as digest"
        "  from public.video_scenes as s"
    )
    assert plain["same"]
    # An adopted table is read another way, and says the same.
    ground.sql("alter table public.video_scenes alter image_prompt type varchar")
    adopted = ground.one("select vidgen.scene_digest(%s, %s) as digest", scene, user)
    assert adopted["digest"] == plain["digest"]
    assert ground.one("select vidgen.read_scene(%s, %s) as it", scene, uuid4())["it"] is None


def test_a_user_stores_no_text_that_would_not_be_read(ground: Ground) -> None:
    user = ground.user()
    scene = ground.scene(user)
    for column in TEXTS:
        change = f"update public.video_scenes set {column} = repeat('x', %s) where id = %s"
        as_user(ground, user, change, SCENE_BYTES_MAX, scene)
        with pytest.raises(errors.CheckViolation, match="texts_are_at_most_40000_bytes"):
            as_user(ground, user, change, SCENE_BYTES_MAX + 1, scene)


async def test_a_column_too_large_ends_the_task_by_its_name(world: World) -> None:
    with world.ground() as ground:
        without_checks(ground)
    user = world.user()
    scene = world.scene(user, image_prompt="x" * 50_000)
    async with world.worker():
        row = await world.until(world.order(user, scene))
    assert (row["status"], row["error_code"]) == ("failed", "INVALID_REQUEST")
    for said in ("image_prompt", "50000 bytes", str(SCENE_BYTES_MAX)):
        assert said in row["error_message"]
    assert posts(world) == (0, 0)
    assert world.books_balance()


# Words of the provider's answer that a user can place.

UNFUNDED = "You do not have enough credits to run this task."
DAILY = "Your daily task limit has been reached."


def fault_of(status: int, body: object, prompt: str = "a bottle") -> str:
    request = Request("/v1/text_to_image", "gen4_image", {
        "promptText": prompt, "referenceImages": [{"uri": f"https://x.test/{prompt}"}],
    })  # fmt: skip
    return submit_refused("/v1/text_to_image", request, httpx.Response(status, json=body)).name


def test_the_providers_own_sentences_decide() -> None:
    assert fault_of(400, {"error": UNFUNDED}) == "provider_unfunded"
    assert fault_of(429, {"error": DAILY}) == "provider_quota"
    assert fault_of(400, {"message": "Insufficient credits"}) == "provider_unfunded"


@pytest.mark.parametrize(
    "words", [UNFUNDED, "enough credits", "Not enough credits", DAILY, "daily"]
)
def test_words_in_a_user_s_prompt_close_no_gate(words: str) -> None:
    echoes = (
        {"error": f"The prompt {words!r} is not allowed"},
        {"error": words},
        {"error": "Validation of body failed", "issues": [{"message": words, "path": ["x"]}]},
        {"error": UNFUNDED, "issues": [{"message": words, "path": ["promptText"]}]},
        {"error": f"Failed to fetch asset: 404 {words}"},
        {"message": f"promptText: {words}"},
    )
    for body in echoes:
        assert fault_of(400, body, prompt=words) == "request_refused", body
        assert fault_of(429, body, prompt=words) == "provider_busy", body
    # The text of an asset's server follows the provider's own words.
    for sent in (f"Failed to fetch asset: {words}", f"Timeout while fetching asset ({words})"):
        assert fault_of(400, {"error": sent}) == "request_refused"


def test_the_document_lists_what_a_stolen_worker_may_write_and_call(ground: Ground) -> None:
    """All of it, and nothing else, in docs/security.md."""
    text = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    said = text.partition("**A stolen `vidgen_worker`**")[2].partition("\n## ")[0]
    said = said.partition("It inserts into")[2]
    inserts, updates = said.partition("; updates columns of these")[::2]
    updates, deletes = updates.partition("; deletes\nfrom")[::2]
    deletes, calls = deletes.partition("It calls, with the owner's rights:")[::2]
    definer, invoker = calls.partition("; with its own:")[::2]

    def named(part: str) -> set[str]:
        return set(re.findall(r"`([a-z0-9_.]+)`", part))

    tables = ground.sql(
        "select n.nspname || '.' || c.relname as name,"
        "       has_any_column_privilege('vidgen_worker', c.oid, 'insert') as inserts,"
        "       has_any_column_privilege('vidgen_worker', c.oid, 'update') as updates,"
        "       has_table_privilege('vidgen_worker', c.oid, 'delete') as deletes"
        "  from pg_class as c join pg_namespace as n on n.oid = c.relnamespace"
        " where n.nspname in ('public', 'vidgen') and c.relkind = 'r'"
    )
    inserting = {row["name"] for row in tables if row["inserts"]}
    not_updating, updating = updates.partition("), of")[::2]
    assert named(inserts) == inserting
    assert (inserting - named(not_updating)) | named(updating) == {
        row["name"] for row in tables if row["updates"]
    }
    assert named(deletes) == {row["name"] for row in tables if row["deletes"]}
    functions = ground.sql(
        "select p.proname as name, p.prosecdef as definer from pg_proc as p"
        " where p.pronamespace in ('vidgen'::regnamespace, 'public'::regnamespace)"
        "   and has_function_privilege('vidgen_worker', p.oid, 'execute')"
    )
    assert named(definer) == {row["name"] for row in functions if row["definer"]}
    assert named(invoker) == {row["name"] for row in functions if not row["definer"]}


# Clocks and scenes in a thief's hand.


def test_a_stolen_role_does_not_set_the_time_of_a_task_s_end(
    ground: Ground, thief: Connection, loot: Loot
) -> None:
    """A task that ended long ago is pruned, with its file."""
    held = loot.charged
    thief.execute(
        f"update {TASKS} set status = 'failed', worker_id = null, error_code = 'X', error = '{{}}',"
        "  error_message = 'x', completed_at = now() - interval '2 years' where id = %s".encode(),
        [held.id],
    )
    ended = ground.one(
        f"select completed_at > now() - interval '1 minute' as ok from {TASKS} where id = %s",
        held.id,
    )
    assert ended["ok"]


@pytest.mark.parametrize("time", ["infinity", "294276-01-01", "-infinity"])
@pytest.mark.parametrize(
    ("table", "column"),
    [
        (TASKS, "run_after"), (TASKS, "started_at"), (TASKS, "video_url_expires_at"),
        ("vidgen.workers", "heartbeat_at"), ("vidgen.workers", "steady_since"),
    ],
)  # fmt: skip
def test_nobody_writes_a_time_that_programs_can_t_read(
    thief: Connection, table: str, column: str, time: str
) -> None:
    running = " where status = 'processing'" if table == TASKS else ""
    with pytest.raises(errors.CheckViolation, match="times_can_be_read"):
        thief.execute(f"update {table} set {column} = %s{running}".encode(), [time])


@pytest.mark.parametrize(
    "times", ["{30,Infinity}", "{30,NaN}", "{30,NULL}", "{30,-1}", "{30,90000}", "{{30,31}}"]
)
def test_a_stolen_role_writes_no_time_that_would_stop_the_fleet_s_polls(
    thief: Connection, times: str
) -> None:
    """Each worker counts with the history at each poll."""
    teach = (
        "insert into vidgen.generation_times (provider, model, seconds, ended_after, ended_by)"
        " values ('runway', 'gen4_turbo', 5, %s, %s)"
    )
    for pair in ((times, "{30,31}"), ("{30,31}", times)):
        with pytest.raises(errors.CheckViolation, match="times_are_seconds_of_a_day"):
            thief.execute(teach, pair)
    thief.execute(teach, ["{30,0}", "{86400,0.5}"])


def test_a_stolen_role_writes_to_no_scene_without_a_task(ground: Ground, thief: Connection) -> None:
    user = ground.user()
    scene = ground.scene(user)
    thief.execute("select vidgen.write_scene(%s, %s, 'x', 'https://a/b.png', null)", [scene, user])
    assert ground.one("select status, image_url from public.video_scenes where id = %s", scene) == {
        "status": "pending", "image_url": None,
    }  # fmt: skip


def test_only_one_function_notifies_and_it_looks_at_the_queue_first(ground: Ground) -> None:
    """Once the queue of notifications is full, each COMMIT with a NOTIFY fails, clients' too."""
    rows = ground.sql(
        "select p.proname as name, p.prosrc as body from pg_proc as p"
        " where p.pronamespace in ('vidgen'::regnamespace, 'public'::regnamespace)"
        "   and position('pg_notify(' in p.prosrc) > 0"
    )
    assert [row["name"] for row in rows] == ["wake"]
    assert "pg_notification_queue_usage() < 0.5" in rows[0]["body"]
