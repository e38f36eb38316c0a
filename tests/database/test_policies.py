"""Who may do what: every role, every table, every verb, every column, every function.

The decisions stand here; what is there to decide on comes from the catalogue, so that a new table,
column or function fails until somebody has decided. Rights are tried, not read: EXPLAIN asks for
the same ones as the statement. What RLS then lets through is probed with two users.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import errors, sql

from tests.conftest import Database
from tests.support.clients import acting, as_user
from tests.support.hands import Ground, ground_of
from tests.support.statements import needs_of_the_worker
from vidgen_worker.database.migrate import migrate, migrations

TASKS = "public.video_generation_tasks"
ROLES = ("anon", "authenticated", "service_role", "vidgen_worker", "nobody")
"""`nobody` stands for PUBLIC: a role that has what everybody has."""

ALL = frozenset({"*"})
NONE: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Rights:
    """The rights of a role on a table: the columns for each verb, and whether it may delete."""

    select: frozenset[str] = NONE
    insert: frozenset[str] = NONE
    update: frozenset[str] = NONE
    delete: bool = False


READ = Rights(select=ALL)
WRITE = Rights(ALL, ALL, ALL, delete=True)
SCENE_INPUTS = frozenset({
    "scenario_id", "image_prompt", "visual_prompt", "product_reference_image_url", "duration",
})  # fmt: skip

OF_ITS_STATEMENTS = Rights(select=ALL, insert=frozenset({"what its statements write"}))
"""Private rows of the workers: written by their role as far as a statement does (statements.py)."""
WORKER_ONLY: Mapping[str, Rights] = {"vidgen_worker": OF_ITS_STATEMENTS}
DECIDED: Mapping[str, Mapping[str, Rights]] = {
    TASKS: {
        "authenticated": Rights(
            select=ALL,
            insert=frozenset({
                "id", "scene_id", "cut", "user_id", "priority", "run_after", "reference",
            }),
        ),
        "service_role": WRITE,
        # The columns that a worker writes. No role changes owner, scene and place.
        "vidgen_worker": Rights(select=ALL, update=frozenset({
            "attempt", "completed_at", "current_step", "error", "error_code", "error_message",
            "expected_at", "failures", "image_path", "image_ratio", "image_url", "message",
            "progress",
            "resolution", "run_after", "stage_progress", "started_at", "status", "video_path",
            "video_ratio", "video_url", "video_url_expires_at", "worker_id",
        })),
    },
    "public.video_generation_gates": {
        "authenticated": READ, "service_role": READ, "vidgen_worker": READ,
    },
    "public.video_presets": {
        "authenticated": READ, "service_role": WRITE, "vidgen_worker": READ,
    },
    "public.video_renditions": {
        "authenticated": READ, "service_role": READ, "vidgen_worker": OF_ITS_STATEMENTS,
    },
    "public.video_scenes": {
        "authenticated": Rights(
            select=ALL, insert=SCENE_INPUTS | {"id", "user_id"},
            update=SCENE_INPUTS | {"updated_at"},
        ),
        "service_role": WRITE,
    },
    "public.video_scenarios": {"authenticated": READ, "service_role": WRITE},
    "public.credit_prices": {
        "authenticated": READ, "service_role": WRITE, "vidgen_worker": READ,
    },
    "public.user_credits": {
        "authenticated": READ, "service_role": READ, "vidgen_worker": READ,
    },
    "public.credit_entries": {
        "authenticated": READ, "service_role": READ, "vidgen_worker": READ,
    },
    # Written by functions only, which check whose it is.
    "public.video_webhooks": {
        "authenticated": READ, "service_role": READ, "vidgen_worker": READ,
    },
    # A worker of the version before asks for it; a trigger refuses the change (settings_change).
    "vidgen.settings": {
        "vidgen_worker": Rights(select=ALL, update=frozenset({"images_bucket", "videos_bucket"})),
    },
    "vidgen.stages": {"vidgen_worker": READ},
    "vidgen.workers": WORKER_ONLY,
    "vidgen.turns": WORKER_ONLY,
    "vidgen.arrivals": WORKER_ONLY,
    "vidgen.endings": WORKER_ONLY,
    "vidgen.films": {"vidgen_worker": READ},
    # Taken and booked by functions only: a worker reads no secret but what it has to sign with.
    "vidgen.deliveries": {"vidgen_worker": READ},
    "vidgen.webhook_secrets": {},
    "vidgen.webhook_turns": {},
    "vidgen.parts": {"vidgen_worker": READ},
    "vidgen.wanted_films": {"vidgen_worker": READ},
    "vidgen.named_tasks": {},
    "vidgen.resumes": WORKER_ONLY,
    "vidgen.passed_over": WORKER_ONLY,
    "vidgen.passed_now": {"vidgen_worker": READ},
    "vidgen.due_resumes": {"vidgen_worker": READ},
    "vidgen.gates": WORKER_ONLY,
    "vidgen.keys": {"vidgen_worker": READ},
    "vidgen.refusals": WORKER_ONLY,
    "vidgen.set_aside": {"vidgen_worker": READ},
    "vidgen.scene_writes": {"vidgen_worker": READ},
    "vidgen.troubles": WORKER_ONLY,
    # Written by functions only: a worker can't lift anybody's limit.
    "vidgen.user_locks": {"vidgen_worker": READ},
    "vidgen.user_limits": {"vidgen_worker": READ},
    "vidgen.user_troubles": {"vidgen_worker": READ},
    "vidgen.rejections": {"vidgen_worker": READ},
    # By a function only, which keeps the newest.
    "vidgen.events": {"vidgen_worker": READ},
    "vidgen.limits": WORKER_ONLY,
    "vidgen.slots": WORKER_ONLY,
    "vidgen.checkpoints": WORKER_ONLY,
    "vidgen.budgets": WORKER_ONLY,
    "vidgen.submissions": WORKER_ONLY,
    "vidgen.generation_times": WORKER_ONLY,
    "vidgen.account_readings": WORKER_ONLY,
    "vidgen.charges": WORKER_ONLY,
    "vidgen.holds": {"vidgen_worker": READ},
    "vidgen.pruned": {"vidgen_worker": READ},
    "vidgen.uploads": WORKER_ONLY,
    "vidgen.forgotten_outlays": {"vidgen_worker": READ},
    "vidgen.duties": WORKER_ONLY,
    "vidgen.audited": {"vidgen_worker": READ},
    "vidgen.audited_totals": {"vidgen_worker": READ},
    "vidgen.free_slots": {"vidgen_worker": READ},
    "vidgen.suspects": {"vidgen_worker": READ},
    "vidgen.credit_discrepancies": {"vidgen_worker": READ},
    "vidgen.queue_health": {"vidgen_worker": READ},
    "vidgen.stats_hourly": {"vidgen_worker": READ},
    "vidgen.consumption_by_user": {"vidgen_worker": READ},
    "vidgen.consumption_by_model": {"vidgen_worker": READ},
}  # fmt: skip

CLIENTS = frozenset({"authenticated", "service_role", "vidgen_worker"})
WORKER = frozenset({"vidgen_worker"})
WEBHOOKS = frozenset({"authenticated", "service_role"})
EVERYBODY = frozenset(ROLES)
FUNCTIONS: Mapping[str, frozenset[str]] = {
    "public.cancel_video_generation_task(uuid)": CLIENTS,
    "public.retry_video_generation_task(uuid)": CLIENTS,
    "public.grant_video_credits(uuid,integer,text)": frozenset({"service_role"}),
    # Tables where DELETE would allow LOCK TABLE.
    "public.delete_video_scene(uuid)": frozenset({"authenticated"}),
    "vidgen.delete_scene(uuid)": frozenset({"authenticated"}),
    # Functions of the calls above. Without USAGE on the schema no client reaches these by name.
    "vidgen.cancel_task(uuid)": CLIENTS,
    "vidgen.retry_task(uuid)": CLIENTS,
    "vidgen.grant_credits(uuid,integer,text)": frozenset({"service_role"}),
    # Functions of the policies.
    "vidgen.owns_scene(uuid)": frozenset({"authenticated"}),
    "vidgen.signed_in_user()": frozenset(ROLES),
    "vidgen.is_paid(text,text)": frozenset({"authenticated"}),
    # By a policy that binds every role.
    "vidgen.our_buckets()": frozenset(ROLES),
    "vidgen.is_unpaid(text,text)": frozenset(ROLES),
    # Functions of the worker's statements.
    "vidgen.read_scene(uuid,uuid)": WORKER,
    "vidgen.set_limit(text,text,text,integer,boolean)": WORKER,
    "vidgen.count_slots(text,text,text)": WORKER,
    "vidgen.free_slot(bigint,uuid,uuid)": WORKER,
    "vidgen.write_scene(uuid,uuid,text,text,text)": WORKER,
    "vidgen.write_owed_scene(uuid)": WORKER,
    "vidgen.scene_digest(uuid,uuid)": WORKER,
    "vidgen.hold_credits(uuid,uuid,jsonb)": WORKER,
    "vidgen.settle_credits(uuid,text)": WORKER,
    "vidgen.release_credits(uuid)": WORKER,
    "vidgen.take_uploads(integer)": WORKER,
    "vidgen.uploads_removed(uuid[])": WORKER,
    "vidgen.forget_tasks(interval,timestamp with time zone,integer)": WORKER,
    "vidgen.forget_holds(interval,integer)": WORKER,
    "vidgen.audit_entries(integer)": WORKER,
    "vidgen.audit_users(uuid,integer)": WORKER,
    "vidgen.note_audit(bigint)": WORKER,
    "vidgen.complete_task(uuid,text,interval,boolean,text,double precision,text,text)": WORKER,
    "vidgen.begin_attempts(uuid[],uuid,boolean)": WORKER,
    "vidgen.try_row(uuid,uuid)": WORKER,
    "vidgen.wake(text,text)": WORKER,
    "vidgen.row_stays(uuid)": WORKER,
    "vidgen.check_taken(uuid,text,uuid)": WORKER,
    "vidgen.hand_back_task(uuid,uuid,integer)": WORKER,
    "vidgen.take_over_task(uuid,uuid,uuid,integer,boolean,text,boolean)": WORKER,
    "vidgen.set_aside_task(uuid,integer,uuid,text,text,jsonb,text,boolean)": WORKER,
    "vidgen.note_refusal(uuid,text,text,jsonb)": WORKER,
    "vidgen.note_event(uuid,text,integer,text,text,timestamp with time zone)": WORKER,
    "vidgen.end_refused(uuid,text,boolean)": WORKER,
    "vidgen.retry_refused(uuid,text,boolean)": WORKER,
    "vidgen.unbilled(uuid,timestamp with time zone)": WORKER,
    "vidgen.refuse_submission(uuid,uuid,uuid,text,text,text,interval)": WORKER,
    "vidgen.note_trouble(text,text,text,text,text,text,text,uuid,uuid,integer,interval)": WORKER,
    "vidgen.sweep_limits()": WORKER,
    "vidgen.lock_limits(uuid)": WORKER,
    "vidgen.pass_over(uuid)": WORKER,
    # For no role: triggers, and functions that those above call as their owner.
    "vidgen.lock_user(uuid)": NONE,
    "vidgen.count_user(uuid,bigint,bigint)": NONE,
    "vidgen.pause_user(uuid,timestamp with time zone,text)": NONE,
    "vidgen.unpause_user(uuid)": NONE,
    "vidgen.lift_limits(uuid)": NONE,
    "vidgen.stage_is_stored()": NONE,
    "vidgen.submission_is_rejected()": NONE,
    "vidgen.limit_scenes()": NONE,
    "vidgen.begin_to_count()": NONE,
    "vidgen.count_row()": NONE,
    "vidgen.submission_ends()": NONE,
    "vidgen.refuse_forgotten_retries()": NONE,
    "vidgen.restore_credits(uuid)": NONE,
    "vidgen.try_to_restore_credits(uuid)": NONE,
    "vidgen.task_leaves()": NONE,
    "vidgen.upload_is_due()": NONE,
    "vidgen.artifact_is_ours()": NONE,
    "vidgen.generation_is_final()": NONE,
    "vidgen.checkpoint_follows_its_own()": NONE,
    "vidgen.request_is_its_submissions()": NONE,
    "vidgen.task_ends()": NONE,
    "vidgen.share_buckets(text,text)": WORKER,
    "vidgen.is_operator()": WORKER,
    "vidgen.check_running(uuid,uuid)": WORKER,
    "vidgen.acts_for_all()": NONE,
    "vidgen.settings_change()": NONE,
    # Every role that may write a task runs its CHECKs, an application's own role too.
    "vidgen.times_can_be_read(" + ",".join(7 * ["timestamp with time zone"]) + ")": EVERYBODY,
    "vidgen.texts_are_at_most_40000_bytes(" + 11 * "text," + "jsonb)": EVERYBODY,
    "vidgen.charge_is_due()": NONE,
    "vidgen.submission_is_due()": NONE,
    "vidgen.check_hold(uuid,uuid,jsonb)": NONE,
    "vidgen.take_charge(uuid,text,uuid)": NONE,
    "vidgen.check_release(uuid)": NONE,
    "vidgen.read_column(regclass,name,name,regtype,text)": NONE,
    "vidgen.may_act_on(uuid)": NONE,
    "vidgen.unbilled_cost(uuid)": NONE,
    "vidgen.check_limits(uuid)": NONE,
    "vidgen.cancel_locked(uuid)": NONE,
    "vidgen.retry_locked(uuid)": NONE,
    "vidgen.tell_films(uuid)": NONE,
    "vidgen.wake_films(integer)": WORKER,
    "vidgen.is_lane_due(smallint)": WORKER,
    "vidgen.want_film(uuid)": NONE,
    "vidgen.order_wanted_films(integer)": WORKER,
    "vidgen.rendition_is_ours()": NONE,
    "vidgen.render_prices(uuid)": NONE,
    "vidgen.settle_render(uuid,text)": WORKER,
    "vidgen.seconds_of_parts(uuid)": WORKER,
    "vidgen.ordered_seconds(uuid,uuid,uuid)": NONE,
    "vidgen.wanted_outputs(jsonb)": NONE,
    "vidgen.order_outputs(uuid,uuid,jsonb,boolean)": NONE,
    "vidgen.order_parts(uuid,integer,uuid,boolean)": WORKER,
    "vidgen.order_wanted(uuid,uuid,jsonb,smallint,boolean)": NONE,
    "vidgen.wanted_parts(uuid,uuid,jsonb)": NONE,
    "vidgen.scenes_of(uuid,text)": NONE,
    "vidgen.refuse_film(text,text,text)": NONE,
    "vidgen.retry_parts(uuid[],boolean)": NONE,
    "vidgen.hold_parts(uuid,uuid)": NONE,
    "vidgen.check_scenes(uuid[])": NONE,
    "vidgen.due_prices(uuid)": WORKER,
    "vidgen.fail_task(uuid,text,text,integer,jsonb,boolean)": WORKER,
    "vidgen.is_needed(uuid,uuid)": NONE,
    "vidgen.kinds_are_few()": NONE,
    "vidgen.shown_clip(uuid,uuid)": NONE,
    "vidgen.shown_status(uuid,uuid)": NONE,
    "vidgen.take_limits_lock(uuid)": NONE,
    "vidgen.take_user_lock(uuid)": NONE,
    "vidgen.wake_lane(integer)": WORKER,
    "public.create_video_webhook(text,text[])": WEBHOOKS,
    "public.rotate_video_webhook_secret(uuid)": WEBHOOKS,
    "public.test_video_webhook(uuid)": WEBHOOKS,
    "public.resend_video_deliveries(uuid,timestamp with time zone)": WEBHOOKS,
    "public.delete_video_webhook(uuid)": WEBHOOKS,
    "vidgen.take_deliveries(uuid,integer,interval)": WORKER,
    "vidgen.book_delivery(uuid,uuid,smallint,uuid,boolean,smallint,text,interval,boolean)": WORKER,
    "vidgen.return_deliveries(uuid,uuid[])": WORKER,
    "vidgen.forget_deliveries(integer)": WORKER,
    "vidgen.are_webhook_events(text[])": NONE,
    "vidgen.delivery_id(uuid,text)": NONE,
    "vidgen.delivery_body(text,jsonb)": NONE,
    "vidgen.deliver(text,uuid,uuid,text,jsonb)": NONE,
    "vidgen.tell_webhooks()": NONE,
    "vidgen.tell_of_gates()": NONE,
    "vidgen.hold_deliveries(uuid)": NONE,
    "vidgen.begin_test(uuid)": NONE,
    "vidgen.new_webhook_secret(uuid)": NONE,
    "vidgen.lock_webhook(uuid)": NONE,
    "vidgen.limit_inserts()": NONE,
    "vidgen.refuse_pruned_ids()": NONE,
    "vidgen.ledger_is_append_only()": NONE,
    "vidgen.show_gate()": NONE,
    "vidgen.gate_opens()": NONE,
    "vidgen.show_gates()": NONE,
    "vidgen.followers(text,text,text)": WORKER,
    "vidgen.is_in_folder(text,uuid)": WORKER,
    "vidgen.owe_scene(uuid,uuid,text,text,text)": NONE,
    "vidgen.stands_aside(uuid)": WORKER,
    "vidgen.room_before(text,text,text)": WORKER,
    "vidgen.is_left_alone(text,text,text,text,interval)": WORKER,
    "vidgen.worker_comes_or_goes()": NONE,
    "vidgen.task_is_born()": NONE,
    "vidgen.path_stays()": NONE,
    "vidgen.is_charged(text)": WORKER,
    "vidgen.task_changes()": NONE,
    "vidgen.task_goes()": NONE,
    "vidgen.task_moves()": NONE,
    "vidgen.tasks_arrive()": NONE,
}

POLICIES = {
    (TASKS, "owners see their tasks", "SELECT", "authenticated"),
    (TASKS, "owners order videos of their scenes", "INSERT", "authenticated"),
    (TASKS, "the worker sees all tasks", "SELECT", "vidgen_worker"),
    (TASKS, "the worker writes all tasks", "UPDATE", "vidgen_worker"),
    ("public.video_generation_gates", "signed-in users see closed gates", "SELECT",
     "authenticated"),
    ("public.video_generation_gates", "the worker sees closed gates", "SELECT", "vidgen_worker"),
    ("public.video_presets", "signed-in users see presets", "SELECT", "authenticated"),
    ("public.video_presets", "the worker sees all presets", "SELECT", "vidgen_worker"),
    ("public.video_renditions", "owners see their renditions", "SELECT", "authenticated"),
    ("public.video_renditions", "the worker sees all renditions", "SELECT", "vidgen_worker"),
    ("public.video_renditions", "the worker records renditions", "INSERT", "vidgen_worker"),
    ("public.video_renditions", "the worker records renditions anew", "UPDATE", "vidgen_worker"),
    ("public.video_scenarios", "signed-in users read scenarios", "SELECT", "authenticated"),
    ("public.video_scenes", "owners read their scenes", "SELECT", "authenticated"),
    ("public.video_scenes", "owners add scenes", "INSERT", "authenticated"),
    ("public.video_scenes", "owners change their scenes", "UPDATE", "authenticated"),
    ("public.credit_prices", "signed-in users see prices", "SELECT", "authenticated"),
    ("public.credit_prices", "the worker sees prices", "SELECT", "vidgen_worker"),
    ("public.user_credits", "owners see their balance", "SELECT", "authenticated"),
    ("public.user_credits", "the worker sees balances", "SELECT", "vidgen_worker"),
    ("public.credit_entries", "owners see their entries", "SELECT", "authenticated"),
    ("public.credit_entries", "the worker sees entries", "SELECT", "vidgen_worker"),
    ("public.video_webhooks", "owners see their webhooks", "SELECT", "authenticated"),
    ("public.video_webhooks", "the worker sees all webhooks", "SELECT", "vidgen_worker"),
    ("storage.objects", "owners read what they have paid for", "SELECT", "authenticated"),
    ("storage.objects", "nobody reads what is not paid for", "SELECT", "public"),
    ("storage.objects", "owners keep the assets of their films", "ALL", "authenticated"),
    ("storage.objects", "nobody else touches the assets of a film", "ALL", "public"),
}  # fmt: skip

TO_CHECK_THE_CALLER: Mapping[str, str] = {
    "vidgen.cancel_task(uuid)": "vidgen.may_act_on(task.user_id)",
    "vidgen.retry_task(uuid)": "vidgen.may_act_on(task.user_id)",
    "vidgen.owns_scene(uuid)": "vidgen.signed_in_user()",
    "vidgen.delete_scene(uuid)": "vidgen.signed_in_user()",
    "public.create_video_webhook(text,text[])": "vidgen.signed_in_user() end",
    "public.rotate_video_webhook_secret(uuid)": "vidgen.lock_webhook(webhook)",
    "public.test_video_webhook(uuid)": "vidgen.lock_webhook(webhook)",
    "public.resend_video_deliveries(uuid,timestamp with time zone)": "vidgen.lock_webhook(webhook)",
    "public.delete_video_webhook(uuid)": "vidgen.lock_webhook(webhook)",
    # It returns only the caller's identity.
    "vidgen.signed_in_user()": "pg_has_role(session_user, 'service_role', 'member')",
    # A bucket's name is the same for everybody.
    "vidgen.our_buckets()": "select array[s.images_bucket, s.videos_bucket]",
    "vidgen.is_paid(text,text)": "t.user_id = (select vidgen.signed_in_user())",
    # About a place that the caller must name, which is secret until it is charged.
    "vidgen.is_unpaid(text,text)": "not vidgen.is_charged(is_unpaid.of_path)",
}
"""The definer functions that signed-in users may run, and what makes each of them safe."""

# Old projects and some self-hosted ones still have this; anon too, and functions.
EVERYTHING_BY_DEFAULT = """
alter default privileges for role postgres in schema public
  grant all on tables to anon, authenticated, service_role;
