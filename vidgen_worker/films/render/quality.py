"""Compression by measured quality: which rate factor makes a film as good as it is meant to be.

A target is a VMAF, which is estimated (see `likeness`): no XPSNR stands for one, whatever the
encoder. XPSNR, which compares every frame, says whether two films show the same at all. It writes
no file.
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
from vidgen_worker.films.render.likeness import Estimate, Features, estimated, features
from vidgen_worker.films.render.planes import PIXELS, planes_of
from vidgen_worker.media.libav import THREADS

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext

Pair = tuple[VideoFrame, VideoFrame]
SHORTEST = 3
"""Seconds: a shorter film costs less to encode than to try out."""
SAMPLES, SAMPLE_FRAMES = 3, 24
"""How many samples are tried, and their length: these frames alone are kept in memory."""
MISALIGNED = 25.0
"""dB: less means that other frames were compared, and not that they look bad."""
TARGETS = {"best": 96.0, "good": 93.0, "small": 86.0}
"""The VMAF that each target asks for."""
NEAR = 0.6
"""How much VMAF a result may miss its target by before it is made once more."""
CORRECTIONS = 2
"""How often a result that is off is made again."""
FLATTEST = 0.02
"""The least that one more of a rate factor is taken to add to the logarithm of what is lost."""
EVERY, MOST_LOOKS = 6, 60
"""Every sixth frame is looked at closely; of a long film no more than so many."""
FLAWLESS = 99.0
"""dB at most, also of two films that are the same."""


@dataclass(frozen=True, slots=True)
class Scale:
    """An encoder's rate factors: of films that are not tried out, bounds, the two to try."""

    decoder: str
    usual: dict[str, int]
    bounds: tuple[int, int]
    tried: tuple[int, int]


SCALES = {
    "libx264": Scale(
        "h264", {"best": 18, "good": 21, "small": 28}, (14, 38), (18, 27)
    ),
    "libsvtav1": Scale(
        "libdav1d", {"best": 26, "good": 37, "small": 50}, (16, 61), (28, 48)
    ),
}  # fmt: skip


class MisalignedError(Exception):
    """Two films that should show the same don't: a defect of ours."""


@dataclass(frozen=True, slots=True)
class Quality:
    """How good a film came out: its estimate, and XPSNR in dB."""

    estimate: Estimate
    xpsnr: float


@dataclass(frozen=True, slots=True)
class Guess:
    """A rate factor, and how much one more of it adds to the logarithm of what is lost."""

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


def guess(taken: list[list[VideoFrame]], job: Job, scale: Scale, target: float) -> Guess:
    """Try two rate factors on samples of a film, and choose between or beside them."""
    tries = []
    for crf in scale.tried:
        found: list[Features] = []
        for sample in taken:
            for _ in looked_at(sample, _tried(sample, job, scale, crf), EVERY, found):
                pass
        tries.append(estimated(found))
    low, high = scale.tried
    slope = slope_of(tries[0], tries[1], high - low)
    return Guess(bounded(scale, low + steps(tries[0], target, slope)), slope)


def slope_of(one: Estimate, other: Estimate, further: int) -> float:
    """Return how much a rate factor adds to the logarithm of what is lost, by two results."""
    return max(math.log(other.lost / one.lost) / further, FLATTEST)


def steps(found: Estimate, target: float, slope: float) -> float:
    """Return how much higher the rate factor may be for a target."""
    return math.log(found.to_lose(target) / found.lost) / slope


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


def looked_at(
    originals: Iterable[VideoFrame], made: Iterable[VideoFrame], every: int, found: list[Features]
) -> Iterator[Pair]:
    """Yield the frames of two films that should show the same, and measure some of them.

    Raises MisalignedError where one of the two has more.
    """
    trail: list[Pair] = []
    try:
        for number, pair in enumerate(zip(originals, made, strict=True)):
            trail = [*trail[-2:], pair]
            if number % every == every - 2:
                (before, _), (one, other), (after, _) = trail
                near = [planes_of(frame)[0] for frame in (before, after)]
                found.append(features(planes_of(one)[0], planes_of(other)[0], near))
            yield pair
    except ValueError as error:
        raise MisalignedError("one of two films has more frames than the other") from error


def measured(originals: Iterable[VideoFrame], made: Iterable[VideoFrame], job: Job) -> Quality:
    """Compare two films that should show the same. Raises MisalignedError where they don't."""
    found: list[Features] = []
    every = max(EVERY, job.frames // MOST_LOOKS)
    value = xpsnr(looked_at(originals, made, every, found), job)
    if value < MISALIGNED:
        raise MisalignedError(f"{job.name}: {value:.1f} dB, other frames were compared")
    return Quality(estimated(found), value)


def xpsnr(pairs: Iterable[Pair], job: Job) -> float:
    """Compare two films frame by frame; return the XPSNR of their brightness in dB."""
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
    for number, pair in enumerate(pairs):
        for buffer, frame in zip(buffers, pair, strict=True):
            frame.pts, frame.time_base = number, 1 / job.fps
            buffer.push(frame)
        found += _values(sink)
    for buffer in buffers:
        buffer.push(None)
    return mean([*found, *_values(sink)])


def _values(sink: FilterContext) -> Iterator[float]:
    while True:
        try:
            yield float(sink.pull().metadata["lavfi.xpsnr.xpsnr.y"])
        except (NothingYetError, EndError):
            return
