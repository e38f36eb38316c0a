"""The Procfile as a platform runs it: honcho, the real command, a real PostgreSQL, the doubles."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.support.world import PATIENCE, World
from vidgen_worker.database.migrate import migrations

PROCFILE = Path(__file__).parents[2] / "Procfile"
BIN = Path(sys.executable).parent
STOPPED_BY_SIGTERM = 128 + signal.SIGTERM
"""What honcho itself ends with; how the worker ended is in its log."""

pytestmark = pytest.mark.skipif(
    not (BIN / "vidgen-worker").exists(), reason="needs the package installed: make venv"
)


@contextmanager
def honcho(
    world: World, folder: Path, process: str, **overrides: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """One process of the Procfile; its log is `folder`/log."""
    shutil.copy(PROCFILE, folder)
    environment = {"PATH": f"{BIN}:{os.environ['PATH']}", **world.env(**overrides)}
    with (
        (folder / "log").open("ab") as out,
        subprocess.Popen(
            [sys.executable, "-m", "honcho", "start", process],
            env=environment, cwd=folder, stdout=out, stderr=out,
        ) as running,
    ):  # fmt: skip
        try:
            yield running
        finally:
            if running.poll() is None:
                running.terminate()
                running.wait(PATIENCE)


async def test_a_worker_does_a_task_and_drains(world: World, tmp_path: Path) -> None:
    """Whether or not the shell that honcho starts it with hands on: the signal is the group's."""
    user = world.user()
    task = world.order(user, world.scene(user))
    with honcho(world, tmp_path, "worker") as running:
        assert (await world.until(task))["status"] == "completed"
        world.runway.set(image_seconds=600)
        second = world.order(user, world.scene(user))
        await world.until(second, "processing")
        running.send_signal(signal.SIGTERM)
        assert running.wait(PATIENCE) == STOPPED_BY_SIGTERM
    log = (tmp_path / "log").read_text()
    assert "Worker stopped" in log
    assert "worker.1 stopped" in log
    row = world.task(second)
    assert (row["status"], row["failures"]) == ("pending", 0)
    assert world.sql("select id from vidgen.workers where dead_at is null") == []


def test_a_release_brings_the_database_up_to_date(
    world: World, tmp_path: Path, bare_database_url: str
) -> None:
    with honcho(world, tmp_path, "release", DATABASE_URL=bare_database_url) as running:
        assert running.wait(PATIENCE) == 0, (tmp_path / "log").read_text()
    with psycopg.connect(bare_database_url) as conn:
        found = conn.execute("select schema_version from vidgen.settings").fetchone()
    assert found == (migrations()[-1].version,)


def test_a_release_that_fails_stops_the_deployment(world: World, tmp_path: Path) -> None:
    nobody = "postgresql://postgres:secret@127.0.0.1:1/postgres"
    with honcho(world, tmp_path, "release", DATABASE_URL=nobody) as running:
        assert running.wait(PATIENCE) != 0
    assert "Nothing listens there" in (tmp_path / "log").read_text()
