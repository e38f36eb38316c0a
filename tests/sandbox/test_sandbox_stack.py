"""The whole sandbox: it starts, a worker's environment works, and nothing is left of it."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
from runwayml import RunwayML

from vidgen_worker.sandbox import Sandbox

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder for temporary files that everybody may enter."""
    with tempfile.TemporaryDirectory() as path:
        Path(path).chmod(0o755)
        yield Path(path)


def start_a_process(home: Path, *arguments: str) -> tuple[subprocess.Popen[str], dict[str, str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "vidgen_worker.sandbox", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(home)},
        start_new_session=True,
    )
    assert process.stdout is not None
    environment: dict[str, str] = json.loads(process.stdout.readline())
    return process, environment


def folder_of_server(url: str) -> Path:
    with psycopg.connect(url, user="supabase_admin") as connection:
        row = connection.execute("select current_setting('unix_socket_directories')").fetchone()
    assert row is not None
    return Path(row[0]).parent


def wait_for_end(pids: list[int]) -> None:
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        assert select.select([handle], [], [], 20)[0], f"process {pid} still runs"
        os.close(handle)


def descendants(pid: int) -> list[int]:
    children = [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    return children + [below for child in children for below in descendants(child)]


def test_its_environment_is_a_workers() -> None:
    with Sandbox.start() as sandbox:
        environment = sandbox.environment()
        with psycopg.connect(environment["DATABASE_URL"]) as connection:
            row = connection.execute("select current_user, to_regclass('storage.objects')::text")
            assert row.fetchone() == ("postgres", "storage.objects")
        with RunwayML(
            api_key=environment["RUNWAYML_API_SECRET"], base_url=environment["RUNWAYML_BASE_URL"]
        ) as runway:
            assert runway.organization.retrieve().credit_balance == 100_000
        answer = httpx.get(
            f"{environment['SUPABASE_URL']}/storage/v1/bucket",
            headers={"Authorization": f"Bearer {environment['SUPABASE_SERVICE_ROLE_KEY']}"},
        )
        assert answer.json() == []
        product = httpx.get(sandbox.product_image_url, timeout=60)
        assert product.headers["content-type"] == "image/png"
        assert environment["VIDGEN_ALLOW_LOOPBACK_ASSETS"] == "true"
        assert sandbox.user_token(uuid.uuid4()).count(".") == 2
    assert not sandbox.folder.exists()


def test_stop_may_come_twice_and_before_the_start(tmp_path: Path) -> None:
    Sandbox(tmp_path).stop()
    sandbox = Sandbox.start()
    sandbox.stop()
    sandbox.stop()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(sandbox.postgres.url())


def test_a_failed_start_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own: other tests make theirs in the common one."""
    monkeypatch.setattr(tempfile, "tempdir", str(home))
    with Sandbox.start() as running:
        assert running.folder.parent == home
        port = int(running.url.rpartition(":")[2])
        before = set(running.folder.parent.iterdir())
        with pytest.raises(OSError, match="Address already in use"):
            Sandbox.start(port=port)
        assert set(running.folder.parent.iterdir()) <= before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_after_a_signal(home: Path, number: signal.Signals) -> None:
    process, environment = start_a_process(home, "image_seconds=0")
    below = descendants(process.pid)
    assert len(below) > 2
    folder = folder_of_server(environment["DATABASE_URL"])
    assert folder.exists()
    assert list(home.iterdir()) != []
    process.send_signal(number)
    process.communicate(timeout=20)
    wait_for_end(below)
    assert not folder.exists()
    assert list(home.iterdir()) == []
    assert process.returncode == (-number if number is signal.SIGKILL else 0)


def test_the_process_ends_with_its_parents_pipe(home: Path) -> None:
    process, environment = start_a_process(home)
    folder = folder_of_server(environment["DATABASE_URL"])
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert not folder.exists()
    assert list(home.iterdir()) == []
