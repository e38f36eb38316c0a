"""Compression by measured quality: which rate factor makes a film as good as it is meant to be.

XPSNR is comparable within one encoder only, so each has its own thresholds. They stand for VMAF 96,
93 and 86 of one film clip in 720p, on lines through a few measured points: the wheel has no VMAF to
measure with, and other clips miss these by some points. It writes no file.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import av
from av.error import BlockingIOError as NothingYetError
from av.error import EOFError as EndError
from av.filter import Graph
from av.filter.context import FilterContext
from av.video.format import VideoFormat
from av.video.frame import VideoFrame

from vidgen_worker.films.job import Job
from vidgen_worker.films.presets import FORMATS
from vidgen_worker.films.render.files import ENCODERS
from vidgen_worker.films.render.planes import PIXELS
from vidgen_worker.media.libav import THREADS

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext

SHORTEST = 3
"""Seconds: a shorter film costs less to encode than to try out."""
SAMPLES, SAMPLE_FRAMES = 3, 24
"""How many samples are tried, and their length: these frames alone are kept in memory."""
MISALIGNED = 25.0
"""dB: less means that other frames were compared, and not that they look bad."""
NEAR = 0.4
"""dB that a result may miss its threshold by."""
FLAWLESS = 99.0
"""dB at most, also of two films that are the same."""


@dataclass(frozen=True, slots=True)
class Scale:
    """An encoder's rate factors and what XPSNR a target asks of it.

    `usual` are the rate factors of films that are not tried out, `tried` the two that are tried.
    `thresholds` are the XPSNR of the brightness, in dB.
    """

    decoder: str
    usual: dict[str, int]
    bounds: tuple[int, int]
    tried: tuple[int, int]
    thresholds: dict[str, float]


SCALES = {
    "libx264": Scale(
        "h264", {"best": 18, "good": 21, "small": 28}, (14, 36), (20, 28),
        {"best": 39.9, "good": 37.8, "small": 33.9},
    ),
    "libsvtav1": Scale(
        "libdav1d", {"best": 26, "good": 37, "small": 50}, (18, 58), (30, 46),
        {"best": 38.4, "good": 36.3, "small": 33.0},
    ),
}  # fmt: skip


class MisalignedError(Exception):
    """Two films that should show the same don't: a defect of ours."""


@dataclass(frozen=True, slots=True)
class Guess:
    """A rate factor, and how many dB one more of it costs."""

    crf: int
    slope: float


def scale_of(job: Job) -> Scale | None:
    """Return the scale of a job's encoder; None: it has no rate factor."""
    return SCALES.get(str(FORMATS[job.format].encoder))


def samples(frames: Iterator[VideoFrame], job: Job) -> list[list[VideoFrame]]:
    """Take a few stretches out of a film, spread over it."""
    between = job.frames / SAMPLES
    starts = [round(between * (n + 0.5)) - SAMPLE_FRAMES // 2 for n in range(SAMPLES)]
    taken: list[list[VideoFrame]] = [[] for _ in starts]
    for number, frame in enumerate(frames):
        for start, sample in zip(starts, taken, strict=True):
            if start <= number < start + SAMPLE_FRAMES:
                sample.append(frame)
    return taken


def guess(taken: list[list[VideoFrame]], job: Job, scale: Scale, threshold: float) -> Guess:
    """Try two rate factors on samples of a film, and choose between or beside them."""
    low, high = scale.tried
    best, worst = (
        mean(xpsnr(sample, _tried(sample, job, scale, crf), job) for sample in taken)
        for crf in scale.tried
    )
    slope = max((best - worst) / (high - low), 0.05)
    return Guess(bounded(scale, low + (best - threshold) / slope), slope)


def bounded(scale: Scale, crf: float) -> int:
    """Return a whole rate factor that the encoder is used with."""
    return max(scale.bounds[0], min(scale.bounds[1], round(crf)))


def mean(values: Iterable[float]) -> float:
    """Return the XPSNR of pieces of the same length taken together, in dB."""
    errors = [10 ** (-value / 10) for value in values]
    error = sum(errors) / len(errors)
    return FLAWLESS if error <= 10 ** (-FLAWLESS / 10) else -10 * math.log10(error)


def _tried(frames: list[VideoFrame], job: Job, scale: Scale, crf: int) -> Iterator[VideoFrame]:
    """Encode frames in memory and yield them as a viewer would see them."""
    name = str(FORMATS[job.format].encoder)
    encoder = cast("VideoCodecContext", av.CodecContext.create(name, "w"))
    encoder.options = ENCODERS[name] | {"crf": str(crf)}
    encoder.width, encoder.height, encoder.pix_fmt = job.width, job.height, PIXELS
    encoder.framerate, encoder.time_base = job.fps, 1 / job.fps
    encoder.thread_count = THREADS
    decoder = cast("VideoCodecContext", av.CodecContext.create(scale.decoder, "r"))
    for number, frame in enumerate([*frames, None]):
        if frame is not None:
            frame.pts, frame.time_base, frame.pict_type = number, 1 / job.fps, 0
        for packet in encoder.encode(frame):
            yield from decoder.decode(packet)
    yield from decoder.decode(None)


def xpsnr(originals: Iterable[VideoFrame], made: Iterable[VideoFrame], job: Job) -> float:
    """Compare two films frame by frame; return the XPSNR of their brightness in dB.

    Raises MisalignedError where they don't have the same frames.
    """
    graph = Graph()
    buffers = [
        graph.add_buffer(
            width=job.width, height=job.height, format=VideoFormat(PIXELS), time_base=1 / job.fps
        )
        for _ in range(2)
    ]
    compare, sink = graph.add("xpsnr"), graph.add("buffersink")
    for number, buffer in enumerate(buffers):
        buffer.link_to(compare, 0, number)
    compare.link_to(sink)
    graph.configure()
    found: list[float] = []
    try:
        for number, pair in enumerate(zip(originals, made, strict=True)):
            for buffer, frame in zip(buffers, pair, strict=True):
                frame.pts, frame.time_base = number, 1 / job.fps
                buffer.push(frame)
            found += _values(sink)
    except ValueError as error:
        raise MisalignedError(f"{job.name}: one of two films has more frames") from error
    for buffer in buffers:
        buffer.push(None)
    whole = mean([*found, *_values(sink)])
    if whole < MISALIGNED:
        raise MisalignedError(f"{job.name}: {whole:.1f} dB, other frames were compared")
    return whole


def _values(sink: FilterContext) -> Iterator[float]:
    while True:
        try:
            yield float(sink.pull().metadata["lavfi.xpsnr.xpsnr.y"])
        except (NothingYetError, EndError):
            return
