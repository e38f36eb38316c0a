"""The real demo as a process: what it leaves, and what it does not leave when it is interrupted."""

import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import av
import httpx
import pytest
from PIL import Image, features

from vidgen_worker.films.fonts import Fonts

GONE_SECONDS = 30.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Provide a folder for temporary files that PostgreSQL's account may enter."""
    with tempfile.TemporaryDirectory(prefix="vidgen-test-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield folder


@contextmanager
def demo(
    cwd: Path, scratch: Path, *verb: str, program: Sequence[str] = ("-m", "vidgen_worker")
) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "TMPDIR": str(scratch), "VIDGEN_CREDITS": "off"}
    process = subprocess.Popen(
        [sys.executable, *program, *verb],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def children(pid: int) -> list[int]:
    """Return the living descendants of a process."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in map(int, task.read_text().split()):
                found += [child, *children(child)]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def await_that(what: Callable[[], bool], message: str) -> None:
    """Look until it is so."""
    deadline, pause = time.monotonic() + GONE_SECONDS, threading.Event()
    while not what():
        assert time.monotonic() < deadline, message
        pause.wait(0.02)


def read_until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout
    said = ""
    for line in process.stdout:
        said += line
        if words in line:
            return said
    raise AssertionError(f"{words!r} was never said: {said}")


def test_the_demo_ends_with_a_playable_video(tmp_path: Path, scratch: Path) -> None:
    modes = {folder: folder.stat().st_mode for folder in (tmp_path, *tmp_path.parents)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with demo(tmp_path, scratch, "demo") as process:
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Half a minute is promised. On a busy machine no clock can tell, but the CPU that it took can.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 30
    for step in (
        "Generating scene image with AI",
        "Creating video from generated image",
        "Video generation completed successfully",
    ):
        assert step in said
    assert re.search(r"credits before +100\b", said)
    assert re.search(r"credits after +70\b", said)
    still, clip = tmp_path / "demo-output" / "still.png", tmp_path / "demo-output" / "video.mp4"
    assert str(still) in said
    assert str(clip) in said
    with Image.open(still) as picture:
        assert (picture.format, picture.size) == ("PNG", (1920, 1080))
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.width, stream.codec_context.height) == (1280, 720)
        assert sum(1 for _ in container.decode(stream)) > 20
    assert list(scratch.iterdir()) == []
    assert {folder: folder.stat().st_mode for folder in modes} == modes


SHORT_FILM = (
    "from vidgen_worker.cli import app, demo_film;"
    " demo_film.SECONDS = 2;"
    " demo_film.OUTPUTS = [{'preset': 'preview', 'format': 'mp4'}, 'poster'];"
    " app(['demo', '--film', '--keep'])"
)
"""The same film of shorter scenes in two formats: renders are nice, and the suite is not."""


def test_a_demo_of_a_film_that_is_kept_is_seen_in_a_browser_until_ctrl_c(
    tmp_path: Path, scratch: Path
) -> None:
    draws = features.check("fribidi") and Fonts().files
    program = ["-c", SHORT_FILM] if draws else ["-m", "vidgen_worker", "demo", "--keep"]
    with demo(tmp_path, scratch, program=program) as process:
        said = read_until(process, "Ctrl-C stops everything")
        if draws:
            _looks_at_the_film(tmp_path / "demo-output", said)
        (link,) = re.findall(r"^See it: (\S+)$", said, re.MULTILINE)
        with httpx.Client(follow_redirects=True) as client:
            assert "steady" in (page := client.get(link).text) or "settling" in page
            assert "completed" in client.get(link.partition("?")[0] + "tasks").text
        family = children(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert not [pid for pid in family if alive(pid)]
    assert list(scratch.iterdir()) == []


def _looks_at_the_film(made: Path, said: str) -> None:
    """The first three seconds of it, at twelve frames a second: its fade, and a caption."""
    file = made / "film-preview.mp4"
    assert str(file) in said
    with av.open(str(file)) as container:
        video = container.streams.video[0]
        assert (video.width, video.height) == (480, 270)
        frames = [
            frame.to_image().convert("L")  # type: ignore[no-untyped-call]
            for frame in container.decode(video)
        ]
    assert len(frames) == 3 * 12
    # A light card fills the left of the picture; the box of the caption lies over its corner.
    dark, light, box = (frames[n].getpixel((x, 216)) for n, x in ((0, 170), (12, 170), (12, 215)))
    assert dark + 100 < light, "it comes out of the dark"
    assert box + 100 < light, "there is no caption"
    for file in (made / "film-poster.jpg", made / "film-poster-avif.avif"):
        with Image.open(file) as picture:
            assert picture.size == (1280, 720)


# Each moment once, and two Ctrl-C where least and where most is there to clear away: the way to
# the last moment takes the whole demo.
MOMENTS = (
    ("Starting PostgreSQL", 1),
    ("Starting PostgreSQL", 2),
    ("Inserting a task", 1),
    ("Generating scene image", 1),
    ("Storing generated video", 2),
)


@pytest.mark.parametrize(("moment", "times"), MOMENTS)
def test_ctrl_c_leaves_nothing_behind(
    tmp_path: Path, scratch: Path, moment: str, times: int
) -> None:
    with demo(tmp_path, scratch, "demo") as process:
        read_until(process, moment)
        family = children(process.pid)
        for _ in range(times):
            os.killpg(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert not [pid for pid in family if alive(pid)]
    assert list(scratch.iterdir()) == []


def test_ctrl_c_while_postgres_is_being_started_leaves_nothing_behind(
    tmp_path: Path, scratch: Path
) -> None:
    with demo(tmp_path, scratch, "demo") as process:
        read_until(process, "Starting PostgreSQL")
        await_that(lambda: bool(children(process.pid)), "it started nothing")
        family = children(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert not [pid for pid in family if alive(pid)]
    assert list(scratch.iterdir()) == []


def test_even_kill_9_leaves_no_process_and_no_folder(tmp_path: Path, scratch: Path) -> None:
    with demo(tmp_path, scratch, "demo") as process:
        read_until(process, "Generating scene image")
        family = children(process.pid)
        process.kill()
        process.wait()
        await_that(lambda: not any(map(alive, family)), "a process outlived the demo")
        await_that(lambda: not list(scratch.iterdir()), "a folder outlived the demo")


def test_ctrl_c_ends_the_sandbox_and_leaves_nothing_behind(tmp_path: Path, scratch: Path) -> None:
    """What it prints is tried in test_sandbox.py."""
    with demo(tmp_path, scratch, "sandbox") as process:
        read_until(process, "Ctrl-C here stops everything")
        family = children(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert not [pid for pid in family if alive(pid)]
    assert list(scratch.iterdir()) == []