alter default privileges for role postgres in schema public
  grant all on sequences to anon, authenticated, service_role;
alter default privileges for role postgres in schema public
  grant all on functions to anon, authenticated, service_role;
"""
EVERYTHING_EVERYWHERE_BY_DEFAULT = """
alter default privileges for role postgres
  grant all on schemas to public, anon, authenticated, service_role;
alter default privileges for role postgres
  grant all on tables to public, anon, authenticated, service_role;
alter default privileges for role postgres
  grant all on sequences to public, anon, authenticated, service_role;
alter default privileges for role postgres
  grant all on functions to public, anon, authenticated, service_role;
"""
DEFAULTS = {
    "a project of today": "",
    "a project that grants all by default": EVERYTHING_BY_DEFAULT,
    "a project that grants all in every schema, to PUBLIC too": EVERYTHING_EVERYWHERE_BY_DEFAULT,
}
TO_A_STRANGER = {
    "in every schema": "alter default privileges for role postgres grant all on {kind} to {role}",
    "in schema public":
        "alter default privileges for role postgres in schema public grant all on {kind} to {role}",
}  # fmt: skip


@dataclass
class Trial:
    """A migrated database, and a role of every kind to try its rights with."""

    ground: Ground
    nobody: str
    columns: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read what there is to decide on."""
        rows = self.ground.sql(
            "select n.nspname || '.' || c.relname as name, a.attname as column"
            "  from pg_class as c join pg_namespace as n on n.oid = c.relnamespace"
            "  join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0"
            "   and not a.attisdropped"
            " where n.nspname in ('public', 'vidgen') and c.relkind in ('r', 'v', 'm', 'p', 'f')"
            " order by c.relname, a.attnum"
        )
        for row in rows:
            self.columns.setdefault(row["name"], []).append(row["column"])

    def as_role(self, role: str) -> str:
        """The role's name on this server."""
        return self.nobody if role == "nobody" else role

    def granted(self, role: str, table: str, column: str | None, verb: str) -> bool:
        """The catalogue's data of one column."""
        row = self.ground.one(
            "select has_column_privilege(%s, %s, %s, %s) as may",
            self.as_role(role), table, column, verb,
        )  # fmt: skip
        return bool(row["may"])

    def rights(self, role: str, table: str) -> Rights:
        """The actual rights of the role, column by column."""
        name = sql.SQL(".").join(map(sql.Identifier, table.split(".")))
        columns = self.columns[table]
        # The superuser may become anybody, and has no more than that role from then on.
        with psycopg.connect(self.ground.database.admin_url, autocommit=True) as conn:
            conn.execute(sql.SQL("set role {}").format(sql.Identifier(self.as_role(role))))

            def may(statement: str, column: str | None = None) -> bool:
                parts = [name] if column is None else [name, sql.Identifier(column)]
                asked = sql.SQL("explain " + statement).format(*parts)
                try:
                    conn.execute(asked)
                except errors.InsufficientPrivilege:
                    return False
                except errors.ObjectNotInPrerequisiteState:
                    return False  # a view that no role can write to
                except errors.GeneratedAlways:
                    # Said before rights are asked for: here the catalogue has to do.
                    return self.granted(role, table, column, statement.split(maxsplit=1)[0])
                return True

            def each(statement: str) -> frozenset[str]:
                allowed = frozenset(c for c in columns if may(statement, c))
                return ALL if allowed == frozenset(columns) else allowed

            return Rights(
                each("select {1} from {0}"),
                each("insert into {0} ({1}) values (null)"),
                each("update {0} set {1} = null"),
                may("delete from {0}"),
            )


