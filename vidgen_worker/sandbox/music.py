"""The sandbox's music: four chords on a soft piano, as an AAC file. The same bytes every time.

libav computes the sound, so that no sample is touched in Python. It reads and keeps no file.
"""

import io
from functools import cache

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.filter import Graph

RATE = 24_000
"""Samples a second."""
CHORD_SECONDS = 2
CHORDS = (
    (130.81, 261.63, 329.63, 392.00),
    (110.00, 220.00, 261.63, 329.63),
    (87.31, 220.00, 261.63, 349.23),
    (98.00, 196.00, 246.94, 293.66),
)
"""C, A minor, F, G: the Hz of a bass and three notes above it."""
STEP = 0.25
"""Seconds from one note of a chord to the next."""
LOUD = 0.09


@cache
def music() -> bytes:
    """Return eight seconds of music, which may be repeated, as an M4A."""
    file = io.BytesIO()
    with av.open(file, "w", format="ipod") as output:
        stream = output.add_stream("aac", rate=RATE, layout="mono", options={"b": "64k"})
        assert isinstance(stream, AudioStream)  # noqa: S101 - the codec says so
        for frame in _played():
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def _played() -> list[AudioFrame]:
    """Return the frames of all chords, one after the other."""
    frames: list[AudioFrame] = []
    samples = 0
    for chord in CHORDS:
        for frame in _chord(chord):
            frame.pts = samples
            samples += frame.samples
            frames.append(frame)
    return frames


def _chord(notes: tuple[float, ...]) -> list[AudioFrame]:
    """Return a chord whose notes are struck one after the other and die away."""
    heard = "+".join(_note(hz, number * STEP) for number, hz in enumerate(notes))
    graph = Graph()
    source = graph.add("aevalsrc", f"exprs='{heard}':s={RATE}:d={CHORD_SECONDS}:c=mono")
    pinned = graph.add("aformat", f"sample_fmts=fltp:sample_rates={RATE}:channel_layouts=mono")
    sink = graph.add("abuffersink")
    source.link_to(pinned)
    pinned.link_to(sink)
    graph.configure()
    frames: list[AudioFrame] = []
    while True:
        try:
            frame = sink.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return frames
        assert isinstance(frame, AudioFrame)  # noqa: S101 - it is a sound's graph
        frames.append(frame)


def _note(hz: float, struck: float) -> str:
    """Return a struck string as an expression of `t`: a tone, softer ones above it, fading."""
    since = f"max(t-{struck},0)"
    fading = f"(1-exp(-60*{since}))*exp(-2.2*{since})"
    # It is silent when the next chord begins, so that nothing clicks there.
    ending = f"min(1,({CHORD_SECONDS}-t)*8)"
    tones = "+".join(
        f"{loud}*sin({hz * partial:.2f}*2*PI*t)" for partial, loud in ((1, 1), (2, 0.4), (3, 0.15))
    )
    return f"{LOUD}*gte(t,{struck})*{fading}*{ending}*({tones})"
