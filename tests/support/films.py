"""Films and stills to look at: drawn in four colours, so that the way up and the shape show."""

import asyncio
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.video.reformatter import ColorRange
from PIL import Image

from vidgen_worker.media.outputs import Clip, Media, Picture

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


Colour = tuple[int, int, int]


Corners = tuple[Colour, Colour, Colour, Colour]
"""Top left, top right, bottom left, bottom right."""


AS_DRAWN: Corners = (RED, GREEN, BLUE, WHITE)


LARGE = 20_000_000


class Looking:
    """The module under test, with one child for all tests: starting one is most of a look."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.media = Media(children=1, max_image_bytes=LARGE, max_video_bytes=LARGE)

    def check_image(self, file: Path, ratio: str) -> Picture:
        return self.runner.run(self.media.check_image(file, ratio))

    def check_video(self, file: Path, ratio: str, duration: int) -> Clip:
        return self.runner.run(self.media.check_video(file, ratio, duration))


def drawn(size: tuple[int, int], corners: Corners = AS_DRAWN) -> Image.Image:
    image = Image.new("RGB", size)
    half = (size[0] // 2, size[1] // 2)
    for number, colour in enumerate(corners):
        x, y = number % 2 * half[0], number // 2 * half[1]
        image.paste(colour, (x, y, size[0] if x else half[0], size[1] if y else half[1]))
    return image


def corners(image: Image.Image) -> Corners:
    """Return the nearest pure colours in the middle of each quarter."""
    shown = image.convert("RGB")
    found = []
    for y in (shown.height // 4, shown.height * 3 // 4):
        for x in (shown.width // 4, shown.width * 3 // 4):
            pixel = shown.getpixel((x, y))
            assert isinstance(pixel, tuple)
            found.append(pure(pixel))
    return (found[0], found[1], found[2], found[3])


def pure(pixel: tuple[float, ...]) -> Colour:
    red, green, blue = (255 if part > 128 else 0 for part in pixel)
    return (red, green, blue)


def frames(file: Path) -> list[Image.Image]:
    """Return the frames of an MP4, the size they are shown in checked to be the stored one."""
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        assert stream.sample_aspect_ratio in (None, 1)
        decoded = list(container.decode(stream))
        assert {frame.rotation for frame in decoded} == {0}
        return [frame.to_image() for frame in decoded]  # type: ignore[no-untyped-call]


SIZE = (160, 90)


FLAT = 0x40000000


ONE = 0x10000


def film(  # noqa: PLR0913 - what a film can be
    file: Path,
    *,
    size: tuple[int, int] = SIZE,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    matrix: tuple[int, int, int, int] | None = None,
    shape: Fraction | None = None,
    full_range: bool = False,
    count: int = 24,
    draw: Callable[[int], Image.Image] | None = None,
    options: dict[str, str] | None = None,
    sound: tuple[str, int, str] | None = None,
) -> Path:
    with av.open(str(file), "w") as output:
        stream = output.add_stream(codec, rate=24, options=options or {})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        if matrix is not None:
            right_x, down_x, right_y, down_y = (value * ONE for value in matrix)
            stream.set_display_matrix((right_x, down_x, 0, right_y, down_y, 0, 0, 0, FLAT))
        if shape is not None:
            stream.codec_context.sample_aspect_ratio = shape
        if full_range:
            stream.codec_context.color_range = 2
        audio = _silent(output, sound) if sound else None
        for number in range(count):
            image = draw(number) if draw else drawn(size)
            frame = av.VideoFrame.from_image(image)  # type: ignore[no-untyped-call]
            wanted = ColorRange.JPEG if full_range else None
            output.mux(stream.encode(frame.reformat(format=pixels, dst_color_range=wanted)))
        output.mux(stream.encode(None))
        if audio is not None:
            for heard in _silence(audio, count / 24):
                output.mux(audio.encode(heard))
            output.mux(audio.encode(None))
    return file


def _silent(output: av.container.OutputContainer, sound: tuple[str, int, str]) -> av.AudioStream:
    stream = output.add_stream(sound[0], rate=sound[1], layout=sound[2])
    assert isinstance(stream, av.AudioStream)
    return stream


def _silence(stream: av.AudioStream, seconds: float) -> Iterator[av.AudioFrame]:
    context, step = stream.codec_context, 1024
    for number in range(int(context.sample_rate * seconds / step)):
        frame = av.AudioFrame(format=context.format.name, layout=context.layout.name, samples=step)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        frame.sample_rate, frame.pts = context.sample_rate, number * step
        yield frame


def trimmed(file: Path, start: int, length: int | None = None) -> Path:
    """Let the edit list of a film begin later, by units of its media, and last so long."""
    content = bytearray(file.read_bytes())
    place = content.index(b"elst") + 4 + 8
    duration, media_time = struct.unpack_from(">ii", content, place)
    struct.pack_into(">ii", content, place, length or duration, media_time + start)
    file.write_bytes(content)
    return file


def size_of(content: bytes) -> str:
    """Width and height of a picture or clip, as "width:height"."""
    import io  # noqa: PLC0415

    import av  # noqa: PLC0415

    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        return f"{stream.width}:{stream.height}"
