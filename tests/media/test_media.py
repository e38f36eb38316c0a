"""Downloads, and files looked at by real children: good, odd, broken and hostile ones."""

import asyncio
import contextlib
import gzip
import hashlib
import os
import re
import signal
import sys
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from fractions import Fraction
from pathlib import Path

import av
import psutil
import pytest
from PIL import Image, ImageDraw

from vidgen_worker.domain.faults import Fault
from vidgen_worker.media import children as media_children
from vidgen_worker.media import warm_up
from vidgen_worker.media.downloads import Downloaded
from vidgen_worker.media.outputs import Media
from vidgen_worker.sandbox.control import RunwayControl

RATIO = "320:180"
MEGABYTE = 1_000_000


@pytest.fixture
async def media() -> AsyncIterator[Media]:
    """Provide the module under test, and see that it leaves no process behind."""
    media = Media(max_image_bytes=MEGABYTE, max_video_bytes=MEGABYTE, allow_loopback=True)
    yield media
    await media.aclose()
    assert started(media) == 0


# Files


def picture(file: Path, size: tuple[int, int] = (320, 180), mode: str = "RGB") -> Path:
    """Draw a picture whose centre is red, on blue with noise (so that it has some bytes)."""
    image = Image.effect_noise(size, 40).convert("RGB")
    image.paste((0, 0, 255), (0, 0, size[0], size[1] // 4))
    middle = (size[0] // 2, size[1] // 2)
    ImageDraw.Draw(image).circle(middle, min(size) // 6, fill=(255, 0, 0))
    image.convert(mode).save(file)
    return file


def film(  # noqa: PLR0913 - what a film can be
    file: Path,
    codec: str = "libx264",
    *,
    size: tuple[int, int] = (320, 180),
    pixels: str = "yuv420p",
    frames: int = 48,
    sound: str | None = None,
    faststart: bool = True,
) -> Path:
    """Render a film of 24 frames a second whose centre is red."""
    still = Image.new("RGB", size, (0, 0, 255))
    middle = (size[0] // 2, size[1] // 2)
    options = {"movflags": "+faststart"} if faststart and file.suffix == ".mp4" else {}
    with av.open(str(file), "w", options=options) as output:
        stream = output.add_stream(codec, rate=24)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        audio = output.add_stream(sound, rate=48_000) if sound else None
        for number in range(frames):
            ImageDraw.Draw(still).rectangle((0, 0, number, 9), fill=(255, 255, 255))
            ImageDraw.Draw(still).circle(middle, min(size) // 6, fill=(255, 0, 0))
            picture_ = av.VideoFrame.from_image(still)  # type: ignore[no-untyped-call]
            output.mux(stream.encode(picture_))
        output.mux(stream.encode(None))
        if isinstance(audio, av.AudioStream):
            for frame in silence(audio, frames / 24):
                output.mux(audio.encode(frame))
            output.mux(audio.encode(None))
    return file


def silence(stream: av.AudioStream, seconds: float) -> list[av.AudioFrame]:
    samples = 960
    found = []
    for number in range(int(seconds * 48_000 / samples)):
        frame = av.AudioFrame(format="fltp", layout="stereo", samples=samples)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        frame.sample_rate, frame.pts = 48_000, number * samples
        frame.time_base = Fraction(1, 48_000)
        found.append(frame)
    del stream
    return found


def cut(file: Path, share: float) -> Path:
    """Keep the first part of a file."""
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    return file


def filled(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


def is_empty(folder: Path) -> bool:
    return not any(folder.iterdir())


def digest(file: Path) -> tuple[int, str]:
    content = file.read_bytes()
    return len(content), hashlib.sha256(content).hexdigest()


def opened(file: Path) -> tuple[str | None, tuple[int, int], tuple[int, int, int]]:
    """Return format, size, and the colour in the centre of a picture."""
    with Image.open(file) as image:
        colour = image.convert("RGB").getpixel((image.width // 2, image.height // 2))
        assert isinstance(colour, tuple)
        return image.format, image.size, (colour[0], colour[1], colour[2])


def played(file: Path) -> tuple[list[str], tuple[int, int], int, tuple[int, int, int]]:
    """Return codecs, size, frames and the colour in the centre of the last frame of a film."""
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        codecs = [stream.codec_context.name, str(stream.codec_context.pix_fmt)]
        codecs += [audio.codec_context.name for audio in container.streams.audio]
        frames = list(container.decode(video=0))
        image = frames[-1].to_image()  # type: ignore[no-untyped-call]
        pixel = image.getpixel((image.width // 2, image.height // 2))
        return codecs, image.size, len(frames), pixel


def moov_first(file: Path) -> bool:
    content = file.read_bytes()
    return content.index(b"moov") < content.index(b"mdat")


def reddish(colour: tuple[int, int, int]) -> bool:
    return colour[0] > 200 and max(colour[1:]) < 60


# Pictures


async def test_a_png_of_the_right_size_is_stored_as_it_is(media: Media, tmp_path: Path) -> None:
    file = picture(tmp_path / "a.png")
    found = await media.check_image(file, RATIO)
    assert (found.width, found.height, found.format) == (320, 180, "png")
    assert (found.file, found.conformed) == (file, False)
    assert (found.size, found.sha256) == digest(file)


@pytest.mark.parametrize(
    ("name", "mode", "size"),
    [
        ("a.jpg", "RGB", (320, 180)),
        ("a.jpg", "L", (500, 100)),
        ("a.webp", "RGBA", (180, 320)),
        ("a.gif", "P", (320, 180)),
        ("a.png", "RGB", (1000, 1000)),
        ("a.png", "RGBA", (321, 179)),
        ("a.png", "P", (16, 9)),
    ],
)
async def test_a_wrong_type_or_size_becomes_a_png_of_the_right_size(
    media: Media, tmp_path: Path, name: str, mode: str, size: tuple[int, int]
) -> None:
    file = picture(tmp_path / name, size, mode)
    found = await media.check_image(file, RATIO)
    delivered = {"jpg": "mjpeg"}.get(name.partition(".")[2], name.partition(".")[2])
    assert (found.width, found.height, found.format) == (*size, delivered)
    assert (found.file, found.conformed) == (tmp_path / f"{name}.conformed.png", True)
    kind, new_size, colour = opened(found.file)
    assert (kind, new_size) == ("PNG", (320, 180))
    assert reddish(colour) or mode == "L" or min(size) < 20
    assert (found.size, found.sha256) == digest(found.file)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
async def test_a_picture_cut_short_does_not_decode(
    media: Media, tmp_path: Path, name: str, share: float
) -> None:
    with pytest.raises(Fault) as raised:
        await media.check_image(cut(picture(tmp_path / name), share), RATIO)
    assert raised.value.name == "output_undecodable"


async def test_a_png_with_a_flipped_bit_does_not_decode(media: Media, tmp_path: Path) -> None:
    content = bytearray(picture(tmp_path / "a.png").read_bytes())
    content[len(content) // 2] ^= 1
    with pytest.raises(Fault, match="damaged"):
        await media.check_image(filled(tmp_path / "b.png", bytes(content)), RATIO)


JUNK = bytes(range(1, 32)) * 99


@pytest.mark.parametrize("content", [JUNK, b"PK\x03\x04" + JUNK, b"\xff\xd8\xff" + JUNK])
async def test_bytes_that_are_no_picture_and_no_film_do_not_decode(
    media: Media, tmp_path: Path, content: bytes
) -> None:
    assert await refused(media, filled(tmp_path / "a", content)) == {"output_undecodable"}


PAGES = {
    "a page": b"<!doctype html><html><body>Sign in to the network</body></html>" * 9,
    "a page after blank lines": b"\r\n\r\n  <html><body>403</body></html>",
    "an error in XML": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "an error in JSON": b'{"statusCode":"404","error":"not_found"}',
    "a word": b"x",
    "a page in UTF-8 with a mark": b"\xef\xbb\xbf<html>",
    "a page in UTF-16": "<html><body>verboten</body></html>".encode("utf-16"),
    "a page in UTF-16 without a mark": "<html><body>no</body></html>".encode("utf-16-le"),
    "a page in Latin-1": "<p>Zugriff für Gäste gesperrt: höhere Gewalt</p>".encode("latin-1"),
    "a page in Shift JIS": "<html><title>ログイン</title>".encode("shift-jis") + b"<p>x</p>" * 99,
    "a page cut in a letter": "<p>é</p>".encode() * 1200 + b"\xc3",
    "a playlist": b"#EXTM3U\n#EXTINF:5,\nneighbour.ts\n",
    "a list to concatenate": b"ffconcat version 1.0\nfile 'neighbour'\n",
    "a manifest": b"<MPD><BaseURL>neighbour</BaseURL></MPD>",
    "a drawing": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='neighbour'/></svg>",
    "nothing": b"",
    "zeros": bytes(5000),
    "a PNG's first bytes": b"\x89PNG\r\n\x1a\n",
    "an MP4 without a film": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom\0\0\0\x08free",
}
"""What arrives with status 200 in place of an output, under whatever media type."""


async def refused(media: Media, file: Path) -> set[str]:
    """Return the faults of a file looked at as a picture and as a film."""
    found: set[str] = set()
    for look in (media.check_image(file, RATIO), media.check_video(file, RATIO, 2)):
        with pytest.raises(Fault) as raised:
            await look
        found.add(raised.value.name)
    return found


async def test_what_is_no_output_at_all_is_asked_for_again(media: Media, tmp_path: Path) -> None:
    found = {
        name: await refused(media, filled(tmp_path / "a", page))
        for name, page in PAGES.items()
        if not name.startswith(("a PNG", "an MP4"))
    }
    assert found == {name: {"output_unavailable"} for name in found}


async def test_an_empty_wrapper_is_asked_for_again(media: Media, tmp_path: Path) -> None:
    with pytest.raises(Fault) as raised:
        await media.check_image(filled(tmp_path / "a", PAGES["a PNG's first bytes"]), RATIO)
    assert raised.value.name == "output_unavailable"
    with pytest.raises(Fault) as raised:
        await media.check_video(filled(tmp_path / "b", PAGES["an MP4 without a film"]), RATIO, 2)
    assert raised.value.name == "output_unavailable"
    Image.new("RGBA", (1, 1)).save(tmp_path / "pixel.png")
    with pytest.raises(Fault, match="placeholder") as raised:
        await media.check_image(tmp_path / "pixel.png", RATIO)
    assert raised.value.name == "output_unavailable"


async def test_a_picture_of_a_billion_pixels_fails_alone(media: Media, tmp_path: Path) -> None:
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    with pytest.raises(Fault) as raised:
        await media.check_image(tmp_path / "bomb.png", RATIO)
    assert raised.value.name == "output_undecodable"
    assert not (await media.check_image(picture(tmp_path / "a.png"), RATIO)).conformed


async def test_a_picture_that_would_become_too_large_is_refused(tmp_path: Path) -> None:
    small = Media(max_image_bytes=2000, max_video_bytes=2000)
    with pytest.raises(Fault) as raised:
        await small.check_image(picture(tmp_path / "a.jpg"), RATIO)
    assert raised.value.name == "output_too_large"
    await small.aclose()


# Films


async def test_an_mp4_of_the_right_size_is_stored_as_it_is(media: Media, tmp_path: Path) -> None:
    file = film(tmp_path / "a.mp4", sound="aac")
    found = await media.check_video(file, RATIO, 2)
    assert (found.width, found.height, found.codec) == (320, 180, "h264")
    assert (found.file, found.conformed, found.right_duration) == (file, False, True)
    assert found.seconds == pytest.approx(2.0, abs=0.05)
    assert (found.size, found.sha256) == digest(file)


@pytest.mark.parametrize(
    ("form", "size", "sound"),
    [
        (("a.mp4", "libx264 yuv420p"), (640, 640), None),
        (("a.mp4", "libx264 yuv420p"), (640, 640), "aac"),
        (("a.mp4", "libx264 yuv420p"), (322, 178), None),
        (("a.mp4", "libx264 yuv444p"), (320, 180), None),
        (("a.mov", "libx264 yuv420p"), (320, 180), "aac"),
        (("a.mkv", "libx264 yuv420p"), (320, 180), "libmp3lame"),
        (("a.webm", "libvpx-vp9 yuv420p"), (320, 180), "libopus"),
        (("a.avi", "mpeg4 yuv420p"), (160, 90), None),
        (("a.gif", "gif rgb8"), (320, 180), None),
    ],
)
async def test_a_wrong_type_or_size_becomes_an_mp4_of_the_right_size(
    media: Media, tmp_path: Path, form: tuple[str, str], size: tuple[int, int], sound: str | None
) -> None:
    name, look = form
    codec, pixels = look.split()
    file = film(tmp_path / name, codec, size=size, pixels=pixels, sound=sound)
    found = await media.check_video(file, RATIO, 2)
    assert (found.width, found.height) == size
    assert (found.file, found.conformed) == (tmp_path / f"{name}.conformed.mp4", True)
    codecs, new_size, frames, colour = played(found.file)
    assert codecs == ["h264", "yuv420p", *(["aac"] if sound else [])]
    assert (new_size, frames, reddish(colour)) == ((320, 180), 48, True)
    assert moov_first(found.file)
    assert (found.size, found.sha256) == digest(found.file)
    again = await media.check_video(found.file, RATIO, 2)
    assert (again.conformed, again.right_duration) == (False, True)


async def test_a_wrong_duration_is_accepted_and_reported(media: Media, tmp_path: Path) -> None:
    found = await media.check_video(film(tmp_path / "a.mp4", frames=72), RATIO, 2)
    assert (found.conformed, found.right_duration) == (False, False)
    assert found.seconds == pytest.approx(3.0, abs=0.05)


@pytest.mark.parametrize("name", ["first.mp4", "last.mp4", "a.webm"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.99])
async def test_a_film_cut_short_does_not_decode(
    media: Media, tmp_path: Path, name: str, share: float
) -> None:
    codec = "libvpx" if name.endswith("webm") else "libx264"
    file = film(tmp_path / name, codec, frames=120, faststart=name == "first.mp4")
    if name.endswith("webm") and share > 0.5:
        pytest.skip("a WebM may end between any two frames: only its length tells")
    with pytest.raises(Fault) as raised:
        await media.check_video(cut(file, share), RATIO, 5)
    assert raised.value.name == "output_undecodable"


async def test_a_film_whose_pictures_are_garbage_does_not_decode(
    media: Media, tmp_path: Path
) -> None:
    content = film(tmp_path / "a.mp4").read_bytes()
    start = content.index(b"mdat") + 4
    file = filled(tmp_path / "b.mp4", content[:start] + os.urandom(len(content) - start))
    with pytest.raises(Fault) as raised:
        await media.check_video(file, RATIO, 2)
    assert raised.value.name == "output_undecodable"


async def test_a_single_picture_is_no_film(media: Media, tmp_path: Path) -> None:
    with pytest.raises(Fault, match="is not a film") as raised:
        await media.check_video(picture(tmp_path / "a.png"), RATIO, 2)
    assert raised.value.name == "output_undecodable"


async def test_a_film_without_pictures_does_not_decode(media: Media, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.m4a"), "w") as output:
        stream = output.add_stream("aac", rate=48_000)
        assert isinstance(stream, av.AudioStream)
        for frame in silence(stream, 1):
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with pytest.raises(Fault, match="neither picture nor film"):
        await media.check_video(tmp_path / "a.m4a", RATIO, 2)


# Children


class Stuck:
    """A FIFO in place of a picture: it keeps a child in the middle of its job."""

    def __init__(self, media: Media, file: Path) -> None:
        self.media = media
        self.file = file
        self.ends: list[int] = []
        os.mkfifo(file)
        self.job = asyncio.create_task(media.check_image(file, RATIO))

    async def child(self, *others: int) -> int:
        """Return the child that reads it, once there is one that is none of the others."""
        while True:
            with contextlib.suppress(OSError):  # ENXIO: nobody reads it yet
                self.ends.append(os.open(self.file, os.O_WRONLY | os.O_NONBLOCK))
                # None: what reads is the job of a child that was killed, and ends in a moment.
                for pid in set(self.media.child_pids) - set(others):
                    return pid
            await asyncio.sleep(0)

    async def end_of(self, pid: int) -> None:
        """Return once that child has been given up."""
        while True:
            if pid not in self.media.child_pids:
                return
            await asyncio.sleep(0)


@pytest.fixture
def stick(media: Media, tmp_path: Path) -> Iterator[Callable[[], Stuck]]:
    """Provide a way to keep a child of `media` busy."""
    stuck: list[Stuck] = []

    def stick() -> Stuck:
        stuck.append(Stuck(media, tmp_path / "stuck.png"))
        return stuck[-1]

    yield stick
    for end in (end for one in stuck for end in one.ends):
        os.close(end)


def started(media: Media) -> int:
    return len(media.child_pids)


def move(file: Path, target: Path) -> None:
    file.rename(target)


async def test_a_child_has_warmed_up_with_a_film_that_is_stored_as_it_comes(
    media: Media, tmp_path: Path
) -> None:
    (ours := tmp_path / "ours.mp4").write_bytes(warm_up.film())
    clip = await media.check_video(ours, f"{warm_up.SIZE}:{warm_up.SIZE}", 1)
    assert not clip.conformed  # what the child has read is read in the way of most clips
    [pid] = media.child_pids
    # A thread of an encoder that was left there would not be forked, and stay without walls.
    assert psutil.Process(pid).num_threads() == 1


async def test_a_child_killed_in_mid_job_is_replaced_and_the_file_looked_at_again(
    media: Media, tmp_path: Path, stick: Callable[[], Stuck]
) -> None:
    stuck = stick()
    pid = await stuck.child()
    move(picture(tmp_path / "whole.png"), stuck.file)
    os.kill(pid, signal.SIGKILL)
    assert not (await stuck.job).conformed
    assert pid not in media.child_pids


async def test_a_file_that_kills_two_children_does_not_decode_and_harms_nobody_else(
    media: Media, tmp_path: Path, stick: Callable[[], Stuck]
) -> None:
    stuck = stick()
    first = await stuck.child()
    assert not (await media.check_image(picture(tmp_path / "b.png"), RATIO)).conformed
    os.kill(first, signal.SIGKILL)
    await stuck.end_of(first)
    second = await stuck.child(first)
    os.kill(second, signal.SIGABRT)
    with pytest.raises(Fault, match="by SIGKILL and again by SIGABRT") as raised:
        await stuck.job
    assert raised.value.name == "output_undecodable"
    assert started(media) == 0
    assert not (await media.check_image(tmp_path / "b.png", RATIO)).conformed


async def test_a_child_that_does_not_answer_in_time_is_ended(
    media: Media, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stick: Callable[[], Stuck]
) -> None:
    await media.check_image(picture(tmp_path / "b.png"), RATIO)
    monkeypatch.setattr(media_children, "JOB_SECONDS", 0.3)
    [slow] = media.child_pids
    with pytest.raises(Fault, match="without an answer") as raised:
        await stick().job
    assert raised.value.name == "scratch_unavailable"
    assert not psutil.pid_exists(slow)


async def test_a_cancelled_job_ends_its_child_and_not_the_pool(
    media: Media, tmp_path: Path, stick: Callable[[], Stuck]
) -> None:
    stuck = stick()
    pid = await stuck.child()
    stuck.job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stuck.job
    assert not psutil.pid_exists(pid)
    assert not (await media.check_image(picture(tmp_path / "b.png"), RATIO)).conformed


async def test_children_start_when_needed_and_never_more_than_allowed(tmp_path: Path) -> None:
    media = Media(children=2, max_image_bytes=MEGABYTE, max_video_bytes=MEGABYTE)
    assert started(media) == 0
    file = picture(tmp_path / "a.jpg")
    files = [filled(tmp_path / f"{n}.jpg", file.read_bytes()) for n in range(6)]
    found = await asyncio.gather(*(media.check_image(each, RATIO) for each in files))
    assert len({each.sha256 for each in found}) == 1
    assert started(media) == 2
    pids = media.child_pids
    await media.aclose()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    with pytest.raises(Fault) as raised:
        await media.check_image(file, RATIO)
    assert raised.value.name == "draining"


async def test_closing_ends_a_busy_child(media: Media, stick: Callable[[], Stuck]) -> None:
    stuck = stick()
    pid = await stuck.child()
    await media.aclose()
    with pytest.raises(Fault) as raised:
        await stuck.job
    assert raised.value.name == "draining"
    assert not psutil.pid_exists(pid)


async def test_a_child_ignores_the_terminal_and_has_no_secrets(
    media: Media, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNWAYML_API_SECRET", "key_secret")
    await media.check_image(picture(tmp_path / "a.png"), RATIO)
    [pid] = media.child_pids
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    assert os.getsid(pid) == pid
    assert "RUNWAYML_API_SECRET" not in psutil.Process(pid).environ()
    await media.check_image(tmp_path / "a.png", RATIO)
    assert media.child_pids == (pid,)


async def test_a_child_has_no_rights_and_reads_no_environment_of_its_parent(
    tmp_path: Path,
) -> None:
    """See with the child's own eyes: a program in its place reads what a hijacked libav could."""
    picture(tmp_path / "a.png")
    spy = tmp_path / "media_child.py"
    spy.write_text(
        "import os, sys\n"
        "sys.path.insert(0, os.environ['PYTHONPATH'].split(os.pathsep)[0])\n"
        "from vidgen_worker.media import child as media_child\n"
        "def look(job):\n"
        "    status = open('/proc/self/status').read()\n"
        "    try:\n"
        "        seen = open(f'/proc/{worker}/environ').read()\n"
        "    except OSError as error:\n"
        "        seen = type(error).__name__\n"
        "    raise media_child.UndecodableError(status + seen)\n"
        "worker = os.getppid()\n"
        "media_child.JOBS['image'] = look\n"
        # They would hide what is to be seen here; test_hostile_walls tries them.
        "media_child.raise_walls = lambda *_: []\n"
        "media_child.main(9999)\n"
    )
    program = (
        "import asyncio, os, sys, pathlib\n"
        "from vidgen_worker.media import children, outputs as media\n"
        "children._CHILD = pathlib.Path(sys.argv[2])\n"
        "path = media.Path(media.__file__).parents[2]\n"
        "os.environ['PYTHONPATH'] = str(path)\n"
        "media.hide_environment()\n"
        "async def main():\n"
        "    looking = media.Media(max_image_bytes=9999, max_video_bytes=9999)\n"
        "    try:\n"
        "        await looking.check_image(pathlib.Path(sys.argv[1]), '320:180')\n"
        "    except Exception as error:\n"
        "        print(error.details)\n"
        "    await looking.aclose()\n"
        "asyncio.run(main())\n"
    )
    root = str(Path(media_children.__file__).parents[2])
    spy.write_text(
        spy.read_text().replace("os.environ['PYTHONPATH'].split(os.pathsep)[0]", repr(root))
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path / "a.png"), str(spy),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": root, "RUNWAYML_API_SECRET": "key_secret"},
    )  # fmt: skip
    said = (await parent.communicate())[0].decode()
    assert re.search(r"NoNewPrivs:\s+1\b", said)
    assert re.search(r"CapEff:\s+0+\b", said)
    assert "PermissionError" in said
    assert "key_secret" not in said


async def test_a_child_ends_with_its_parent_in_mid_job(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    program = (
        "import asyncio, sys, pathlib\n"
        "from vidgen_worker.media.outputs import Media\n"
        "async def main():\n"
        "    media = Media(max_image_bytes=9999, max_video_bytes=9999)\n"
        "    job = asyncio.create_task(media.check_image(pathlib.Path(sys.argv[1]), '320:180'))\n"
        "    while not media.child_pids:\n"
        "        await asyncio.sleep(0)\n"
        "    print(*media.child_pids, flush=True)\n"
        "    await job\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        str(tmp_path / "a.png"),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(media_children.__file__).parents[2])},
    )
    assert parent.stdout is not None
    child = psutil.Process(int(await parent.stdout.readline()))
    parent.kill()
    await parent.wait()
    await asyncio.to_thread(child.wait, 10)
    assert not child.is_running()


async def test_a_child_that_can_not_start_is_no_fault_of_the_file(
    media: Media, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media_children, "_CHILD", tmp_path / "absent.py")
    with pytest.raises(Fault, match="can't start") as raised:
        await media.check_image(picture(tmp_path / "a.png"), RATIO)
    assert raised.value.name == "scratch_unavailable"


async def test_an_absent_file_is_no_fault_of_the_file(media: Media, tmp_path: Path) -> None:
    with pytest.raises(Fault) as raised:
        await media.check_image(tmp_path / "absent.png", RATIO)
    assert raised.value.name == "scratch_unavailable"
    with pytest.raises(Fault) as raised:
        await media.check_video(tmp_path / "absent.mp4", RATIO, 2)
    assert raised.value.name == "scratch_unavailable"


# Downloads


@asynccontextmanager
async def server(answer: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[str]:
    """Answer every request by writing anything; the connection ends afterwards."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await answer(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.transport.abort()
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/out.png?_jwt=SECRET"
    finally:
        listening.close()
        await listening.wait_closed()


async def downloaded(
    media: Media, target: Path, *pieces: bytes, max_bytes: int = MEGABYTE
) -> Downloaded:
    async def answer(writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()

    async with server(answer) as url:
        return await media.download(url, target, max_bytes)


OK = b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\n"


async def test_a_download_says_size_digest_and_type(media: Media, tmp_path: Path) -> None:
    body = os.urandom(300_000)
    head = OK + b"content-length: 300000\r\n\r\n"
    found = await downloaded(media, tmp_path / "a", head, body)
    assert found == Downloaded(300_000, hashlib.sha256(body).hexdigest(), "image/png")
    assert digest(tmp_path / "a") == (found.size, found.sha256)


async def test_a_download_needs_no_length(media: Media, tmp_path: Path) -> None:
    assert (await downloaded(media, tmp_path / "a", OK + b"\r\n", b"abc")).size == 3


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"HTTP/1.1 403 Forbidden\r\ncontent-length: 1\r\n\r\n", b"x"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 1\r\n\r\n", b"x"),
        (b"HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 503 Unavailable\r\ncontent-length: 1\r\n\r\n", b"x"),
        (b"HTTP/1.1 206 Partial\r\ncontent-length: 1\r\n\r\n", b"x"),
        (OK + b"content-length: 0\r\n\r\n", b""),
        (OK + b"content-length: 500\r\n\r\n", b""),
        (OK + b"\r\n", b"\x1f\x8b\x08 and no more of it"),
        (b"HTTP/1.1 206 Partial\r\ncontent-range: bytes 0-0/9\r\n\r\n", b"x"),
        (b"HTTP/1.1 302 Found\r\nlocation: ftp://x/y\r\ncontent-length: 0\r\n\r\n", b""),
        (b"nonsense\r\n\r\n", b""),
        (b"", b""),
    ],
)
async def test_what_does_not_arrive_whole_is_unavailable_and_leaves_no_file(
    media: Media, tmp_path: Path, head: bytes, body: bytes
) -> None:
    with pytest.raises(Fault) as raised:
        await downloaded(media, tmp_path / "a", head, body)
    assert raised.value.name == "output_unavailable"
    assert "/out.png" in raised.value.details
    assert "SECRET" not in raised.value.details
    assert is_empty(tmp_path)


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize(
    "head",
    [
        OK + b"content-encoding: aws-chunked\r\n\r\n",
        OK + b"content-encoding: gzip\r\n\r\n",
        OK + b"content-length: 99999999\r\n\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\nC8\r\n",
        OK + b"content-length: 201\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n",
        b"HTTP/1.1 206 Partial\r\ncontent-range: bytes 0-199/200\r\n\r\n",
        b"HTTP/1.1 203 Other\r\n\r\n",
    ],
)
async def test_bytes_that_are_all_there_are_kept_whatever_a_header_says_of_them(
    media: Media, tmp_path: Path, head: bytes
) -> None:
    body = os.urandom(200)
    found = await downloaded(media, tmp_path / "a", head, body)
    assert (tmp_path / "a").read_bytes() == body
    says_more = b"99999999" in head or b"201" in head or b"chunked\r\n\r\nC8" in head
    assert (found.doubt is not None) is says_more


async def test_a_file_that_a_server_compressed_is_decompressed(
    media: Media, tmp_path: Path
) -> None:
    body = os.urandom(200_000)
    found = await downloaded(media, tmp_path / "a", OK + b"\r\n", gzip.compress(body))
    assert found == Downloaded(200_000, hashlib.sha256(body).hexdigest(), "image/png")
    assert (tmp_path / "a").read_bytes() == body


async def test_a_compressed_file_that_grows_without_end_is_too_large(
    media: Media, tmp_path: Path
) -> None:
    bomb = gzip.compress(bytes(50 * MEGABYTE))
    with pytest.raises(Fault) as raised:
        await downloaded(media, tmp_path / "a", OK + b"\r\n", bomb)
    assert raised.value.name == "output_too_large"
    assert is_empty(tmp_path)


@pytest.mark.parametrize("head", [OK + b"content-length: 1001\r\n\r\n", OK + b"\r\n"])
async def test_more_bytes_than_the_limit_are_too_large(
    media: Media, tmp_path: Path, head: bytes
) -> None:
    with pytest.raises(Fault) as raised:
        await downloaded(media, tmp_path / "a", head, b"x" * 1001, max_bytes=1000)
    assert raised.value.name == "output_too_large"
    assert is_empty(tmp_path)
    assert (await downloaded(media, tmp_path / "a", OK + b"\r\n", b"x" * 1000)).size == 1000


@pytest.mark.parametrize(("idle", "total"), [(0.2, 30.0), (30.0, 0.2)])
async def test_a_download_that_stands_still_ends(tmp_path: Path, idle: float, total: float) -> None:
    media = Media(
        max_image_bytes=MEGABYTE,
        max_video_bytes=MEGABYTE,
        idle_timeout=timedelta(seconds=idle),
        total_timeout=timedelta(seconds=total),
        allow_loopback=True,
    )

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"content-length: 9\r\n\r\nabc")
        await writer.drain()
        await writer.wait_closed()

    async with server(answer) as url:
        if total < idle:
            with pytest.raises(Fault, match="not finished") as raised:
                await media.download(url, tmp_path / "a", MEGABYTE)
            assert raised.value.name == "output_unavailable"
        else:
            found = await media.download(url, tmp_path / "a", MEGABYTE)
            assert (found.size, "ReadTimeout" in str(found.doubt)) == (3, True)
    await media.aclose()


def led_to(place: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nlocation: {place}\r\ncontent-length: 0\r\n\r\n".encode()


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize(
    "place",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://0.0.0.0:{port}/",
        "http://10.0.0.1/",
        "http://[fd00::1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://100.64.0.1/",
        "http://somebody@127.0.0.1:{port}/",
        "file:///etc/passwd",
    ],
)
async def test_a_download_follows_no_redirect_to_a_private_address(
    media: Media, tmp_path: Path, place: str
) -> None:
    asked = 0

    async def answer(writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        port = writer.get_extra_info("sockname")[1]
        writer.write(led_to(place.format(port=port)))
        await writer.drain()

    async with server(answer) as url:
        with pytest.raises(Fault, match="leads to") as raised:
            await media.download(url, tmp_path / "a", MEGABYTE)
    assert raised.value.name == "output_unavailable"
    assert asked == 1
    assert is_empty(tmp_path)


async def test_a_sandbox_follows_redirects_but_not_for_ever(tmp_path: Path) -> None:
    media = Media(max_image_bytes=MEGABYTE, max_video_bytes=MEGABYTE, allow_loopback=True)
    answers = [led_to("/b"), OK + b"\r\nwhole", *[led_to("/c")] * 9]

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(answers.pop(0))
        await writer.drain()

    async with server(answer) as url:
        assert (await media.download(url, tmp_path / "a", MEGABYTE)).size == 5
        with pytest.raises(Fault, match="more than 5 times"):
            await media.download(url, tmp_path / "b", MEGABYTE)
    await media.aclose()


@pytest.mark.parametrize("trouble", ["full", "gone", "a file in its way"])
async def test_a_folder_that_takes_no_file_is_no_fault_of_the_download(
    media: Media, tmp_path: Path, trouble: str
) -> None:
    target = tmp_path / "folder" / "a"
    if trouble == "full":
        target.parent.mkdir()
        target.symlink_to("/dev/full")
    elif trouble != "gone":
        (tmp_path / "folder").write_text("")
    with pytest.raises(Fault) as raised:
        await downloaded(media, target, OK + b"\r\n", b"abc" * 999)
    assert raised.value.name == "scratch_unavailable"
    assert str(target.parent) in raised.value.details


async def test_a_machine_without_open_files_left_blames_no_file(tmp_path: Path) -> None:
    program = (
        "import asyncio, pathlib, resource, sys\n"
        "from vidgen_worker.media.outputs import Media\n"
        "from vidgen_worker.domain.faults import Fault\n"
        "async def main():\n"
        "    media = Media(max_image_bytes=9999, max_video_bytes=9999, allow_loopback=True)\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))\n"
        "    hogs = []\n"
        "    try:\n"
        "        while True:\n"
        "            hogs.append(open('/dev/null'))\n"
        "    except OSError:\n"
        "        pass\n"
        "    target = pathlib.Path(sys.argv[1])\n"
        "    for work in (media.check_image(target, '1:1'),\n"
        "                 media.download('http://127.0.0.1:1/a', target, 9)):\n"
        "        try:\n"
        "            await work\n"
        "        except Fault as fault:\n"
        "            print(fault.name)\n"
        "asyncio.run(main())\n"
    )
    root = str(Path(media_children.__file__).parents[2])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path / "a"),
        stdout=asyncio.subprocess.PIPE, env=os.environ | {"PYTHONPATH": root},
    )  # fmt: skip
    said = (await process.communicate())[0].decode().split()
    assert said == ["scratch_unavailable"] * 2


async def test_a_file_under_which_the_kernel_kills_two_children_is_the_machines_trouble(
    stick: Callable[[], Stuck],
) -> None:
    stuck = stick()
    first = await stuck.child()
    os.kill(first, signal.SIGKILL)
    await stuck.end_of(first)
    os.kill(await stuck.child(first), signal.SIGKILL)
    with pytest.raises(Fault, match="memory") as raised:
        await stuck.job
    assert raised.value.name == "scratch_unavailable"


@pytest.mark.usefixtures("transport")
async def test_a_cancelled_download_leaves_no_file(media: Media, tmp_path: Path) -> None:
    began = asyncio.Event()

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"content-length: 9\r\n\r\nabc")
        began.set()
        await writer.wait_closed()

    async with server(answer) as url:
        download = asyncio.create_task(media.download(url, tmp_path / "a", MEGABYTE))
        await began.wait()
        download.cancel()
        with pytest.raises(asyncio.CancelledError):
            await download
    assert is_empty(tmp_path)


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize("url", ["ftp://example.com/a", "not a url", "http://127.0.0.1:1/a"])
async def test_an_address_that_can_not_be_fetched_is_unavailable(
    media: Media, tmp_path: Path, url: str
) -> None:
    with pytest.raises(Fault) as raised:
        await media.download(url, tmp_path / "a", MEGABYTE)
    assert raised.value.name == "output_unavailable"


@pytest.mark.usefixtures("transport")
async def test_eight_downloads_at_once_take_constant_memory(media: Media, tmp_path: Path) -> None:
    size, piece = 16 * 2**20, bytes(2**16)

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(OK + f"content-length: {size}\r\n\r\n".encode())
        for _ in range(size // len(piece)):
            writer.write(piece)
            await writer.drain()

    async with server(answer) as url:
        tracemalloc.start()
        found = await asyncio.gather(
            *(media.download(url, tmp_path / str(n), size) for n in range(8))
        )
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert [each.size for each in found] == [size] * 8
    assert peak < 10 * 2**20


async def test_the_doubles_outputs_pass(
    media: Media, runway: RunwayControl, tmp_path: Path
) -> None:
    """See that what the sandbox renders is what a provider would deliver."""
    from vidgen_worker.domain.resolution import image_models, video_models  # noqa: PLC0415
    from vidgen_worker.providers.runway.adapter import Runway, image_request, video_request  # noqa: PLC0415

    provider = Runway(runway.key, base_url=runway.url, submit_timeout=timedelta(seconds=30))
    still = image_request(image_models()["gen4_image"], "p", "1280:720", None)
    frame = (await provider.poll((await provider.submit(still)).generation_id)).outputs[0]
    await media.download(frame, tmp_path / "a.png", MEGABYTE)
    assert not (await media.check_image(tmp_path / "a.png", "1280:720")).conformed
    clip = replace(
        video_request(video_models()["gen4_turbo"], "p", "1280:720", 5), source=frame
    )  # fmt: skip
    output = (await provider.poll((await provider.submit(clip)).generation_id)).outputs[0]
    await media.download(output, tmp_path / "a.mp4", MEGABYTE)
    found = await media.check_video(tmp_path / "a.mp4", "1280:720", 5)
    assert (found.conformed, found.right_duration) == (False, True)
    await provider.aclose()
