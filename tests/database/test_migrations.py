"""Migrations: onto an empty project and onto one in use, twice, at once, and beside Supabase's CLI.

The schema that comes out is committed in `schema_snapshot.txt`. A migration that changes it fails
here with the difference; renew the file, and read its diff, with
`RENEW_SCHEMA_SNAPSHOT=1 pytest tests/database/test_migrations.py -k snapshot`.
"""

import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import errors
from psycopg.rows import dict_row

from tests.conftest import Database, ExistingServer
from tests.support.hands import Ground, Later, ground_of
from vidgen_worker.database import migrate as migrating
from vidgen_worker.database.migrate import migrate, migrations, pending
from vidgen_worker.sandbox.postgres.places import free_port
from vidgen_worker.sandbox.postgres.server import SUPERUSER
from vidgen_worker.sandbox.supabase.bootstrap import bootstrap

HERE = Path(__file__).parent
CHECKOUT = HERE.parent.parent
SNAPSHOT = HERE / "schema_snapshot.txt"
SCHEMA = (HERE / "schema_snapshot.sql").read_text()
OLDEST = Path("/usr/lib/postgresql/15/bin")
NAMES = [f"{m.version}_{m.name}" for m in migrations()]


def schema_of(admin_url: str) -> str:
    """The schema of the migrations, one fact a line, equal on every version of PostgreSQL."""
    with psycopg.connect(admin_url) as conn:
        conn.execute("set search_path = ''")
        rows = conn.execute(SCHEMA.encode()).fetchall()
    return "".join(f"{line}\n" for (line,) in rows)


def lines_of(database: Database) -> list[str]:
    return schema_of(database.admin_url).splitlines()


