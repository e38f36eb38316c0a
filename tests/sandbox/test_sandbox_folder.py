"""The folder that a sandbox keeps: foreign, in use, half-written, full, or open to others."""

import fcntl
import json
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from tests.support.sandboxes import fresh
from vidgen_worker.sandbox import folder as held_folder
from vidgen_worker.sandbox.folder import FolderError, HeldFolder
from vidgen_worker.sandbox.postgres import software
from vidgen_worker.sandbox.postgres.places import scratch_path
from vidgen_worker.sandbox.postgres.server import EmbeddedPostgres
from vidgen_worker.sandbox.postgres.software import PostgresError
from vidgen_worker.sandbox.stack import Sandbox
from vidgen_worker.sandbox.state import State, StateError

HOLDER = """
import pathlib, runpy, sys
held = runpy.run_path(sys.argv[1])["HeldFolder"].take(pathlib.Path(sys.argv[2]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Provide a folder that the server's account can enter, also under root."""
    made = scratch_path("vidgen-folder")
    made.mkdir(mode=0o711)
    yield made
    shutil.rmtree(made)


def test_a_folder_of_other_files_a_file_and_one_in_use_are_refused(folder: Path) -> None:
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(FolderError, match=r"holds what is no sandbox's \(thesis.txt\)"):
        HeldFolder.take(folder)
    assert [one.name for one in folder.iterdir()] == ["thesis.txt"]
    with pytest.raises(FolderError, match="is a file: give a folder"):
        HeldFolder.take(folder / "thesis.txt")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, held_folder.__file__, folder / "kept"], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as other:  # fmt: skip
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(FolderError, match=rf"in use by another sandbox \(process {other.pid}"):
            HeldFolder.take(folder / "kept")
        other.kill()
        other.wait()
        HeldFolder.take(folder / "kept").release()


def test_a_killed_sandboxs_folder_is_waited_for_until_its_database_has_ended(folder: Path) -> None:
    """The lock is also the launcher's, which shuts the server down."""
    held = HeldFolder.take(folder)
    server = EmbeddedPostgres.start(folder / "postgres", durable=False, inherited=(held.lock,))
    held.release()
    with subprocess.Popen(["true"]) as gone:
        pass
    (folder / "lock").write_text(str(gone.pid))  # whoever took it is dead
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(HeldFolder.take, folder)
        with pytest.raises(BlockingIOError), (folder / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert not waiting.done()
        server.stop()
        waiting.result(30).release()


def test_a_cluster_that_was_broken_off_is_begun_anew(folder: Path) -> None:
    place = folder / "postgres"
    for half in ("data.new/base", "data"):  # an earlier version made the second
        (place / half).mkdir(parents=True)
    (place / "data.new" / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres.start(place, durable=False) as server:
        with psycopg.connect(server.url()) as connection:
            assert connection.execute("select 1").fetchone() == (1,)
        assert not (place / "data.new").exists()


def test_a_damaged_cluster_and_a_full_disk_are_reported_with_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "postgres" / "data").mkdir(parents=True)
    (folder / "postgres" / "data" / "PG_VERSION").write_text("18\n")
    with pytest.raises(PostgresError, match=r"It is damaged: give a new folder\. It said: "):
        EmbeddedPostgres.start(folder / "postgres", durable=False)
    monkeypatch.setattr(software, "CLUSTER_BYTES", 10**18)
    with pytest.raises(PostgresError, match=r"MB left on the disk of .* make room"):
        EmbeddedPostgres.start(folder / "new", durable=False)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"keys": 5}', '{"keys": {}}', '{"port": "x", "keys": %s}']
)
def test_a_file_that_is_no_sandboxs_is_refused_in_a_sentence(folder: Path, content: str) -> None:
    State().save(folder)
    keys = json.dumps(json.loads((folder / "project.json").read_text())["keys"])
    (folder / "project.json").write_text(content.replace("%s", keys))
    with pytest.raises(StateError, match="Give another folder, or delete it"):
        State.of(folder)


def test_nobody_else_may_read_what_a_sandbox_keeps(folder: Path) -> None:
    with Sandbox.start(folder / "kept"):
        for name in ("storage", "storage/blobs", "storage/incoming", "postgres/data"):
            assert stat.S_IMODE((folder / "kept" / name).stat().st_mode) == 0o700, name
        for name in ("project.json", "lock", "postgres/postgres.log", "postgres/password"):
            assert stat.S_IMODE((folder / "kept" / name).stat().st_mode) == 0o600, name


def test_too_few_open_files_are_named(folder: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", 'ulimit -n 40; exec "$0" -m vidgen_worker sandbox', sys.executable],
        cwd=folder, env=fresh(TMPDIR=str(folder)), capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "raise `ulimit -n`" in done.stderr
    assert list(folder.iterdir()) == []