@contextmanager
def trial_of(database: Database) -> Iterator[Trial]:
    """A trial, with a role that has nothing of its own."""
    nobody = f"nobody_{uuid4().hex[:12]}"
    with ground_of(database) as ground:
        ground.sql(f"create role {nobody}")
        try:
            yield Trial(ground, nobody)
        finally:
            ground.sql(f"drop owned by {nobody}")
            ground.sql(f"drop role {nobody}")


@pytest.fixture
def trial(database: Database) -> Iterator[Trial]:
    """The database as the migrations leave it on a project of today."""
    with trial_of(database) as trial:
        yield trial


@pytest.fixture(params=DEFAULTS)
def either_trial(request: pytest.FixtureRequest, bare_database: Database) -> Iterator[Trial]:
    """The same on a project of today and on those that grant by default."""
    if DEFAULTS[request.param]:
        with psycopg.connect(bare_database.url, autocommit=True) as conn:
            conn.execute(DEFAULTS[request.param].encode())
    migrate(bare_database.url)
    with trial_of(bare_database) as trial:
        yield trial


def expected(trial: Trial, table: str, role: str) -> Rights:
    rights = DECIDED[table].get(role, Rights())
    if rights is not OF_ITS_STATEMENTS:
        return rights
    needs = needs_of_the_worker(trial.ground)
    every = set(trial.columns[table])

    def of(columns: set[str]) -> frozenset[str]:
        return ALL if columns == every else frozenset(columns)

    return Rights(
        ALL, of(needs.insert[table]), of(needs.update[table]), delete=table in needs.delete
    )


