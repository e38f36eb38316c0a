"""The bootstrap: what a migration, a user and a stranger find is what hosted Supabase has."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors

from vidgen_worker.sandbox.supabase.bootstrap import BOOTSTRAP, bootstrap

Connection = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
def migration(bare_database_url: str) -> Iterator[Connection]:
    """Role `postgres`, as whom migrations run."""
    with psycopg.connect(bare_database_url, autocommit=True) as connection:
        yield connection


def one(connection: Connection, question: str, *values: object) -> object:
    row = connection.execute(question.encode(), values).fetchone()
    return None if row is None else row[0]


@pytest.mark.parametrize(
    ("role", "attributes"),
    [
        ("postgres", (False, True, True, True)),
        ("anon", (False, False, False, False)),
        ("authenticated", (False, False, False, False)),
        ("service_role", (False, False, True, False)),
        ("authenticator", (False, False, False, True)),
        ("supabase_auth_admin", (False, False, False, True)),
        ("supabase_storage_admin", (False, True, False, True)),
    ],
)
def test_roles_are_those_of_hosted_supabase(
    migration: Connection, role: str, attributes: tuple[bool, ...]
) -> None:
    row = migration.execute(
        """
        select rolsuper, rolcreaterole, rolbypassrls, rolcanlogin
        from pg_roles where rolname = %s
        """,
        [role],
    ).fetchone()
    assert row == attributes


@pytest.mark.parametrize("role", ["anon", "authenticated", "service_role"])
@pytest.mark.parametrize("member", ["postgres", "authenticator"])
def test_postgres_and_the_authenticator_may_become_any_api_role(
    migration: Connection, member: str, role: str
) -> None:
    assert one(migration, "select pg_has_role(%s, %s, 'member')", member, role) is True


def test_a_users_claims_are_readable(migration: Connection) -> None:
    user = uuid.uuid4()
    claims = {"sub": str(user), "role": "authenticated", "email": "a@example.com"}
    with migration.transaction():
        migration.execute(
            "select set_config('role', 'authenticated', true),"
            " set_config('request.jwt.claims', %s, true)",
            [json.dumps(claims)],
        )
        row = migration.execute(
            "select auth.uid(), auth.role(), auth.email(), auth.jwt() ->> 'sub', current_user"
        ).fetchone()
    assert row == (user, "authenticated", "a@example.com", str(user), "authenticated")


def test_without_claims_there_is_no_user(migration: Connection) -> None:
    assert one(migration, "select auth.uid()") is None


@pytest.mark.parametrize("role", ["anon", "authenticated", "service_role"])
def test_a_new_table_is_granted_to_nobody(migration: Connection, role: str) -> None:
    migration.execute("create table public.fresh (id integer)")
    for verb in ("select", "insert", "update", "delete"):
        assert one(migration, "select has_table_privilege(%s, 'public.fresh', %s)", role, verb) is (
            False
        )
    assert one(migration, "select has_schema_privilege(%s, 'public', 'usage')", role) is True


def test_a_migration_may_create_policies_on_objects(migration: Connection) -> None:
    migration.execute(
        """
        create policy owners on storage.objects for select to authenticated
        using ((storage.foldername(name))[1] = (select auth.uid())::text)
        """
    )
    migration.execute("drop policy owners on storage.objects")


@pytest.mark.parametrize(
    "statement",
    [
        "alter table storage.objects enable row level security",
        "alter table storage.objects add column extra integer",
        "create index on storage.objects (owner)",
        "create table storage.ours (id integer)",
        "create function storage.ours() returns integer language sql as 'select 1'",
        "drop table storage.objects",
        "alter table auth.users add column extra integer",
        "create or replace function auth.uid() returns uuid language sql as 'select null::uuid'",
    ],
)
def test_a_migration_may_not_change_supabases_own_schemas(
    migration: Connection, statement: str
) -> None:
    with pytest.raises(errors.InsufficientPrivilege, match="must be owner of"):
        migration.execute(statement.encode())


def test_a_migration_may_insert_buckets_but_not_delete_them(migration: Connection) -> None:
    migration.execute("insert into storage.buckets (id, name) values ('films', 'films')")
    with pytest.raises(errors.InsufficientPrivilege, match="Direct deletion from storage tables"):
        migration.execute("delete from storage.buckets")


def test_a_migration_may_refer_to_users_and_watch_them(migration: Connection) -> None:
    migration.execute("create table public.ours (user_id uuid references auth.users (id))")
    migration.execute(
        """
        create function public.watch() returns trigger language plpgsql
        as 'begin return new; end'
        """
    )
    migration.execute(
        "create trigger watch after insert on auth.users"
        " for each row execute function public.watch()"
    )


def test_a_migration_may_publish_its_tables(migration: Connection) -> None:
    assert one(migration, "select count(*) from pg_publication_tables") == 0
    migration.execute("create table public.watched (id integer primary key)")
    migration.execute("alter publication supabase_realtime add table public.watched")
    assert one(migration, "select tablename from pg_publication_tables") == "watched"


def test_a_migration_may_create_roles_and_schemas(migration: Connection) -> None:
    role = f"ours_{uuid.uuid4().hex[:8]}"
    migration.execute(f"create role {role} nologin".encode())
    migration.execute(f"grant {role} to postgres".encode())
    migration.execute(b"create schema ours")
    migration.execute(f"drop role {role}".encode())


def test_names_of_objects_are_taken_apart_as_storage_does(migration: Connection) -> None:
    row = migration.execute(
        """
        select storage.foldername('a/b/c.tar.gz'), storage.filename('a/b/c.tar.gz'),
               storage.extension('a/b/c.tar.gz')
        """
    ).fetchone()
    assert row == (["a", "b"], "c.tar.gz", "gz")


def test_an_objects_path_is_split_by_the_database(migration: Connection) -> None:
    migration.execute("insert into storage.buckets (id, name) values ('films', 'films')")
    migration.execute("insert into storage.objects (bucket_id, name) values ('films', 'a/b.mp4')")
    assert one(migration, "select path_tokens from storage.objects") == ["a", "b.mp4"]


def test_the_bootstrap_may_run_again(bare_database_url: str, bare_admin_url: str) -> None:
    bootstrap(bare_admin_url)
    with psycopg.connect(bare_database_url) as connection:
        assert one(connection, "select count(*) from storage.buckets") == 0


def test_a_superuser_called_postgres_is_refused(bare_admin_url: str) -> None:
    with psycopg.connect(bare_admin_url) as connection:
        connection.execute("alter role postgres superuser")
        with pytest.raises(errors.RaiseException, match='"postgres" of this server is a superuser'):
            connection.execute(BOOTSTRAP.read_bytes())
        connection.rollback()
