"""The sound of a film: the clips' own, music that gives way to voices, one loudness.

It is exactly as many samples as the pictures last. Each track is read in step with the others, so
memory does not grow with the film's length.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.error import InvalidDataError
from av.filter import Graph
from av.filter.context import FilterContext

from vidgen_worker.films.job import SAMPLE_RATE, Job, Mix
from vidgen_worker.films.render.look import sound_form
from vidgen_worker.media.clip import first_sound
from vidgen_worker.media.formats import UndecodableError, head_of
from vidgen_worker.media.libav import opened

BLOCK = 4800
"""Samples that the tracks go forward together: a tenth of a second."""
DECLICK = 240
"""Samples over which a cut in the sound is softened."""
ENDING = SAMPLE_RATE
"""Samples over which music fades out at the end."""
LATEST_START = 10
"""Seconds of silence that a clip's sound may begin with by its time stamps."""
SILENT = -60.0
"""LUFS below which there is nothing to make louder."""
PINNED = f"aformat=sample_fmts=fltp:sample_rates={SAMPLE_RATE}:channel_layouts=stereo"
DUCK = "threshold=0.02:ratio=6:attack=20:release=500:knee=4"
MEASURED = "ebur128=metadata=1"
PEAK = 0.891
"""Largest sample: a decibel below full scale."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A piece of a file on a track: from its sample `skip` on, `length` samples at `start`."""

    file: str
    start: int
    length: int
    skip: int = 0
    fade_in: int = DECLICK
    fade_out: int = DECLICK
    again: bool = False
    """From its beginning again, until it is long enough."""


Track = tuple[Stretch, ...]


def sound(job: Job, folder: Path) -> Iterator[AudioFrame]:
    """Yield the sound of a film, `job.samples` samples of it at its loudness."""
    mix = job.mix
    assert mix is not None  # noqa: S101 - a silent output asks for no sound
    gain = 0.0
    if mix.loudness is not None:
        found = loudness(_mixed(job, mix, folder, MEASURED))
        gain = mix.loudness - found if found > SILENT else 0.0
    limited = f"volume={gain:.3f}dB,alimiter=limit={PEAK}:level=0:latency=1,{PINNED}"
    alone = not mix.files and mix.loudness is None
    return _mixed(job, mix, folder, PINNED if alone else limited)


def loudness(frames: Iterator[AudioFrame]) -> float:
    """Return the integrated loudness of what has gone through `ebur128`, in LUFS."""
    found = SILENT
    for frame in frames:  # each says the loudness of all that came before; a short one nothing
        found = float(frame.metadata.get("lavfi.r128.I", found))
    return found


def tracks(job: Job, mix: Mix) -> tuple[list[Track], list[Track], list[Track]]:
    """Return the tracks of clips, of music and of voices.

    Scenes take turns on two tracks, so that two that dissolve are heard together.
    """
    sides: tuple[list[Stretch], list[Stretch]] = ([], [])
    for number, scene in enumerate(job.scenes):
        if not (mix.clips and scene.sound):
            continue
        following = job.scenes[number + 1].fade if number + 1 < len(job.scenes) else 0
        start, end = job.sample(scene.start), min(job.sample(scene.end), job.samples)
        sides[number % 2].append(
            Stretch(
                scene.file, start, end - start, job.sample(scene.first),
                max(DECLICK, job.sample(scene.fade)), max(DECLICK, job.sample(following)),
            )
        )  # fmt: skip
    music = [Stretch(mix.music, 0, job.samples, fade_out=ENDING, again=True)] if mix.music else []
    voices = [Stretch(file, at, job.samples - at) for file, at in mix.voices if at < job.samples]
    return (
        [tuple(side) for side in sides if side],
        [tuple(music)] if music else [],
        [(voice,) for voice in voices],
    )


def _mixed(job: Job, mix: Mix, folder: Path, end: str) -> Iterator[AudioFrame]:
    clips, music, voices = tracks(job, mix)
    streams = [_track(track, folder, job.samples) for track in [*clips, *music, *voices]]
    if not streams:
        yield from _numbered(_silence(job.samples))
        return
    graph = Graph()
    inputs = [graph.add("abuffer", _FORMAT) for _ in streams]
    sink = _wired(graph, inputs, (len(clips), len(music), len(voices)), f"volume={mix.gain}dB", end)
    places = [0] * len(streams)
    for until in range(BLOCK, job.samples + BLOCK, BLOCK):
        for number, (stream, buffer) in enumerate(zip(streams, inputs, strict=True)):
            while places[number] < min(until, job.samples):
                frame = next(stream)
                frame.pts, frame.time_base = places[number], Fraction(1, SAMPLE_RATE)
                places[number] += frame.samples
                buffer.push(frame)
        yield from _pulled(sink)
    for buffer in inputs:
        buffer.push(None)
    yield from _pulled(sink)


_FORMAT = (
    f"sample_rate={SAMPLE_RATE}:sample_fmt=fltp:channel_layout=stereo:time_base=1/{SAMPLE_RATE}"
)