@pytest.mark.parametrize("where", TO_A_STRANGER)
def test_a_role_with_all_default_privileges_gets_none_on_our_objects(
    bare_database: Database, where: str
) -> None:
    """An application's own role, of which no file of ours has heard. Asked after each file."""
    stranger = f"stranger_{uuid4().hex[:12]}"
    with psycopg.connect(bare_database.url, autocommit=True) as conn:
        conn.execute(f"create role {stranger} role postgres".encode())
        try:
            for kind in ("tables", "sequences", "functions"):
                conn.execute(TO_A_STRANGER[where].format(kind=kind, role=stranger).encode())
            if where == "in every schema":
                conn.execute(TO_A_STRANGER[where].format(kind="schemas", role=stranger).encode())
            for migration in migrations():
                conn.execute(migration.sql)
                rows = conn.execute(
                    "select c.oid::regclass::text from pg_class as c, aclexplode(c.relacl) as a"
                    " where c.relnamespace in ('public'::regnamespace, 'vidgen'::regnamespace)"
                    "   and a.grantee = %(role)s::regrole"
                    " union all"
                    " select p.oid::regprocedure::text from pg_proc as p, aclexplode(p.proacl) as a"
                    " where p.pronamespace in ('public'::regnamespace, 'vidgen'::regnamespace)"
                    "   and a.grantee = %(role)s::regrole"
                    " union all"
                    " select n.nspname from pg_namespace as n, aclexplode(n.nspacl) as a"
                    " where n.nspname = 'vidgen' and a.grantee = %(role)s::regrole",
                    {"role": stranger},
                ).fetchall()
                assert rows == [], migration.name
        finally:
            conn.execute(f"drop owned by {stranger}; drop role {stranger}".encode())


