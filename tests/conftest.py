"""The fixtures everybody uses: a real PostgreSQL, and the doubles of Runway and Supabase Storage.

The server comes from the wheel unless `--postgres` says otherwise; every test gets a database of
its own, cloned from a migrated template. The doubles speak HTTP from a thread of this process.
Nothing here replaces code of ours.
"""

import signal
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote, unquote, urlsplit

import psycopg
import pytest
from psycopg import sql

from vidgen_worker.sandbox.control import RunwayControl, StorageControl
from vidgen_worker.sandbox.postgres.server import SUPERUSER, EmbeddedPostgres
from vidgen_worker.sandbox.serving import BackgroundServer
from vidgen_worker.sandbox.supabase.bootstrap import bootstrap

if TYPE_CHECKING:
    from tests.support.hands import Ground
    from tests.support.mortal import ForkServer
    from tests.support.world import World

CONTAINER_IMAGE = "postgres:17-alpine"


class PostgresServer(Protocol):
    """A server with the roles `supabase_admin` (or another superuser) and `postgres`."""

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        """Return a URL for role `postgres`, or for `user` with the same password."""
        ...

    def admin_url(self, database: str = "postgres") -> str:
        """Return a URL for the superuser."""
        ...


@dataclass(frozen=True)
class ExistingServer:
    """A server that somebody else started, known by the URL of its superuser.

    Role `postgres` is given the superuser's password.
    """

    superuser_url: str = field(repr=False)

    @property
    def password(self) -> str | None:
        """The superuser's password; None where the server trusts us."""
        password = urlsplit(self.superuser_url).password
        return None if password is None else unquote(password)

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        """Return a URL for `user`, with the superuser's password."""
        parts = urlsplit(self.superuser_url)
        password = "" if self.password is None else f":{quote(self.password)}"
        host = parts.netloc.rpartition("@")[2]
        return parts._replace(
            netloc=f"{quote(user)}{password}@{host}", path=f"/{quote(database)}"
        ).geturl()

    def admin_url(self, database: str = "postgres") -> str:
        """Return a URL for the superuser."""
        return self.url(database, unquote(urlsplit(self.superuser_url).username or SUPERUSER))


