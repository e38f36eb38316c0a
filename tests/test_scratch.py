"""The download folder: gone with its worker, and after kill -9 with the next one."""

import subprocess
import sys
from pathlib import Path

import pytest

from vidgen_worker.scratch import SMALL, Scratch, scratch_folder, sweep


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


@pytest.mark.parametrize("size", [1, SMALL + 1])
async def test_a_lent_file_is_gone_at_the_end_with_what_was_written_beside_it(
    temp: Path, size: int
) -> None:
    async def work_and_fail(scratch: Scratch) -> None:
        async with scratch.file() as file:
            file.write_bytes(b"x" * size)
            file.with_name(f"{file.name}.png").write_bytes(b"x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await work_and_fail(Scratch(temp, (".png",)))
    assert list(temp.iterdir()) == []  # noqa: ASYNC240 - a test


async def test_files_lent_at_once_are_different_and_names_come_again(temp: Path) -> None:
    scratch = Scratch(temp)
    async with scratch.file() as one, scratch.file() as other:
        assert one != other
        one.write_bytes(b"x")
        assert not other.exists()
    async with scratch.file() as again:
        assert again in (one, other)
        assert not again.exists()
