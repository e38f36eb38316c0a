"""Errors for people: one clear line and the remedy for each classic mistake, never a traceback."""

import re
import socket
import threading
from collections.abc import Iterator

import psycopg
import pytest

from tests.test_reconcile import vidgen
from tests.world import World
from vidgen_worker.cli.output import ExitCode


def refused(world: World, code: int, *said: str, verb: str = "run", **settings: str) -> None:
    """The verb ends with this code, says this, and shows neither traceback nor password."""
    world.environment.update(settings)
    done = vidgen(world, verb)
    assert done.returncode == code, done.stdout + done.stderr
    for part in said:
        assert part in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "hunter22" not in done.stdout + done.stderr


def other(world: World, host: str, database: str = "postgres") -> str:
    del world
    return f"postgresql://postgres:hunter22@{host}/{database}"


def test_a_host_that_can_not_be_resolved(world: World) -> None:
    url = other(world, "db.no-such-project.invalid:5432")
    refused(world, ExitCode.UNAVAILABLE, "can't be resolved", "Session pooler", DATABASE_URL=url)


def test_a_host_where_nothing_listens(world: World) -> None:
    refused(
        world, ExitCode.UNAVAILABLE, "Nothing listens there",
        DATABASE_URL=other(world, "127.0.0.1:1"),
    )  # fmt: skip


@pytest.fixture
def web_server() -> Iterator[int]:
    """Something that answers, and is no PostgreSQL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(100)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        yield listening.getsockname()[1]


def test_a_url_of_something_else(world: World, web_server: int) -> None:
    refused(
        world, ExitCode.UNAVAILABLE, "Something else than PostgreSQL",
        DATABASE_URL=other(world, f"127.0.0.1:{web_server}"),
    )  # fmt: skip


def test_a_database_that_is_not_there(world: World) -> None:
    url = re.sub(r"/[^/]*$", "/nowhere", world.database.url)
    refused(world, ExitCode.UNAVAILABLE, "Supabase's are both called postgres", DATABASE_URL=url)


def test_a_database_that_is_no_projects(world: World, bare_admin_url: str) -> None:
    with psycopg.connect(bare_admin_url, autocommit=True) as conn:
        conn.execute("alter schema auth rename to no_auth")
    refused(
        world, ExitCode.FAILED, "has no schema auth", "Nothing was changed",
        verb="migrate", DATABASE_URL=bare_admin_url,
    )  # fmt: skip


def test_missing_migrations(world: World, bare_database_url: str) -> None:
    refused(world, ExitCode.FAILED, "Run: vidgen-worker migrate", DATABASE_URL=bare_database_url)


@pytest.mark.parametrize("verb", ["run", "check"])
def test_a_schema_that_is_too_new(world: World, verb: str) -> None:
    world.sql("update vidgen.settings set schema_version = '2099', oldest_program = '2098'")
    code = ExitCode.CONFIGURATION if verb == "run" else ExitCode.FAILED
    refused(world, code, "takes programs from 2098 on", verb=verb)


def test_a_newer_schema_alone_is_fine(world: World) -> None:
    """Roll back: the program of one release ago runs on the schema of today."""
    world.sql("update vidgen.settings set schema_version = '2099'")
    assert vidgen(world, "check").returncode == 0


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SUPABASE_SERVICE_ROLE_KEY", "sb_secret_of_another", "it is the secret key"),
        ("SUPABASE_URL", "http://127.0.0.1:1", "Check SUPABASE_URL"),
        ("RUNWAYML_API_SECRET", "key_that_is_none", "Check RUNWAYML_API_SECRET"),
    ],
)
def test_a_wrong_key_or_url(world: World, name: str, value: str, said: str) -> None:
    refused(world, ExitCode.FAILED, said, verb="check", **{name: value})


def test_check_says_what_is_published(world: World) -> None:
    world.sql("alter publication supabase_realtime drop table public.video_generation_tasks")
    assert "alter publication supabase_realtime add table" in vidgen(world, "check").stdout