def books_of(admin_url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(admin_url) as conn:
        return conn.execute(
            "select version, name, cardinality(statements) > 0"
            "  from supabase_migrations.schema_migrations order by version"
        ).fetchall()


# An empty project.


def test_the_role_that_migrates_is_no_superuser(bare_database_url: str) -> None:
    with psycopg.connect(bare_database_url) as conn:
        row = conn.execute("select current_user, rolsuper from pg_roles where rolname = user")
        assert row.fetchone() == ("postgres", False)


def test_migrations_apply_to_an_empty_project_and_are_recorded(bare_database: Database) -> None:
    assert pending(bare_database.url) == NAMES
    assert migrate(bare_database.url) == NAMES
    assert pending(bare_database.url) == []
    assert books_of(bare_database.admin_url) == [(*n.split("_", 1), True) for n in NAMES]


def test_every_file_says_which_schema_it_makes(bare_database: Database) -> None:
    """A program that is too old for it must be able to tell."""
    with psycopg.connect(bare_database.url, autocommit=True) as conn:
        for migration in migrations():
            conn.execute(migration.sql)
            said = conn.execute(
                "select schema_version, oldest_program from vidgen.settings"
            ).fetchone()
            assert said is not None
            assert said[0] == migration.version, migration.name
            assert said[1] <= migration.version, migration.name


def test_a_second_run_changes_nothing(bare_database: Database) -> None:
    migrate(bare_database.url)
    before = schema_of(bare_database.admin_url), books_of(bare_database.admin_url)
    assert migrate(bare_database.url) == []
    assert (schema_of(bare_database.admin_url), books_of(bare_database.admin_url)) == before


def test_the_schema_is_the_one_of_the_snapshot(bare_database: Database) -> None:
    migrate(bare_database.url)
    schema = schema_of(bare_database.admin_url)
    if os.environ.get("RENEW_SCHEMA_SNAPSHOT"):
        SNAPSHOT.write_text(schema)
    assert schema.splitlines() == SNAPSHOT.read_text().splitlines(), (
        "a migration has changed the schema: see this module's docstring"
    )


def test_a_half_applied_file_is_undone_and_tried_again(bare_database: Database) -> None:
    """An event trigger refuses the fourth file: the three before it stay, it goes."""
    with psycopg.connect(bare_database.url) as conn:
        conn.execute("create schema supabase_migrations")
    with psycopg.connect(bare_database.admin_url, autocommit=True) as conn:
        conn.execute(
            "create function public.stop() returns event_trigger language plpgsql as"
            " $$ begin if to_regclass('vidgen.arrivals') is not null then"
            " raise exception 'no arrivals here'; end if; end $$"
        )
        conn.execute("create event trigger stop on ddl_command_end execute function public.stop()")
        with pytest.raises(psycopg.Error, match="no arrivals here"):
            migrate(bare_database.url)
        assert pending(bare_database.url) == NAMES[3:]
        assert conn.execute("select to_regclass('vidgen.turns')").fetchone() == (None,)
        conn.execute("drop event trigger stop")
    assert migrate(bare_database.url) == NAMES[3:]


@pytest.mark.parametrize("recorded", [["20261122000100", "20261130000500"], []])
def test_a_schema_from_before_the_first_release_is_left_as_it_is(
    bare_database: Database, recorded: list[str]
) -> None:
    """Nothing leads on from it, and it must not look like an application's own tables."""
    migrate(bare_database.url)
    with psycopg.connect(bare_database.url) as conn:
        conn.execute("delete from supabase_migrations.schema_migrations")
        for version in recorded:
            conn.execute(
                "insert into supabase_migrations.schema_migrations (version) values (%s)", [version]
            )
    before = schema_of(bare_database.admin_url), books_of(bare_database.admin_url)
    with pytest.raises(migrating.StrangeSchemaError, match="begin with an empty database"):
        migrate(bare_database.url)
    assert (schema_of(bare_database.admin_url), books_of(bare_database.admin_url)) == before
    ran = subprocess.run(
        [sys.executable, "-m", "vidgen_worker", "migrate"],
        env={**os.environ, "DATABASE_URL": bare_database.url}, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert ran.returncode == 1
    assert "begin with an empty database" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_two_migrations_at_once_do_not_collide(bare_database: Database) -> None:
    """All wait for the same lock; let go together, each file is applied by one of them."""
    with (
        psycopg.connect(bare_database.admin_url, autocommit=True) as gate,
        ThreadPoolExecutor(3) as pool,
    ):
        for statement in migrating._BOOKKEEPING:
            gate.execute(statement)
        gate.execute("alter schema supabase_migrations owner to postgres")
        gate.execute("alter table supabase_migrations.schema_migrations owner to postgres")
        gate.execute("begin")
        gate.execute(migrating._LOCK)
        runs = [pool.submit(migrate, bare_database.url) for _ in range(3)]
        while gate.execute(
            "select count(*) < 3 from pg_locks where locktype = 'relation' and not granted"
            "   and database = (select oid from pg_database where datname = current_database())"
        ).fetchone() == (True,):
            assert not any(run.done() for run in runs)
        gate.execute("commit")
        applied = [name for run in runs for name in run.result()]
    assert sorted(applied) == NAMES


def test_a_migration_that_meets_a_lock_gives_way_and_is_repeated(
    bare_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that has only read a table is enough to keep a migration of it waiting."""
    monkeypatch.setattr(migrating, "LOCK_TIMEOUT", timedelta(milliseconds=200))
    monkeypatch.setattr(migrating, "LOCK_PAUSE", timedelta(milliseconds=200))
    monkeypatch.setattr(migrating, "LOCK_TRIES", 1000)
    waits = (
        "select exists (select from pg_locks where not granted"
        "  and relation = 'storage.objects'::regclass)"
    )
    with (
        psycopg.connect(bare_database.admin_url) as reader,
        psycopg.connect(bare_database.admin_url, autocommit=True) as looker,
        ThreadPoolExecutor(1) as pool,
    ):
        reader.execute("select from storage.objects")
        run = pool.submit(migrate, bare_database.url)
        for waiting in (True, False, True):
            while looker.execute(waits).fetchone() != (waiting,):
                assert not run.done()
        reader.rollback()
        assert run.result() == NAMES


def test_the_very_first_migrations_at_once_do_not_collide(bare_database: Database) -> None:
    """Not even the table is there that they lock: one of them makes it, and the others meet it."""
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(migrate, bare_database.url) for _ in range(3)]
        applied = [name for run in runs for name in run.result()]
    assert sorted(applied) == NAMES


def test_a_database_without_realtime_or_storage_takes_them_too(bare_database: Database) -> None:
    with psycopg.connect(bare_database.admin_url) as conn:
        conn.execute("drop publication supabase_realtime")
        conn.execute("drop schema storage cascade")
    assert migrate(bare_database.url) == NAMES


# A project in use.

IN_USE = """
create table public.video_scenarios (
  id uuid primary key, resolution text not null, created_at timestamp default now(), title text
);
create table public.video_scenes (
  id uuid primary key, user_id uuid not null,
  scenario_id uuid not null,
  image_prompt text, visual_prompt text, duration integer default 5,
  image_url text, generated_video_url text,
  status text default 'pending' check (status in ('pending', 'rendered')),
  created_at timestamp default now(), updated_at timestamp default now(),
  mood text not null default 'bright'
);
alter table public.video_scenes enable row level security;
alter table public.video_scenes force row level security;
create policy "only the bright ones" on public.video_scenes
  for select to authenticated using (mood = 'bright');
grant insert on public.video_scenes to authenticated;
"""


def in_use(database: Database) -> tuple[dict[str, Any], ...]:
    """A project with scenes of its own shape: two rows, and what they say."""
    user, scenario = uuid4(), uuid4()
    with psycopg.connect(database.url) as conn:
        conn.execute(IN_USE)
        conn.execute("insert into public.video_scenarios values (%s, '960:960')", [scenario])
        for mood in ("bright", "dark"):
            conn.execute(
                "insert into public.video_scenes (id, user_id, scenario_id, visual_prompt, mood)"
                " values (%s, %s, %s, 'a bottle', %s)",
                [uuid4(), user, scenario, mood],
            )
    return scenes_of(database)


def scenes_of(database: Database) -> tuple[dict[str, Any], ...]:
    with psycopg.connect(database.admin_url, row_factory=dict_row) as conn:
        return tuple(conn.execute("select * from public.video_scenes order by mood").fetchall())


def shape_of(database: Database, table: str) -> list[str]:
    return [
        line
        for line in schema_of(database.admin_url).splitlines()
        if f"public.{table} " in f"{line} " and "video_generation" not in line
    ]


def test_scenes_in_use_keep_their_rows_and_their_shape(bare_database: Database) -> None:
    before = in_use(bare_database)
    shape = shape_of(bare_database, "video_scenes"), shape_of(bare_database, "video_scenarios")
    assert shape[0]
    assert shape[1]
    assert migrate(bare_database.url) == NAMES
    assert scenes_of(bare_database) == before
    assert shape == (
        shape_of(bare_database, "video_scenes"), shape_of(bare_database, "video_scenarios"),
    )  # fmt: skip


def test_scenes_in_use_are_read_whatever_they_lack_and_hide(bare_database: Database) -> None:
    """A column that is missing reads as null, and the application's own RLS hides nothing."""
    _bright, dark = in_use(bare_database)
    migrate(bare_database.url)
    with psycopg.connect(bare_database.admin_url) as conn:
        conn.execute("set role vidgen_worker")
        row = conn.execute(
            "select vidgen.read_scene(%s, %s)", [dark["id"], dark["user_id"]]
        ).fetchone()
    assert row is not None
    assert row[0] == {
        "id": str(dark["id"]), "image_prompt": None, "visual_prompt": "a bottle", "duration": 5,
        "product_reference_image_url": None, "resolution": "960:960",
    }  # fmt: skip


def test_a_scene_s_own_check_refuses_our_status_and_stops_nothing(bare_database: Database) -> None:
    in_use(bare_database)
    migrate(bare_database.url)
    with ground_of(bare_database) as ground:
        hand = ground.worker()
        held = ground.held(hand)
        (row,) = hand.about(held, "start_task")
        assert row["funding"] == "held"
        assert row["scene_refused"].startswith("23514 ")
        assert ground.task(held.id)["progress"] == 15
        scene = ground.task(held.id)["scene_id"]
        assert ground.one("select status from public.video_scenes where id = %s", scene) == {
            "status": "pending"
        }


def test_an_owner_without_select_on_scenes_may_order(bare_database: Database) -> None:
    """`owns_scene` asks as its own owner: the application grants no SELECT here."""
    bright, _ = in_use(bare_database)
    migrate(bare_database.url)
    claims = json.dumps({"sub": str(bright["user_id"]), "role": "authenticated"})
    with psycopg.connect(bare_database.url) as conn:
        conn.execute("set local role authenticated")
        conn.execute("select set_config('request.jwt.claims', %s, true)", [claims])
        conn.execute(
            "insert into public.video_generation_tasks (scene_id) values (%s)", [bright["id"]]
        )


def test_a_scene_stays_free_to_be_deleted(ground: Ground) -> None:
    task = ground.order()
    scene = ground.task(task)["scene_id"]
    hand = ground.worker()
    (held,) = hand.claim()
    hand.about(held, "fail")
    ground.sql("delete from public.video_scenes where id = %s", scene)
    assert ground.task(task)["scene_id"] is None


@pytest.mark.parametrize(
    "table",
    [
        "user_credits", "credit_entries", "credit_prices", "video_generation_tasks",
        "video_generation_gates",
    ],
)  # fmt: skip
def test_a_foreign_table_of_our_name_stops_with_one_sentence(
    bare_database: Database, table: str
) -> None:
    with psycopg.connect(bare_database.url) as conn:
        conn.execute(f"create table public.{table} (id serial primary key, coins numeric)".encode())
    before = schema_of(bare_database.admin_url)
    with pytest.raises(psycopg.Error) as refused:
        migrate(bare_database.url)
    assert refused.value.diag.message_primary == (
        f"vidgen-worker needs the table name(s) public.{table}, which this database already uses."
    )
    assert "Rename yours" in (refused.value.diag.message_hint or "")
    assert schema_of(bare_database.admin_url) == before
    assert pending(bare_database.url) == NAMES


@pytest.mark.parametrize(
    "columns", ["id uuid, user_id uuid", "id text primary key, user_id uuid", "id uuid primary key"]
)
def test_scenes_that_can_t_be_pointed_at_stop_with_one_sentence(
    bare_database: Database, columns: str
) -> None:
    with psycopg.connect(bare_database.url) as conn:
        conn.execute(f"create table public.video_scenes ({columns})".encode())
    with pytest.raises(psycopg.Error, match='no unique "id uuid" or no "user_id uuid" column'):
        migrate(bare_database.url)
    assert pending(bare_database.url) == NAMES


# Objects that do not belong to the migrating role.

OTHER_OWNERS = """
create table public.video_scenarios (id uuid primary key, resolution text);
create table public.video_scenes (
  id uuid primary key, user_id uuid not null, scenario_id uuid, visual_prompt text, status text
);
alter table public.video_scenarios enable row level security;
alter table public.video_scenes enable row level security;
"""


@dataclass(frozen=True)
class Modest:
    """A database, and a role without BYPASSRLS that owns it and would migrate it."""

    database: Database
    role: str
    admin: psycopg.Connection

    def migrate(self) -> list[str]:
        parts = urlsplit(self.database.admin_url)
        host = parts.netloc.rpartition("@")[2]
        password = self.admin.info.password or "unused"
        return migrate(parts._replace(netloc=f"{self.role}:{password}@{host}").geturl())

    def refused(self) -> str:
        """The message of the first migration, which changed nothing."""
        before = schema_of(self.database.admin_url)
        with pytest.raises(errors.InsufficientPrivilege) as refused:
            self.migrate()
        assert schema_of(self.database.admin_url) == before
        hint = refused.value.diag.message_hint or ""
        assert "Nothing was changed." in hint
        return f"{refused.value.diag.message_primary} {hint}"

    def do(self, statement: str) -> None:
        self.admin.execute(statement.format(role=self.role).encode())

    def scene(self) -> tuple[UUID, UUID]:
        """A scene of the application's, and its user."""
        scene, user = uuid4(), uuid4()
        self.admin.execute(
            "insert into public.video_scenes (id, user_id, visual_prompt) values (%s, %s, 'a cup')",
            [scene, user],
        )
        return scene, user

    def reads(self, scene: UUID, user: UUID) -> bool:
        row = self.admin.execute("select vidgen.read_scene(%s, %s)", [scene, user]).fetchone()
        return row is not None and row[0] is not None


@pytest.fixture
def modest(bare_database: Database) -> Iterator[Modest]:
    """Provide it with all that a migration needs, as long as the test takes nothing away."""
    role = f"owner_{uuid4().hex[:12]}"
    with psycopg.connect(bare_database.admin_url, autocommit=True) as admin:
        password = admin.info.password or "unused"
        admin.execute(f"create role {role} login createrole password '{password}'".encode())
        modest = Modest(bare_database, role, admin)
        modest.do(f"alter database {bare_database.name} owner to {{role}}")
        modest.do("grant usage on schema auth, storage to {role}")
        modest.do("grant supabase_storage_admin, authenticated to {role}")
        modest.do("alter publication supabase_realtime owner to {role}")
        try:
            yield modest
        finally:
            modest.do(f"alter database {bare_database.name} owner to postgres")
            modest.do("reassign owned by {role} to supabase_admin")
            modest.do("drop owned by {role}")
            modest.do("drop role {role}")


def test_a_role_without_bypassrls_may_migrate_and_own_all_of_it(modest: Modest) -> None:
    assert modest.migrate() == NAMES
    modest.do("alter table public.video_scenes alter scenario_id drop not null")
    assert modest.reads(*modest.scene())


@pytest.mark.parametrize("how", ["forced", "of another owner"])
def test_scenes_that_row_level_security_hides_from_our_functions_stop_with_one_sentence(
    modest: Modest, how: str
) -> None:
    """Each task would end as SCENE_NOT_FOUND. A policy for a role of its shows not all."""
    modest.do(OTHER_OWNERS)
    modest.do(
        "create policy mine on public.video_scenes to authenticated using (auth.uid() = user_id)"
    )
    for table in ("video_scenarios", "video_scenes"):
        if how == "forced":
            modest.do(f"alter table public.{table} owner to {{role}}")
            modest.do(f"alter table public.{table} force row level security")
        else:
            modest.do(f"grant all on public.{table} to {{role}}")
    for table in ("video_scenes", "video_scenarios"):
        said = modest.refused()
        assert (
            f"row level security hides the rows of public.{table} from role {modest.role}" in said
        )
        remedy = re.search(r"create policy .* using \(true\)", said)
        assert remedy is not None
        modest.do(remedy[0])
    assert modest.migrate() == NAMES
    assert modest.reads(*modest.scene())


@pytest.mark.parametrize("kept", ["references", "select"])
def test_scenes_that_may_not_be_read_or_pointed_at_stop_with_one_sentence(
    modest: Modest, kept: str
) -> None:
    modest.do(OTHER_OWNERS.replace("enable", "disable"))
    modest.do(f"grant {kept} on public.video_scenes, public.video_scenarios to {{role}}")
    said = modest.refused()
    assert f"role {modest.role} may not read public.video_scenes" in said
    for remedy in said.partition("Run as their owner: ")[2].partition(". Then")[0].split("; "):
        modest.do(remedy)
    assert modest.migrate() == NAMES


def test_a_publication_of_another_owner_stops_the_first_file(modest: Modest) -> None:
    modest.do("alter publication supabase_realtime owner to supabase_admin")
    said = modest.refused()
    assert "the publication supabase_realtime, which belongs to supabase_admin" in said
    modest.do(said.partition("Run as a superuser: ")[2].partition(";")[0])
    assert modest.migrate() == NAMES


def test_a_publication_of_all_of_schema_public_needs_nothing(modest: Modest) -> None:
    modest.do("drop publication supabase_realtime")
    modest.do("create publication supabase_realtime for tables in schema public")
    assert modest.migrate() == NAMES


def test_a_storage_of_another_owner_stops_the_first_file(modest: Modest) -> None:
    modest.do("revoke supabase_storage_admin from {role}")
    said = modest.refused()
    assert "may not create policies on storage.objects" in said
    modest.do(said.partition("run as a superuser: ")[2].partition(";")[0])
    assert modest.migrate() == NAMES


# Rights of others on adopted objects.


def test_no_client_keeps_the_right_to_put_a_trigger_on_scenes(bare_database: Database) -> None:
    """`grant all on all tables` includes it, and a trigger runs as the role that writes the row."""
    with psycopg.connect(bare_database.url) as conn:
        conn.execute(IN_USE)
        conn.execute("grant all on all tables in schema public to public, anon, authenticated")
    migrate(bare_database.url)
    with psycopg.connect(bare_database.url) as conn:
        rows = conn.execute(
            "select c.relname, a.grantee::regrole::text,"
            "       string_agg(a.privilege_type, ', ' order by a.privilege_type)"
            "  from pg_class as c, aclexplode(c.relacl) as a"
            " where c.relname in ('video_scenes', 'video_scenarios') and a.grantee <> c.relowner"
            "   and a.privilege_type in ('SELECT', 'INSERT', 'TRIGGER') group by 1, 2 order by 1, 2"
        ).fetchall()
    assert {(table, role) for table, role, _ in rows} == {
        (table, role)
        for table in ("video_scenes", "video_scenarios")
        for role in ("-", "anon", "authenticated")
    }
    assert {rights for _, _, rights in rows} == {"INSERT, SELECT"}


def test_each_file_searches_names_only_where_no_user_can_create_any(
    bare_database: Database,
) -> None:
    """A view keeps the function that it was made with: a user's own, if schema public is open."""
    with psycopg.connect(bare_database.admin_url, autocommit=True) as conn:
        conn.execute(
            "create table public.seen (path text, tag text);"
            "create function public.look() returns event_trigger language plpgsql security definer"
            " as $$ begin insert into public.seen"
            " select pg_catalog.current_setting('search_path'), c.command_tag"
            " from pg_catalog.pg_event_trigger_ddl_commands() as c"
            " where c.schema_name in ('vidgen', 'public') or c.command_tag = 'CREATE POLICY';"
            " end $$;"
            "create event trigger look on ddl_command_end execute function public.look()"
        )
        migrate(bare_database.url)
        seen = conn.execute("select path, count(*) from public.seen group by path").fetchall()
    assert [path for path, _ in seen] == ['""']
    assert seen[0][1] > 200


def test_a_worker_reads_no_text_of_an_applications_migrations(bare_database: Database) -> None:
    with psycopg.connect(bare_database.url, autocommit=True) as conn:
        conn.execute("create schema supabase_migrations")
        conn.execute(
            "create table supabase_migrations.schema_migrations"
            " (version text primary key, statements text[], name text)"
        )
    migrate(bare_database.url)
    with psycopg.connect(bare_database.admin_url, autocommit=True) as conn:
        conn.execute("set role vidgen_worker")
        versions = conn.execute("select version from supabase_migrations.schema_migrations")
        assert len(versions.fetchall()) == len(NAMES)
        for column in ("statements", "name"):
            with pytest.raises(errors.InsufficientPrivilege):
                conn.execute(f"select {column} from supabase_migrations.schema_migrations".encode())


# The oldest PostgreSQL that hosted projects run.


@pytest.fixture(scope="session")
def oldest_server() -> Iterator[ExistingServer]:
    """Provide Debian's PostgreSQL 15, as `nobody` where we are root."""
    if not (OLDEST / "initdb").exists():
        pytest.skip(f"no PostgreSQL 15 in {OLDEST}: install Debian's postgresql-15 to run this")
    account: dict[str, Any] = {}
    port = free_port()
    # Not a folder of pytest's: another account may not enter those.
    with tempfile.TemporaryDirectory(prefix="vidgen-postgres15-") as name:
        folder = Path(name)
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            account = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)

        def run(program: str, *arguments: str) -> None:
            subprocess.run(
                [OLDEST / program, f"--pgdata={folder / 'data'}", *arguments],
                check=True, cwd="/", timeout=60, stdout=subprocess.DEVNULL, **account,
            )  # fmt: skip

        run("initdb", f"--username={SUPERUSER}", "--auth=trust", "--no-sync", "--encoding=UTF8",
            "--locale=C")  # fmt: skip
        options = f"-p {port} -k '' -c listen_addresses=127.0.0.1 -c fsync=off"
        run("pg_ctl", "start", "--wait", "--silent", f"--log={folder / 'log'}",
            f"--options={options}")  # fmt: skip
        try:
            server = ExistingServer(f"postgresql://{SUPERUSER}@127.0.0.1:{port}/postgres")
            bootstrap(server.admin_url())
            yield server
        finally:
            run("pg_ctl", "stop", "--mode=immediate", "--silent")


@pytest.fixture
def oldest_database(oldest_server: ExistingServer) -> Database:
    name = f"vidgen_oldest_{uuid4().hex[:12]}"
    with psycopg.connect(oldest_server.admin_url(), autocommit=True) as conn:
        conn.execute(f"create database {name} owner postgres".encode())
    bootstrap(oldest_server.admin_url(name))
    return Database(name, oldest_server.url(name), oldest_server.admin_url(name))


def test_postgres_15_takes_them_and_comes_to_the_same_schema(
    oldest_database: Database, database: Database
) -> None:
    assert migrate(oldest_database.url) == NAMES
    assert lines_of(oldest_database) == lines_of(database)


def test_postgres_15_runs_a_task_from_claim_to_its_end(oldest_database: Database) -> None:
    migrate(oldest_database.url)
    with ground_of(oldest_database) as ground:
        hand = ground.worker()
        held = ground.prepared(hand, "complete")
        hand.about(held, "complete")
        assert ground.task(held.id)["status"] == "completed"
        assert ground.books_balance()


# The Supabase CLI, from npm. `make tools` puts it into .tools/.


class SupabaseCLI:
    """The CLI in a project folder of its own that holds our migrations."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.program = program
        self.folder = folder
        shutil.copytree(CHECKOUT / "migrations", folder / "supabase" / "migrations")

    def __call__(self, url: str, *arguments: str) -> str:
        """Run one command against this database; what it said."""
        environment = os.environ | {"SUPABASE_TELEMETRY_DISABLED": "1", "HOME": str(self.folder)}
        done = subprocess.run(
            [self.program, *arguments, f"--remote={url}"], cwd=self.folder, env=environment,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode == 0, f"supabase {' '.join(arguments)} ended with {said}"
        return said


@pytest.fixture
def supabase(tmp_path: Path) -> SupabaseCLI:
    """Provide the Supabase CLI where it is installed."""
    installed = CHECKOUT / ".tools" / "node_modules" / ".bin" / "supabase"
    found = installed if installed.exists() else shutil.which("supabase")
    if found is None:
        pytest.skip(
            "no Supabase CLI: `make tools` (npm install --prefix .tools supabase@3.1.0) brings it"
        )
    return SupabaseCLI(Path(found), tmp_path)


def test_the_cli_has_nothing_to_do_after_us(supabase: SupabaseCLI, bare_database: Database) -> None:
    assert migrate(bare_database.url) == NAMES
    assert "up to date" in supabase(bare_database.url, "migration", "up", "--yes")
    assert "up to date" in supabase(bare_database.url, "db", "push", "--dry-run", "--yes")


def test_we_have_nothing_to_do_after_the_cli(
    supabase: SupabaseCLI, bare_database: Database, database: Database
) -> None:
    """The CLI splits our function bodies correctly, and the schema is the same."""
    dry = supabase(bare_database.url, "db", "push", "--dry-run", "--yes")
    assert all(f"{name}.sql" in dry for name in NAMES)
    supabase(bare_database.url, "migration", "up", "--yes")
    assert migrate(bare_database.url) == []
    assert lines_of(bare_database) == lines_of(database)


def test_the_cli_continues_where_we_stopped(
    supabase: SupabaseCLI,
    bare_database: Database,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An older version of ours applied two files, then the CLI, then we again."""
    all_of_them = migrations()
    monkeypatch.setattr(migrating, "migrations", lambda: all_of_them[:2])
    assert migrate(bare_database.url) == NAMES[:2]
    monkeypatch.undo()
    supabase(bare_database.url, "migration", "up", "--yes")
    assert pending(bare_database.url) == []
    assert lines_of(bare_database) == lines_of(database)


def test_the_advisors_find_nothing_in_our_objects(
    supabase: SupabaseCLI, bare_database: Database
) -> None:
    """Unused indexes apart: in a database that has run nothing yet all of them are.

    And stages apart: a table of a few rows, of which none is deleted or renamed, needs no index of
    those that name one.
    """
    migrate(bare_database.url)
    said = supabase(
        bare_database.url, "db", "advisors", "--level", "info", "--fail-on", "warn",
        "--output-format", "json",
    )  # fmt: skip
    report = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    found = [
        lint
        for lint in report["results"]
        if lint["name"] != "unused_index" and "foreign key `stage_is_known`" not in lint["detail"]
    ]
    assert [(lint["name"], lint["detail"]) for lint in found] == []


def test_a_waiting_migration_is_seen_as_waiting(ground: Ground) -> None:
    """`pending` asks no lock: it answers while another one migrates."""
    with psycopg.connect(ground.database.url) as conn:
        conn.execute(migrating._LOCK)
        later = Later(lambda: pending(ground.database.url), 0)
        later.start()
        assert later.result() == []
