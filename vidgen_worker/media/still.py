"""Stills: decode a picture, and make a PNG of the exact size of what a viewer shows of it.

Runs in the child.
"""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.filter import Graph
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from vidgen_worker.media.filters import Shown, fitting, has_alpha, way_of
from vidgen_worker.media.formats import (
    NoOutputError,
    UndecodableError,
    form,
    head_of,
    proves_whole,
)
from vidgen_worker.media.libav import STRICT, opened, video_stream
from vidgen_worker.media.pictures import Still, still

SMALLEST = 8
"""A picture with fewer pixels on a side is a placeholder for a missing one."""
_DECODERS = {"png": "png", "jpeg": "mjpeg", "webp": "webp", "bmp": "bmp", "tiff": "tiff"}


def check_image(job: dict[str, Any]) -> dict[str, Any]:
    """Decode a picture; write a PNG of the exact size unless it is one already."""
    source, target = Path(job["path"]), Path(job["target"])
    form(head_of(source))
    found = still(source.read_bytes())
    frame, codec, shown = _decoded(found)
    if min(frame.width, frame.height) < SMALLEST:
        raise NoOutputError(f"a picture of {frame.width}x{frame.height} is a placeholder")
    clear = has_alpha(frame) and _is_see_through(frame)
    size = shown.size(frame.width, frame.height)
    conform = (
        (codec, size) != ("png", (job["width"], job["height"]))
        or shown != Shown() or clear or not found.plain
    )  # fmt: skip
    if conform:
        graph = fitting(
            frame, shown, job["width"], job["height"],
            pixels="rgba" if clear else "rgb24", keep_alpha=clear,
        )  # fmt: skip
        graph.vpush(frame)
        graph.vpush(None)
        target.write_bytes(_png(graph.vpull()))
    return {
        "width": size[0], "height": size[1], "format": codec, "conformed": conform,
        "whole": proves_whole(found.format, source), "file": str(target if conform else source),
    }  # fmt: skip


def _decoded(found: Still) -> tuple[VideoFrame, str, Shown]:
    """Return a picture, the first one of an animation, with its codec and how it is shown."""
    decoder = _DECODERS.get(found.format)
    if decoder is None:
        with opened(found.format, found.data) as container:
            if len(container.streams.video) > 1 and found.format == "mov":
                raise UndecodableError("a picture of several parts is not put together here")
            stream = video_stream(container)
            frame = next(container.decode(stream), None)
            name = stream.codec_context.name
            shape = stream.codec_context.sample_aspect_ratio
        if frame is None:
            raise UndecodableError("there is no picture in the file")
        return frame, name, Shown(way_of(frame), shape or Fraction(1))
    context = av.CodecContext.create(decoder, "r")
    assert isinstance(context, VideoCodecContext)  # noqa: S101 - for the type checker
    context.options = dict(STRICT)
    frames = [*context.decode(av.Packet(found.data)), *context.decode(None)]
    if not frames:
        raise UndecodableError("there is no picture in the file")
    frame = frames[0]
    if found.canvas is not None:
        frame = _placed(frame, found.canvas)
    return frame, decoder, Shown(found.way, found.shape or Fraction(1))


def _placed(frame: VideoFrame, canvas: tuple[int, int, int, int]) -> VideoFrame:
    """Place the first picture of an animation on its canvas, which is otherwise transparent."""
    x, y, width, height = canvas
    if (x, y, width, height) == (0, 0, frame.width, frame.height):
        return frame
    graph = Graph()
    buffer = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 25)
    )
    nodes = [
        graph.add("format", "rgba"),
        graph.add("pad", f"w={width}:h={height}:x={x}:y={y}:color=black@0"),
    ]
    graph.link_nodes(buffer, *nodes, graph.add("buffersink")).configure()
    graph.vpush(frame)
    graph.vpush(None)
    return graph.vpull()


def _is_see_through(frame: VideoFrame) -> bool:
    """Whether any pixel is transparent: many pictures have alpha, and few use it."""
    plane = frame.reformat(format="gbrap").planes[3]
    alpha, step, width = bytes(plane), plane.line_size, frame.width
    rows = (alpha[row * step : row * step + width] for row in range(frame.height))
    return any(row.count(b"\xff") != width for row in rows)


def _png(frame: VideoFrame) -> bytes:
    encoder = av.CodecContext.create("png", "w")
    assert isinstance(encoder, VideoCodecContext)  # noqa: S101 - for the type checker
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, frame.format.name
    encoder.time_base = Fraction(1, 25)
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])