NEVER_ITS = {"user_id", "task_id", "scene_id", "id", "sent_at", "created_at", "charged_at"}
"""Owners and times: no statement of a worker changes them."""
BY_ITS_WORK = {("vidgen.slots", "task_id")}
"""A place at the provider goes from one task to the next."""


def test_no_statement_of_the_worker_changes_an_owner(trial: Trial) -> None:
    needs = needs_of_the_worker(trial.ground)
    changed = {
        (table, column) for table, columns in needs.update.items() for column in columns & NEVER_ITS
    }
    assert changed == BY_ITS_WORK
    assert needs.delete.isdisjoint(
        {"vidgen.submissions", "vidgen.charges", "vidgen.budgets", TASKS}
    )
    assert needs.update["vidgen.charges"] == set()


# Tables, views, columns.


def test_every_table_and_view_is_decided_on(trial: Trial) -> None:
    assert set(trial.columns) == set(DECIDED)


@pytest.mark.parametrize("role", ROLES)
def test_each_role_may_do_what_was_decided_and_no_more(either_trial: Trial, role: str) -> None:
    really = {table: either_trial.rights(role, table) for table in either_trial.columns}
    assert really == {table: expected(either_trial, table, role) for table in either_trial.columns}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("right", ["truncate", "references", "trigger"])
