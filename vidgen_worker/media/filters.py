"""Bring a picture to a size as a viewer shows it: orientation, shape, range, alpha, colours.

It is cropped before it is scaled, so that nothing is scaled that is thrown away. Runs in the child.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import av
from av.filter import Graph
from av.video.frame import VideoFrame

# How to turn a stored picture for display, for each orientation as EXIF numbers them.
TURNS: dict[int, tuple[tuple[str, str], ...]] = {
    1: (),
    2: (("hflip", ""),),
    3: (("hflip", ""), ("vflip", "")),
    4: (("vflip", ""),),
    5: (("transpose", "cclock_flip"),),
    6: (("transpose", "clock"),),
    7: (("transpose", "clock_flip"),),
    8: (("transpose", "cclock"),),
}
LYING = frozenset({5, 6, 7, 8})
"""Orientations that exchange width and height."""
# The same, by the signs of a display matrix: which of x and y goes right, which goes down.
_WAYS = {
    (1, 0, 0, 1): 1, (-1, 0, 0, 1): 2, (-1, 0, 0, -1): 3, (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5, (0, 1, -1, 0): 6, (0, -1, -1, 0): 7, (0, -1, 1, 0): 8,
}  # fmt: skip

UNKNOWN = 2
"""libav's number for a colour property that the file does not state."""
BT709, BT470BG, TV = 1, 5, 1
HD_LINES = 720
"""From this height on, pictures that don't state their colours are read as BT.709."""
HDR = {16: "smpte2084", 18: "arib-std-b67"}
"""Brightness curves beyond what an 8-bit H.264 shows."""


@dataclass(frozen=True, slots=True)
class Shown:
    """How a frame is to be shown: its orientation as EXIF counts it, the shape of its pixels."""

    way: int = 1
    shape: Fraction = Fraction(1)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """The size in square pixels that a viewer sees."""
        wide = max(1, round(width * self.shape))
        return (height, wide) if self.way in LYING else (wide, height)


def way_of(frame: VideoFrame) -> int:
    """Return the orientation that a film's frame comes with."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # side data that PyAV has no name for hides all of it
        return {90: 8, 180: 3, -180: 3, -90: 6, 270: 6}.get(round(frame.rotation), 1)
    if matrix is None:
        return 1
    values = struct.unpack("9i", bytes(cast("Any", matrix)))
    right_x, down_x, right_y, down_y = values[0], values[1], values[3], values[4]
    largest = max(map(abs, (right_x, down_x, right_y, down_y)))
    # Players turn by right angles only: the nearest one.

    def sign(value: int) -> int:
        return 0 if abs(value) * 2 < largest else (value > 0) - (value < 0)

    return _WAYS.get((sign(right_x), sign(down_x), sign(right_y), sign(down_y)), 1)


def has_alpha(frame: VideoFrame) -> bool:
    """Whether its pixels have an alpha channel."""
    name = frame.format.name
    return name == "pal8" or name.startswith(("yuva", "gbrap", "ya8", "ya16")) or any(
        order in name for order in ("rgba", "bgra", "argb", "abgr")
    )  # fmt: skip


def fitting(  # noqa: PLR0913 - what is to be drawn on what
    frame: VideoFrame, shown: Shown, width: int, height: int, *, pixels: str, keep_alpha: bool
) -> Graph:
    """Build the filters that bring frames like this one to a size, centre kept."""
    graph = Graph()
    lying = shown.way in LYING
    across, down = (height, width) if lying else (width, height)
    buffer = graph.add("buffer", _source(frame))
    alpha = has_alpha(frame)
    nodes = [("crop", _crop(frame, Fraction(across, down) / shown.shape))]
    if alpha:
        # A transparent pixel's hidden colour must show neither at edges nor behind it.
        nodes += [("format", "gbrap"), ("premultiply", "inplace=1")]
    nodes += [
        ("scale", f"w={across}:h={down}:flags=lanczos+accurate_rnd:{_colours(frame, pixels)}")
    ]
    if alpha and keep_alpha:
        nodes += [("unpremultiply", "inplace=1")]
    elif alpha:
        nodes += [
            ("format", "gbrp"),
            ("scale", f"out_color_matrix=bt709:out_range={_range(pixels)}"),
        ]
    nodes += [*TURNS[shown.way], ("setsar", "1"), ("format", pixels)]
    made = [graph.add(name, arguments) for name, arguments in nodes]
    graph.link_nodes(buffer, *made, graph.add("buffersink")).configure()
    return graph


def _source(frame: VideoFrame) -> str:
    unit = frame.time_base or Fraction(1, 1000)
    said = (
        f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}"
        f":time_base={unit.numerator}/{unit.denominator}:pixel_aspect=1/1"
    )
    return f"{said}:colorspace={int(frame.colorspace)}:range={int(frame.color_range)}"


def _crop(frame: VideoFrame, shape: Fraction) -> str:
    """Keep the largest part of this shape, in pixels as they are stored."""
    width, height = frame.width, frame.height
    if width > height * shape:
        width = max(round(height * shape), min(width, 2))
    else:
        height = max(round(width / shape), min(height, 2))
    return f"w={width}:h={height}"


def _colours(frame: VideoFrame, pixels: str) -> str:
    """State the colours of input and output; guess those that the picture does not state."""
    said = []
    if _is_yuv(frame) and frame.colorspace in (UNKNOWN, 0):
        said.append(f"in_color_matrix={'bt709' if frame.height >= HD_LINES else 'bt601'}")
    if frame.color_trc in HDR:
        said.append(f"in_transfer={HDR[frame.color_trc]}:in_primaries=bt2020")
        said.append("out_transfer=bt709:out_primaries=bt709")
    if pixels.startswith("yuv"):
        said.append("out_color_matrix=bt709")
    said.append(f"out_range={_range(pixels)}")
    return ":".join(said)


def _range(pixels: str) -> str:
    return "tv" if pixels.startswith("yuv") else "pc"


def _is_yuv(frame: VideoFrame) -> bool:
    return frame.format.name.startswith(("yuv", "nv", "p0", "uyvy", "yuyv", "vuy", "xv", "y2"))


def pulled(graph: Graph) -> Iterator[VideoFrame]:
    """Yield what the filters have ready."""
    while True:
        try:
            yield graph.vpull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
