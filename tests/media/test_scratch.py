"""The download folder: gone with its worker, and after kill -9 with the next one."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vidgen_worker.domain.faults import Fault
from vidgen_worker.media.scratch import SMALL, Scratch, room, scratch, sweep


@pytest.fixture(autouse=True)
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_the_folder_is_removed_at_the_end(temp: Path) -> None:
    with scratch() as lending:
        folder = lending.folder
        assert folder is not None
        (folder / "clip.mp4").write_bytes(b"x")
        assert folder.parent == temp
    assert not folder.exists()


def test_a_folder_of_a_killed_process_is_removed_by_the_next(temp: Path) -> None:
    holder = (
        "import sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from vidgen_worker.media.scratch import scratch\n"
        "with scratch() as lending:\n"
        "    print(lending.folder, flush=True); sys.stdin.read()\n"
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
    with scratch():
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

    lending = Scratch(temp)
    with pytest.raises(ZeroDivisionError):
        await work_and_fail(lending)
    left = [file for file in temp.rglob("*") if file.is_file()]  # noqa: ASYNC240 - a test
    assert [file.name for file in left] == [".lock"]
    lending.close()
    assert list(temp.iterdir()) == []  # noqa: ASYNC240 - a test


@pytest.fixture
def lending(temp: Path) -> Iterator[Scratch]:
    lending = Scratch(temp / "parent")
    yield lending
    lending.close()


async def test_files_lent_at_once_lie_in_folders_of_their_own_that_nobody_guesses(
    lending: Scratch,
) -> None:
    async with lending.file() as one, lending.file() as other:
        assert one.parent != other.parent
        assert all(len(file.parent.name) == 32 for file in (one, other))
        assert one.parent.stat().st_mode & 0o077 == 0
        one.write_bytes(b"x")
        (one.parent / "beside").write_bytes(b"x")
        assert not other.exists()
    async with lending.file() as again:
        assert again in (one, other)
        assert list(again.parent.iterdir()) == []


async def test_a_folder_that_vanished_is_made_again(lending: Scratch) -> None:
    async with lending.file() as file:
        file.write_bytes(b"x")
        assert lending.folder is not None
        shutil.rmtree(lending.folder.parent)
    async with lending.file() as file:
        file.write_bytes(b"x")
    assert sweep(lending.folder.parent) == []  # it is locked again


async def test_a_folder_that_vanished_alone_is_made_again(lending: Scratch) -> None:
    async with lending.file() as file:
        shutil.rmtree(file.parent)
    async with lending.file() as file:
        file.write_bytes(b"x")


async def test_a_folder_that_can_not_be_made_is_waited_for_and_named(
    temp: Path, lending: Scratch
) -> None:
    (temp / "parent").write_text("a file where the folder was to be")
    with pytest.raises(Fault, match=f"{temp}/parent.*Make room") as raised:
        async with lending.file():
            pass
    assert raised.value.name == "scratch_unavailable"
    (temp / "parent").unlink()
    async with lending.file() as file:
        file.write_bytes(b"x")


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM]
)
async def test_what_the_machine_lacks_is_no_fault_of_the_task(
    lending: Scratch, number: int
) -> None:
    async def work() -> None:
        async with lending.file():
            raise OSError(number, os.strerror(number))

    with pytest.raises(Fault) as raised:
        await work()
    assert raised.value.name == "scratch_unavailable"


async def test_trouble_of_a_connection_is_not_the_scratch_folders(lending: Scratch) -> None:
    async def work(error: OSError) -> None:
        async with lending.file():
            raise error

    for error in (TimeoutError(), ConnectionResetError(104, "reset"), OSError(113, "no route")):
        with pytest.raises(type(error)):
            await work(error)


async def test_a_file_that_is_missing_in_the_folder_is_the_folders_trouble(
    lending: Scratch,
) -> None:
    with pytest.raises(Fault) as raised:
        async with lending.file() as file:
            file.read_bytes()
    assert raised.value.name == "scratch_unavailable"


def test_a_worker_starts_where_there_is_no_room_for_a_folder(
    temp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (temp / "file").write_text("")
    monkeypatch.setattr("tempfile.tempdir", str(temp / "file"))
    with scratch() as lending:
        assert lending.folder is None


def test_the_free_room_is_reported(temp: Path) -> None:
    found = room()
    assert (found.folder, found.free_bytes > 0) == (temp, True)
    assert list(temp.iterdir()) == []