def test_only_the_owner_has_rights_beyond_the_verbs(
    either_trial: Trial, role: str, right: str
) -> None:
    rows = either_trial.ground.sql(
        "select c.oid::regclass::text as name from pg_class as c"
        "  join pg_namespace as n on n.oid = c.relnamespace"
        " where n.nspname in ('public', 'vidgen') and c.relkind in ('r', 'v')"
        "   and has_table_privilege(%s, c.oid, %s)",
        either_trial.as_role(role), right,
    )  # fmt: skip
    assert rows == []


@pytest.mark.parametrize("role", ROLES)
def test_no_role_has_a_right_on_a_sequence(either_trial: Trial, role: str) -> None:
    rows = either_trial.ground.sql(
        "select s.schemaname, s.sequencename from pg_sequences as s"
        " where s.schemaname in ('public', 'vidgen') and has_sequence_privilege("
        "   %s, format('%%I.%%I', s.schemaname, s.sequencename), 'usage, select, update')",
        either_trial.as_role(role),
    )
    assert rows == []
    assert not either_trial.ground.none("select from pg_class where relkind = 'S'")


@pytest.mark.parametrize("role", ROLES)
def test_only_the_worker_uses_the_private_schema_and_no_role_creates_in_it(
    either_trial: Trial, role: str
) -> None:
    row = either_trial.ground.one(
        "select has_schema_privilege(%(role)s, 'vidgen', 'usage') as uses,"
        " has_schema_privilege(%(role)s, 'vidgen', 'create')"
        " or has_schema_privilege(%(role)s, 'public', 'create') as creates".replace(
            "%(role)s", f"'{either_trial.as_role(role)}'"
        )
    )
    assert (row["uses"], row["creates"]) == (role == "vidgen_worker", False)


def test_the_api_can_not_become_the_worker(database: Database) -> None:
    with ground_of(database) as ground:
        for role in ("authenticator", "anon", "authenticated", "service_role"):
            row = ground.one("select pg_has_role(%s, 'vidgen_worker', 'member') as may", role)
            assert not row["may"], role


# Functions.


def functions_of(ground: Ground) -> dict[str, dict[str, Any]]:
    rows = ground.sql(
        "select n.nspname || '.' || p.proname || '(' || replace(pg_catalog.oidvectortypes("
        "         p.proargtypes), ', ', ',') || ')' as name,"
        "       p.oid, p.prosecdef as definer, coalesce(p.prosrc, '') as body,"
        "       p.proconfig as config"
        "  from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace"
        " where n.nspname in ('public', 'vidgen')"
    )
    return {row["name"]: row for row in rows}


def test_every_function_is_decided_on(trial: Trial) -> None:
    assert set(functions_of(trial.ground)) == set(FUNCTIONS)


@pytest.mark.parametrize("role", ROLES)
def test_no_function_is_callable_by_a_role_that_does_not_need_it(
    either_trial: Trial, role: str
) -> None:
    ground = either_trial.ground
    open_to_role = {
        name
        for name, row in functions_of(ground).items()
        if ground.one(
            "select has_function_privilege(%s, %s::oid, 'execute') as may",
            either_trial.as_role(role), row["oid"],
        )["may"]
    }  # fmt: skip
    assert open_to_role == {name for name, roles in FUNCTIONS.items() if role in roles}


def test_every_function_searches_names_where_no_client_can_create_any(trial: Trial) -> None:
    """Not even types in the session's temporary schema, which an empty path searches first."""
    for name, row in functions_of(trial.ground).items():
        assert "search_path=pg_catalog, pg_temp" in (row["config"] or []), name


def test_every_definer_function_of_clients_checks_its_caller(trial: Trial) -> None:
    functions = functions_of(trial.ground)
    open_definers = {
        name
        for name, row in functions.items()
        if row["definer"] and FUNCTIONS[name] & {"anon", "authenticated", "nobody"}
    }
    assert open_definers == set(TO_CHECK_THE_CALLER)
    for name, check in TO_CHECK_THE_CALLER.items():
        assert check in functions[name]["body"], name


