"""The download folder: gone with its worker, and after kill -9 with the next one."""

import subprocess
import sys
from pathlib import Path

import pytest

from vidgen_worker.scratch import scratch_folder, sweep


@pytest.fixture(autouse=True)
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_the_folder_is_removed_at_the_end(temp: Path) -> None:
    with scratch_folder() as folder:
        (folder / "clip.mp4").write_bytes(b"x")
        assert folder.parent == temp
    assert not folder.exists()


def test_a_folder_of_a_killed_process_is_removed_by_the_next(temp: Path) -> None:
    holder = (
        "import sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from vidgen_worker.scratch import scratch_folder\n"
        "with scratch_folder() as folder:\n"
        "    print(folder, flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(temp)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert sweep(temp) == []  # it lives
        process.kill()
        process.wait()
    assert folder.exists()
    with scratch_folder():
        assert not folder.exists()


def test_folders_of_others_are_left_alone(temp: Path) -> None:
    (temp / "vidgen-worker-without-lock").mkdir()
    assert sweep(temp) == []
    assert (temp / "vidgen-worker-without-lock").exists()