def _wired(
    graph: Graph, inputs: list[FilterContext], counts: tuple[int, int, int], music: str, end: str
) -> FilterContext:
    """Wire clips, music and voices: the voices press the music down."""
    clips, tune, voices = (
        inputs[: counts[0]],
        inputs[counts[0] : counts[0] + counts[1]],
        inputs[counts[0] + counts[1] :],
    )
    mixed = [_sum(graph, clips)] if clips else []
    quiet = [_chain(graph, tune[0], music)] if tune else []
    spoken = _sum(graph, voices) if voices else None
    if spoken is not None and quiet:
        split = graph.add("asplit", "2")
        spoken.link_to(split)
        duck = graph.add("sidechaincompress", DUCK)
        quiet[0].link_to(duck, 0, 0)
        split.link_to(duck, 1, 1)
        heard = graph.add("anull")
        split.link_to(heard, 0, 0)
        mixed += [heard, duck]
    else:
        mixed += [*quiet, *([spoken] if spoken is not None else [])]
    last = _chain(graph, _sum(graph, mixed), end)
    sink = graph.add("abuffersink")
    last.link_to(sink)
    graph.configure()
    return sink


def _sum(graph: Graph, nodes: list[FilterContext]) -> FilterContext:
    if len(nodes) == 1:
        return nodes[0]
    sum_ = graph.add("amix", f"inputs={len(nodes)}:normalize=0")
    for number, node in enumerate(nodes):
        node.link_to(sum_, 0, number)
    return _chain(graph, sum_, f"{PINNED}")


def _chain(graph: Graph, node: FilterContext, filters: str) -> FilterContext:
    for one in filters.split(","):
        name, _, arguments = one.partition("=")
        made = graph.add(name, arguments)
        node.link_to(made)
        node = made
    return node


def _pulled(sink: FilterContext) -> Iterator[AudioFrame]:
    while True:
        try:
            frame = sink.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        assert isinstance(frame, AudioFrame)  # noqa: S101 - for the type checker
        yield frame


# Tracks


def _track(track: Track, folder: Path, samples: int) -> Iterator[AudioFrame]:
    """Yield a whole track: its stretches where they belong, and silence."""
    place = 0
    for stretch in track:
        yield from _silence(stretch.start - place)
        yield from _cut(stretch, folder)
        place = stretch.start + stretch.length
    yield from _silence(samples - place)


def _cut(stretch: Stretch, folder: Path) -> Iterator[AudioFrame]:
    """Yield exactly `length` samples of a stretch, softened at both ends."""
    length = stretch.length
    fade_in, fade_out = min(stretch.fade_in, length), min(stretch.fade_out, length)
    graph = Graph()
    buffer = graph.add("abuffer", _FORMAT)
    last = _chain(
        graph, buffer,
        f"atrim=start_sample={stretch.skip}:end_sample={stretch.skip + length},"
        f"asetpts=PTS-STARTPTS,apad=whole_len={length},"
        f"afade=t=in:ns={fade_in}:curve=qsin,"
        f"afade=t=out:start_sample={length - fade_out}:ns={fade_out}:curve=qsin,{PINNED}",
    )  # fmt: skip
    sink = graph.add("abuffersink")
    last.link_to(sink)
    graph.configure()
    heard = _again if stretch.again else _heard
    place = 0
    for frame in heard(folder / stretch.file):
        if place >= stretch.skip + length:
            break
        frame.pts, frame.time_base = place, Fraction(1, SAMPLE_RATE)
        place += frame.samples
        buffer.push(frame)
        yield from _pulled(sink)
    buffer.push(None)
    yield from _pulled(sink)


def _again(file: Path) -> Iterator[AudioFrame]:
    while True:
        some = False
        for frame in _heard(file):
            some = True
            yield frame
        if not some:
            raise UndecodableError(f"{file.name}: there is no sound in it")


def _heard(file: Path) -> Iterator[AudioFrame]:
    """Yield the sound of a file as it is mixed, from the time at which its pictures begin.

    A damaged piece is left out, as players do.
    """
    with opened(sound_form(head_of(file)), file) as container:
        source = first_sound(container)
        if source is None:
            raise UndecodableError(f"{file.name}: there is no sound in it that can be decoded")
        resampler = AudioResampler(format="fltp", layout="stereo", rate=SAMPLE_RATE)
        begun = False
        for packet in container.demux(source):
            try:
                frames = source.decode(packet)
            except InvalidDataError:
                continue
            for frame in frames:
                if not begun:
                    late = float(frame.time or 0) if container.streams.video else 0.0
                    yield from _silence(round(min(max(late, 0), LATEST_START) * SAMPLE_RATE))
                    begun = True
                frame.pts = None
                yield from resampler.resample(frame)
        yield from resampler.resample(None)


def _numbered(frames: Iterator[AudioFrame]) -> Iterator[AudioFrame]:
    place = 0
    for frame in frames:
        frame.pts, frame.time_base = place, Fraction(1, SAMPLE_RATE)
        place += frame.samples
        yield frame


def _silence(samples: int) -> Iterator[AudioFrame]:
    while samples > 0:
        frame = AudioFrame(format="fltp", layout="stereo", samples=min(samples, BLOCK))
        frame.sample_rate = SAMPLE_RATE
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        samples -= frame.samples
        yield frame