def test_no_client_reaches_a_private_function_by_name(trial: Trial) -> None:
    with (
        pytest.raises(errors.InsufficientPrivilege, match="schema vidgen"),
        acting(trial.ground, "authenticated", uuid4()) as conn,
    ):
        conn.execute("select vidgen.cancel_task(gen_random_uuid())")


# Policies.


def test_every_policy_is_decided_on(trial: Trial) -> None:
    rows = trial.ground.sql(
        "select schemaname || '.' || tablename as name, policyname, cmd, roles::text[] as roles,"
        " concat(qual, with_check) as condition from pg_policies"
    )
    found = {(r["name"], r["policyname"], r["cmd"], role) for r in rows for role in r["roles"]}
    assert found == POLICIES
    # Once per statement and not once per row.
    assert [r["policyname"] for r in rows if bare_user(r["condition"])] == []


def bare_user(condition: str) -> bool:
    for function in ("auth.uid()", "vidgen.signed_in_user()"):
        for name in ("uid", "signed_in_user"):
            condition = condition.replace(f"( SELECT {function} AS {name})", "")
    return "auth.uid()" in condition or "signed_in_user()" in condition


def test_every_public_table_has_row_level_security(trial: Trial) -> None:
    rows = trial.ground.sql(
        "select relname from pg_class where relnamespace = 'public'::regnamespace"
        " and relkind = 'r' and not relrowsecurity"
    )
    assert rows == []


def test_every_view_asks_as_its_caller(trial: Trial) -> None:
    rows = trial.ground.sql(
        "select relname, reloptions from pg_class"
        " where relnamespace in ('public'::regnamespace, 'vidgen'::regnamespace) and relkind = 'v'"
    )
    assert rows
    for row in rows:
        assert "security_invoker=true" in (row["reloptions"] or []), row["relname"]


# One user against another.


@dataclass(frozen=True)
class Both:
    """Two users with all that a user can have, on one database."""

    ground: Ground
    mine: UUID
    theirs: UUID
    scenes: Mapping[UUID, UUID]
    tasks: Mapping[UUID, UUID]


@pytest.fixture
def both(ground: Ground) -> Both:
    users = ground.user(), ground.user()
    scenes = {user: ground.scene(user) for user in users}
    tasks = {user: uuid4() for user in users}
    ground.sql("insert into storage.buckets (id, name) values ('video-files', 'video-files')")
    for user in users:
        as_user(
            ground, user, f"insert into {TASKS} (id, scene_id) values (%s, %s)",
            tasks[user], scenes[user],
        )  # fmt: skip
        ground.sql(
            "insert into storage.objects (bucket_id, name) values ('video-files', %s)",
            f"video-files/{user}/clip.mp4",
        )
        ground.sql(
            "update public.video_generation_tasks set video_path = %s where id = %s",
            f"video-files/{user}/clip.mp4", tasks[user],
        )  # fmt: skip
        ground.sql(
            "insert into public.video_renditions (film_id, name, user_id, position, preset,"
            " media_type, bucket, path, size, sha256) values"
            " (%s, 'web', %s, 1, 'web', 'video/mp4', 'video-files', %s, 1, 'ab')",
            tasks[user], user, f"video-files/{user}/{tasks[user]}/web-1.mp4",
        )  # fmt: skip
    ground.sql("update vidgen.settings set user_webhooks = true")
    for user in users:
        as_user(
            ground, user,
            "select public.create_video_webhook('https://example.com', array['video.*'])",
        )  # fmt: skip
    return Both(ground, *users, scenes, tasks)


OWNED = (
    (TASKS, "user_id"), ("public.video_scenes", "user_id"), ("public.user_credits", "user_id"),
    ("public.credit_entries", "user_id"), ("public.video_renditions", "user_id"),
    ("public.video_webhooks", "user_id"),
)  # fmt: skip


@pytest.mark.parametrize(("table", "owner"), OWNED)
def test_a_user_sees_its_own_rows_only(both: Both, table: str, owner: str) -> None:
    for user in (both.mine, both.theirs):
        rows = as_user(both.ground, user, f"select {owner} as owner from {table}")
        assert [row["owner"] for row in rows] == [user], table


def test_every_table_of_users_rows_is_probed(both: Both) -> None:
    rows = both.ground.sql(
        "select attrelid::regclass::text as name from pg_attribute join pg_class on"
        " pg_class.oid = attrelid where relnamespace = 'public'::regnamespace"
        " and relkind = 'r' and attname = 'user_id'"
    )
    assert {f"public.{row['name'].removeprefix('public.')}" for row in rows} == {
        table for table, _ in OWNED
    }


@pytest.mark.parametrize("role", ["anon", "authenticated"])
@pytest.mark.parametrize(("table", "owner"), OWNED)
def test_a_token_without_a_user_sees_no_row(both: Both, role: str, table: str, owner: str) -> None:
    with acting(both.ground, role) as conn:
        try:
            assert conn.execute(f"select {owner} from {table}".encode()).fetchall() == []
        except errors.InsufficientPrivilege:
            assert role == "anon"


def test_a_user_orders_only_for_itself(both: Both) -> None:
    with pytest.raises(errors.InsufficientPrivilege, match="row-level security"):
        as_user(
            both.ground, both.mine, f"insert into {TASKS} (scene_id, user_id) values (%s, %s)",
            both.scenes[both.mine], both.theirs,
        )  # fmt: skip


@pytest.mark.parametrize("whose", ["another's", "nobody's", "null"])
def test_a_foreign_an_absent_and_no_scene_are_refused_alike(both: Both, whose: str) -> None:
    scene = {"another's": both.scenes[both.theirs], "nobody's": uuid4(), "null": None}[whose]
    with pytest.raises(errors.InsufficientPrivilege) as refused:
        as_user(both.ground, both.mine, f"insert into {TASKS} (scene_id) values (%s)", scene)
    message = 'new row violates row-level security policy for table "video_generation_tasks"'
    assert refused.value.diag.message_primary == message
    assert refused.value.diag.message_detail is None


