"""The sandbox's clips: a first frame that moves gently, as a real H.264 MP4.

The camera drifts closer (or away) over the picture, and a thin bar at the bottom shows the time. It
never decides what the picture is, and never touches the event loop: call it in a thread.
"""

import io
from collections.abc import Iterable
from functools import cache
from typing import Literal

import av
from av.video.stream import VideoStream
from PIL import Image, ImageOps

from vidgen_worker.sandbox.runway.drawing import Size, plain

FRAMES_PER_SECOND = 24
ZOOM = 0.06
BAR_SHARE = 160
INDEX_BYTES = 4096
INDEX_BYTES_PER_FRAME = 48

Container = Literal["mp4", "webm"]


def clip(first_frame: Image.Image, size: Size, seconds: int, container: Container = "mp4") -> bytes:
    """Film `first_frame` (cropped from the centre) for exactly so many seconds."""
    width, height = size
    picture = ImageOps.fit(first_frame.convert("RGB"), size, Image.Resampling.BICUBIC)
    count = seconds * FRAMES_PER_SECOND
    bar = max(2, height // BAR_SHARE)
    lit = Image.new("RGB", (width, bar), (255, 255, 255))

    def frame(number: int) -> Image.Image:
        share = number / max(1, count - 1)
        eased = share * share * (3 - 2 * share)
        cut = ZOOM * eased / 2
        # A drift that is not quite centred looks like a moving camera.
        box = (
            width * cut * 1.3,
            height * cut * 0.8,
            width * (1 - cut * 0.7),
            height * (1 - cut * 1.2),
        )
        moved = picture.resize(size, Image.Resampling.BILINEAR, box)
        moved.paste(lit.crop((0, 0, max(1, round(width * share)), bar)), (0, height - bar))
        return moved

    return _encoded((frame(number) for number in range(count)), count, size, container)


@cache
def plain_clip(size: Size, seconds: int, container: Container = "mp4") -> bytes:
    """Return the plainest clip of this size and length, encoded once per process."""
    picture = plain(size)
    count = seconds * FRAMES_PER_SECOND
    return _encoded((picture for _ in range(count)), count, size, container)


def _encoded(
    pictures: Iterable[Image.Image], count: int, size: Size, container: Container
) -> bytes:
    """Encode `count` pictures, in memory: a file would stay behind if we were killed meanwhile."""
    codec, options = {
        "mp4": ("libx264", {"preset": "ultrafast", "crf": "26", "tune": "fastdecode"}),
        "webm": ("libvpx", {"deadline": "realtime", "cpu-used": "8"}),
    }[container]
    # Room for the index at the beginning, which is what faststart would move there.
    index_bytes = INDEX_BYTES + INDEX_BYTES_PER_FRAME * count
    muxing = {"moov_size": str(index_bytes)} if container == "mp4" else {}
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=muxing) as output:
        stream = output.add_stream(codec, rate=FRAMES_PER_SECOND, options=options)
        assert isinstance(stream, VideoStream)  # noqa: S101 - the codec says so
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            frame = av.VideoFrame.from_image(picture)  # type: ignore[no-untyped-call]
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()
