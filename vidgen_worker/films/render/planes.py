"""Frames as three planes of brightness and colour, on which captions, logos and fades are drawn.

All frames of a render are yuv420p, BT.709, video range: a fixed format at every seam, and no
filter graph that could choose another one. Nothing here knows what is drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

PIXELS = "yuv420p"
BLACK = (16, 128, 128)
BT709, TV = 1, 1
Planes = tuple[Image.Image, Image.Image, Image.Image]
"""Brightness, and the two colour differences at half the width and height."""


@dataclass(frozen=True, slots=True)
class Overlay:
    """A picture to lay over frames at `x`, `y`, all even numbers of pixels."""

    x: int
    y: int
    planes: Planes
    masks: Planes


def planes_of(frame: VideoFrame) -> Planes:
    """Return views of a frame's planes; whoever draws on them copies them first."""
    half = (frame.width // 2, frame.height // 2)
    y, u, v = (
        _plane(plane, size)
        for plane, size in zip(frame.planes, ((frame.width, frame.height), half, half), strict=True)
    )
    return y, u, v


def _plane(plane: VideoPlane, size: tuple[int, int]) -> Image.Image:
    data = cast("Any", memoryview(plane))
    return Image.frombuffer("L", size, data, "raw", "L", plane.line_size, 1)


def frame_of(planes: Planes) -> VideoFrame:
    """Make a new frame of planes."""
    frame = VideoFrame(*planes[0].size, PIXELS)
    for plane, picture in zip(frame.planes, planes, strict=True):
        fill(plane, picture)
    frame.colorspace, frame.color_range = BT709, TV
    return frame


def fill(plane: VideoPlane, picture: Image.Image) -> None:
    """Write a picture into a plane whose rows may be longer."""
    rows = picture.tobytes("raw", picture.mode, plane.line_size, 1)
    memoryview(plane)[: len(rows)] = rows


def plain(size: tuple[int, int]) -> Planes:
    """Return a black picture."""
    half = (size[0] // 2, size[1] // 2)
    y, u, v = (Image.new("L", s, c) for s, c in zip((size, half, half), BLACK, strict=True))
    return y, u, v


def blended(one: Planes, other: Planes, share: float) -> Planes:
    """Mix two pictures of one size; `share` is how much of the other one there is, 0 to 1."""
    y, u, v = (Image.blend(a, b, share) for a, b in zip(one, other, strict=True))
    return y, u, v


def pasted(planes: Planes, overlays: Sequence[Overlay]) -> Planes:
    """Return a copy of a picture with others laid over it."""
    y, u, v = (plane.copy() for plane in planes)
    for overlay in overlays:
        for number, (plane, picture) in enumerate(zip((y, u, v), overlay.planes, strict=True)):
            at = (overlay.x, overlay.y) if number == 0 else (overlay.x // 2, overlay.y // 2)
            plane.paste(picture, at, overlay.masks[number])
    return y, u, v


def overlay_of(picture: Image.Image, x: int, y: int) -> Overlay:
    """Make an overlay of an RGBA picture whose width and height are even."""
    frame = VideoFrame(*picture.size, "rgba")
    fill(frame.planes[0], picture)
    made = frame.reformat(
        format="yuv444p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
    )
    whole = [_plane(plane, picture.size) for plane in made.planes]
    alpha = picture.getchannel("A")
    half = (picture.width // 2, picture.height // 2)
    colours = [plane.resize(half, Image.Resampling.BOX) for plane in whole[1:]]
    mask = alpha.resize(half, Image.Resampling.BOX)
    return Overlay(x, y, (whole[0].copy(), colours[0], colours[1]), (alpha, mask, mask))


def rgb_of(frame: VideoFrame) -> Image.Image:
    """Return a frame as a picture for people."""
    made = frame.reformat(
        format="rgb24", src_colorspace=Colorspace.ITU709, src_color_range=ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
    )  # fmt: skip
    plane = made.planes[0]
    data = cast("Any", memoryview(plane))
    return Image.frombuffer(
        "RGB", (made.width, made.height), data, "raw", "RGB", plane.line_size, 1
    ).copy()


def frame_from_rgb(picture: Image.Image) -> VideoFrame:
    """Make a frame of an RGB picture."""
    frame = VideoFrame(*picture.size, "rgb24")
    fill(frame.planes[0], picture)
    return frame
