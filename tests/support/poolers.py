"""PgBouncer before a database, and what must be true of a world whose database had trouble."""

import asyncio
import os
import pwd
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.world import PATIENCE, World
from vidgen_worker.sandbox.postgres.places import free_port

# Fifty POSTs at once take seconds on a busy machine: one that counts as lost is paid again.
QUICK = {
    "VIDGEN_LEASE": "1s", "VIDGEN_SUBMIT_TIMEOUT": "30s", "VIDGEN_QUEUE_POLL": "100ms",
    "VIDGEN_CONCURRENCY": "50",
}  # fmt: skip


def audit(world: World, tasks: int) -> None:
    """All completed, each stage generated once, charged once, stored once."""
    ends = world.sql(
        "select status, error_code, count(*) as rows from video_generation_tasks group by 1, 2"
    )
    assert ends == [{"status": "completed", "error_code": None, "rows": tasks}]
    for stage in ("image", "video"):
        assert len(world.runway.generations(kind=stage)) == tasks
    assert len(world.sql("select * from vidgen.charges")) == 2 * tasks
    assert len(world.storage.objects()) == 2 * tasks
    assert world.books_balance()
    assert world.sql("select * from user_credits where held <> 0") == []


# A transaction pooler.

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@asynccontextmanager
async def pgbouncer(url: str, folder: Path) -> AsyncIterator[str]:
    """PgBouncer in transaction mode before the database at `url`; gives its URL."""
    parts = urlsplit(url)
    port = free_port()
    folder.mkdir()  # noqa: ASYNC240 - a test may block
    (folder / "users").write_text(f'"{parts.username}" "{parts.password}"\n')
    (folder / "ini").write_text(
        f"[databases]\n* = host={parts.hostname} port={parts.port}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = plain\nauth_file = {folder}/users\npool_mode = transaction\n"
        f"default_pool_size = 3\nlogfile = {folder}/log\n"
        # What libpq sends at the start and a transaction pooler can't keep.
        "ignore_startup_parameters = extra_float_digits,options\n"
    )
    user = group = None
    if os.getuid() == 0:
        nobody = pwd.getpwnam("nobody")
        shutil.chown(folder, nobody.pw_uid, nobody.pw_gid)
        for path in folder.parents:
            if path.stat().st_uid == 0 and not path.stat().st_mode & 0o001:
                pytest.skip(f"PgBouncer does not run as root, and {path} keeps others out")
        user, group = nobody.pw_uid, nobody.pw_gid
    process = subprocess.Popen(  # noqa: ASYNC220 - likewise
        [PGBOUNCER or "", str(folder / "ini")], stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, user=user, group=group,
    )  # fmt: skip
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.02)  # a bounded wait for another process's socket
                else:
                    writer.close()
                    break
        login = parts.netloc.rpartition("@")[0]
        yield parts._replace(netloc=f"{login}@127.0.0.1:{port}").geturl()
    finally:
        process.terminate()
        process.wait(PATIENCE)