@pytest.mark.parametrize("call", ["cancel", "retry"])
@pytest.mark.parametrize("whose", ["another's", "nobody's"])
def test_a_call_for_a_foreign_and_an_absent_task_is_refused_alike(
    both: Both, call: str, whose: str
) -> None:
    task = both.tasks[both.theirs] if whose == "another's" else uuid4()
    with pytest.raises(psycopg.Error) as refused:
        as_user(both.ground, both.mine, f"select public.{call}_video_generation_task(%s)", task)
    assert refused.value.sqlstate == "PT404"
    assert refused.value.diag.message_primary == f"there is no task {task} of yours"
    assert both.ground.task(both.tasks[both.theirs])["cancel_requested_at"] is None


def test_a_scene_is_changed_and_deleted_by_its_owner_only(both: Both) -> None:
    theirs = both.scenes[both.theirs]
    scenes = "public.video_scenes"
    changed = f"update {scenes} set visual_prompt = 'mine' where id = %s returning id"
    assert as_user(both.ground, both.mine, changed, theirs) == []
    delete = "select public.delete_video_scene(%s) as gone"
    assert as_user(both.ground, both.mine, delete, theirs) == [{"gone": False}]
    assert as_user(both.ground, both.mine, delete, both.scenes[both.mine]) == [{"gone": True}]
    assert as_user(both.ground, both.mine, delete, both.scenes[both.mine]) == [{"gone": False}]
    with pytest.raises(errors.InsufficientPrivilege, match="row-level security"):
        as_user(
            both.ground, both.mine,
            f"insert into {scenes} (user_id, scenario_id) values (%s, gen_random_uuid())",
            both.theirs,
        )  # fmt: skip


def test_a_scene_can_not_be_taken_or_given_away(both: Both) -> None:
    with pytest.raises(errors.InsufficientPrivilege, match="permission denied"):
        as_user(both.ground, both.mine, "update public.video_scenes set user_id = %s", both.theirs)


def test_a_task_is_ordered_from_a_scene_that_is_the_users_at_that_moment(both: Both) -> None:
    """A scene's id is no secret that opens it later: the policy asks at the insert."""
    as_user(
        both.ground, both.theirs, "select public.delete_video_scene(%s)",
        both.scenes[both.theirs],
    )  # fmt: skip
    with pytest.raises(errors.InsufficientPrivilege, match="row-level security"):
        as_user(
            both.ground, both.theirs, f"insert into {TASKS} (scene_id) values (%s)",
            both.scenes[both.theirs],
        )  # fmt: skip


@pytest.mark.parametrize(
    "statement",
    [
        "insert into storage.objects (bucket_id, name) values ('video-files', 'video-files/x')",
        "update storage.objects set name = 'x' returning id",
        "delete from storage.objects returning id",
    ],
)
@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_no_client_changes_the_files(both: Both, role: str, statement: str) -> None:
    try:
        with acting(both.ground, role, both.mine) as conn:
            assert conn.execute(statement.encode()).fetchall() == []
    except errors.InsufficientPrivilege:
        pass
    rows = both.ground.sql("select name from storage.objects order by name")
    assert len(rows) == 2
    assert {row["name"] for row in rows} == {
        f"video-files/{user}/clip.mp4" for user in (both.mine, both.theirs)
    }


def test_a_user_reads_its_own_file_only(both: Both) -> None:
    rows = as_user(both.ground, both.mine, "select name from storage.objects")
    assert [row["name"] for row in rows] == [f"video-files/{both.mine}/clip.mp4"]
    with acting(both.ground, "anon") as conn:
        assert conn.execute("select name from storage.objects").fetchall() == []


# Negative controls: the tests above can fail.


def test_control_a_right_too_many_is_found(trial: Trial) -> None:
    before = trial.rights("authenticated", TASKS)
    trial.ground.sql(f"grant update (message) on {TASKS} to authenticated")
    trial.ground.sql("grant usage on schema vidgen to anon")
    trial.ground.sql("grant select (host) on vidgen.workers to anon")
    trial.ground.sql("grant delete on public.user_credits to public")
    after = trial.rights("authenticated", TASKS)
    assert (before.update, after.update) == (NONE, frozenset({"message"}))
    assert trial.rights("anon", "vidgen.workers").select == frozenset({"host"})
    assert trial.rights("nobody", "public.user_credits").delete


def test_control_an_undecided_table_and_function_are_found(trial: Trial) -> None:
    trial.ground.sql("create table public.undecided (id int)")
    trial.ground.sql("create function public.undecided() returns int language sql as 'select 1'")
    assert "public.undecided" in set(Trial(trial.ground, trial.nobody).columns) - set(DECIDED)
    assert "public.undecided()" in set(functions_of(trial.ground)) - set(FUNCTIONS)


def test_control_a_policy_too_wide_is_found(both: Both) -> None:
    both.ground.sql(f"create policy wide on {TASKS} for select to authenticated using (true)")
    with pytest.raises(AssertionError):
        test_a_user_sees_its_own_rows_only(both, TASKS, "user_id")


def test_control_a_function_without_a_check_of_its_caller_is_found(both: Both) -> None:
    both.ground.sql(
        "create or replace function vidgen.may_act_on(owner uuid) returns boolean"
        " language sql stable security definer set search_path = '' as 'select true'"
    )
    with pytest.raises(pytest.fail.Exception):
        test_a_call_for_a_foreign_and_an_absent_task_is_refused_alike(both, "cancel", "another's")
