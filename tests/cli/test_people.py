"""Errors for people: one clear line and the remedy for each classic mistake, never a traceback."""

import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.poolers import PGBOUNCER, pgbouncer
from tests.support.world import World, vidgen
from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.database.remedies import explain_connect

UNREACHABLE_IPV6 = "2001:db8::1"  # RFC 3849: in documents only


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


WITHOUT_NETWORK = ["unshare", "--map-root-user", "--net"]
HAS_NAMESPACES = (
    shutil.which("unshare") is not None
    and subprocess.run([*WITHOUT_NETWORK, "true"], capture_output=True, check=False).returncode == 0
)


@pytest.mark.skipif(not HAS_NAMESPACES, reason="needs network namespaces (unshare)")
@pytest.mark.parametrize("verb", ["run", "check", "migrate", "stats"])
def test_a_direct_host_that_has_only_ipv6(world: World, verb: str) -> None:
    """What `db.<ref>.supabase.co` resolves to, on a machine without a way to it."""
    url = other(world, f"[{UNREACHABLE_IPV6}]:5432")
    done = subprocess.run(
        [*WITHOUT_NETWORK, sys.executable, "-m", "vidgen_worker", verb],
        env={"PATH": "/usr/bin:/bin", **world.env(DATABASE_URL=url)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == (ExitCode.FAILED if verb == "check" else ExitCode.UNAVAILABLE), said
    assert f"postgres@[{UNREACHABLE_IPV6}]:5432/postgres" in said
    assert "most likely because it is an IPv6 one" in said
    assert "Session pooler's URL" in said
    assert "Traceback" not in said
    assert "hunter22" not in said


def test_the_resolvers_error_for_a_host_of_another_family_is_explained() -> None:
    """glibc's own text for a name that has no address of the families that were asked for."""
    with pytest.raises(socket.gaierror) as refused:
        socket.getaddrinfo("::1", 5432, family=socket.AF_INET)
    said = explain_connect(str(refused.value), "postgresql://postgres@db.ref.supabase.co/postgres")
    assert "Session pooler" in said


@pytest.mark.skipif(PGBOUNCER is None, reason="needs Debian's package pgbouncer")
async def test_check_recognizes_a_transaction_pooler_by_the_missing_notification(
    world: World, tmp_path: Path
) -> None:
    folder = Path("/tmp") / f"vidgen-people-{os.getpid()}-{tmp_path.name[-12:]}"  # noqa: S108 - nobody's
    try:
        async with pgbouncer(world.database.url, folder) as url:
            world.environment["DATABASE_URL"] = url
            done = await asyncio.to_thread(vidgen, world, "check")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "LISTEN: a transaction pooler is in between: the queue is read every" in done.stdout
    assert "session pooler's (port 5432)" in done.stdout


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
        world, ExitCode.UNAVAILABLE, "Another program than PostgreSQL",
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