@dataclass(frozen=True)
class Database:
    """One test's database, as `postgres` (no superuser) and as the superuser."""

    name: str
    url: str = field(repr=False)
    admin_url: str = field(repr=False)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--postgres`."""
    parser.addoption(
        "--postgres",
        default="wheel",
        metavar="wheel|container|URL",
        help="where PostgreSQL comes from: the embedded wheel (default), a container, or the URL "
        "of a superuser of a server whose role postgres, if any, is no superuser",
    )


def pytest_configure() -> None:
    """Let Ctrl-C reach what the tests start: a background job of a shell ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=["aiohttp", "httpx"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have what is free go by either transport: httpx's own is used where a proxy is set."""
    if request.param == "httpx":
        monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    return str(request.param)


@pytest.fixture(scope="session")
def postgres_server(pytestconfig: pytest.Config) -> Iterator[PostgresServer]:
    """Provide the session's server, with Supabase's roles on it."""
    choice: str = pytestconfig.getoption("--postgres")
    match choice:
        case "wheel":
            with EmbeddedPostgres.start(durable=False) as embedded:
                bootstrap(embedded.admin_url())
                yield embedded
        case "container":
            from testcontainers.postgres import PostgresContainer  # noqa: PLC0415 - needs Docker

            container = PostgresContainer(
                CONTAINER_IMAGE, username=SUPERUSER, password=uuid.uuid4().hex, dbname="postgres"
            ).with_command("-c wal_level=logical -c max_connections=200 -c fsync=off")
            with container as running:
                yield _existing(running.get_connection_url(driver=None))
        case url:
            yield _existing(url)


def _existing(superuser_url: str) -> ExistingServer:
    server = ExistingServer(superuser_url)
    bootstrap(server.admin_url(), postgres_password=server.password)
    return server


@pytest.fixture(scope="session")
def bare_template(postgres_server: PostgresServer) -> Iterator[str]:
    """Provide the name of a database with Supabase's objects and none of ours."""
    with _database(postgres_server, "template_bare") as name:
        bootstrap(postgres_server.admin_url(name))
        yield name


@pytest.fixture(scope="session")
def migrated_template(postgres_server: PostgresServer, bare_template: str) -> Iterator[str]:
    """Provide the name of a database with all migrations, applied as role `postgres`."""
    from vidgen_worker.database.migrate import migrate  # noqa: PLC0415 - tests below it go without

    with _database(postgres_server, "template_migrated", bare_template) as name:
        migrate(postgres_server.url(name))
        yield name


@pytest.fixture
def database(postgres_server: PostgresServer, migrated_template: str) -> Iterator[Database]:
    """Provide a fresh migrated database."""
    with _database(postgres_server, "test", migrated_template) as name:
        yield Database(name, postgres_server.url(name), postgres_server.admin_url(name))


@pytest.fixture
def bare_database(postgres_server: PostgresServer, bare_template: str) -> Iterator[Database]:
    """Provide a fresh database without our migrations."""
    with _database(postgres_server, "bare", bare_template) as name:
        yield Database(name, postgres_server.url(name), postgres_server.admin_url(name))


@pytest.fixture
def database_url(database: Database) -> str:
    """Provide the URL of a fresh migrated database, as role `postgres`."""
    return database.url


@pytest.fixture
def admin_database_url(database: Database) -> str:
    """Provide the superuser's URL of the same database as `database_url`."""
    return database.admin_url


@pytest.fixture
def bare_database_url(bare_database: Database) -> str:
    """Provide the URL of a fresh database without our migrations, as role `postgres`."""
    return bare_database.url


@pytest.fixture
def bare_admin_url(bare_database: Database) -> str:
    """Provide the superuser's URL of the same database as `bare_database_url`."""
    return bare_database.admin_url


class _database:  # noqa: N801 - reads as the verb it is: `with _database(...)`
    """Create a database for the length of a block."""

    def __init__(self, server: PostgresServer, purpose: str, template: str = "template0") -> None:
        self.server = server
        self.name = f"vidgen_{purpose}_{uuid.uuid4().hex[:12]}"
        self.template = template

    def __enter__(self) -> str:
        self._execute(
            # Files are copied, not written by way of the log: half the time to create, and a
            # quarter to drop, as no buffer has to be looked at.
            sql.SQL("create database {} template {} strategy file_copy owner postgres").format(
                sql.Identifier(self.name), sql.Identifier(self.template)
            )
        )
        return self.name

    def __exit__(self, *_: object) -> None:
        self._execute(
            sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(self.name))
        )

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.server.admin_url(), autocommit=True) as connection:
            connection.execute(statement)


@contextmanager
def database_of(server: PostgresServer, purpose: str, template: str) -> Iterator[Database]:
    """Provide a database for longer than a test: a module's."""
    with _database(server, purpose, template) as name:
        yield Database(name, server.url(name), server.admin_url(name))


@pytest.fixture
def runway(tmp_path: Path) -> Iterator[RunwayControl]:
    """Provide Runway's double: generations end at the first look, outputs are plain files."""
    from vidgen_worker.sandbox.runway.double import RunwayDouble, RunwaySettings  # noqa: PLC0415

    double = RunwayDouble(
        tmp_path / "runway",
        RunwaySettings(image_seconds=0, video_seconds=0, render="cached"),
        allow_loopback_assets=True,
    )
    with BackgroundServer(double.app) as server:
        yield RunwayControl(server.url, double.key)


@pytest.fixture
def storage(tmp_path: Path, database: Database) -> Iterator[StorageControl]:
    """Provide Storage's double on the test's migrated database."""
    yield from _storage(tmp_path, database)


@pytest.fixture
def bare_storage(tmp_path: Path, bare_database: Database) -> Iterator[StorageControl]:
    """Provide Storage's double on a database without our migrations."""
    yield from _storage(tmp_path, bare_database)


def _storage(tmp_path: Path, database: Database) -> Iterator[StorageControl]:
    from vidgen_worker.sandbox.supabase.storage import StorageDouble  # noqa: PLC0415

    double = StorageDouble(tmp_path / "storage", database.admin_url)
    with BackgroundServer(double.app) as server:
        yield StorageControl(server.url, double.keys)


@pytest.fixture(scope="module")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[ForkServer]":
    """Provide what forks a module's mortals (`tests/support/mortal.py`)."""
    from tests.support.mortal import ForkServer  # noqa: PLC0415 - it imports the whole worker

    with closing(ForkServer(tmp_path_factory.mktemp("fork-server") / "errors.log")) as server:
        yield server


@pytest.fixture
def world(database: Database, runway: RunwayControl, storage: StorageControl) -> "Iterator[World]":
    """Provide one test's database and doubles, with the verbs of an application."""
    from tests.support.world import World  # noqa: PLC0415 - it imports the whole worker

    with closing(World(database, runway, storage)) as world:
        yield world


@pytest.fixture
def ground(database: Database) -> "Iterator[Ground]":
    """Provide one test's database, with hands on the queue's SQL."""
    from tests.support.hands import ground_of  # noqa: PLC0415 - it imports the queries

    with ground_of(database) as ground:
        yield ground
