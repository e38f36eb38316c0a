"""Clips: read a film to its end, and make an H.264 MP4 of the exact size of what a viewer shows.

Runs in the child.
"""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.error import InvalidDataError
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vidgen_worker.media.filters import BT709, TV, UNKNOWN, Shown, fitting, pulled, way_of
from vidgen_worker.media.formats import UndecodableError, form, head_of, mp4_end, proves_whole
from vidgen_worker.media.libav import THREADS, has_decoder, opened, video_stream

if TYPE_CHECKING:
    from av.packet import Packet  # subscriptable for the type checker only

STATED_TOLERANCE = 0.5
"""Seconds by which a header may promise more than there is."""
PLAYED_SOUND = frozenset({"aac", "mp3"})
"""Sound that every player of an MP4 plays."""
SOUND_RATES = frozenset({8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000})
COMMON_RATE = 48000
FULL_RANGE = 2


@dataclass(slots=True)
class _Found:
    """The result of reading a film to its end."""

    size: tuple[int, int]
    codec: str
    seconds: float
    plain: bool
    """Its frames are shown as they are stored, all of them."""


def check_video(job: dict[str, Any]) -> dict[str, Any]:
    """Read a clip to its end; write an H.264 MP4 of the exact size unless it is one already."""
    source, target = Path(job["path"]), Path(job["target"])
    name = form(head_of(source))
    end = mp4_end(source) if name == "mov" else None
    wanted = (job["width"], job["height"])
    found: _Found | None = None
    with opened(name, source, end) as container:
        stream = video_stream(container)
        if _plays_everywhere(container, stream) and _coded(stream) == wanted:
            found = _walk(container, stream)
    conform = found is None or not found.plain or found.size != wanted
    if found is None or conform:
        with opened(name, source, end) as container:
            found = _conform(container, video_stream(container, THREADS), target, job)
            _check_stated_length(container, found.seconds)
    return {
        "width": found.size[0], "height": found.size[1], "codec": found.codec,
        "seconds": found.seconds, "conformed": conform, "whole": proves_whole(name, source),
        "file": str(target if conform else source),
    }  # fmt: skip


def _coded(stream: VideoStream) -> tuple[int, int]:
    return stream.codec_context.width, stream.codec_context.height


def _plays_everywhere(container: InputContainer, stream: VideoStream) -> bool:
    context = stream.codec_context
    return (
        container.format.name == "mov"  # its demuxer's name; MP4 is one of its kinds
        and container.metadata.get("major_brand", "qt").strip() != "qt"
        and (context.name, context.pix_fmt) == ("h264", "yuv420p")
        and context.color_range != FULL_RANGE
        and all(
            has_decoder(sound) and sound.codec_context.name in PLAYED_SOUND
            for sound in container.streams.audio
        )
    )


def _walk(container: InputContainer, stream: VideoStream) -> _Found:
    """Read every packet and decode the key frames.

    The frames between them would cost ten times as much, and a film cut short shows without them.
    """
    stream.codec_context.skip_frame = "NONKEY"
    length = _Length(stream)
    pictures, plain = 0, True
    size = _coded(stream)
    for packet in container.demux(stream):
        if packet.size:
            length.add(packet)
        for frame in packet.decode():
            shown = _shown(stream, frame)
            plain = plain and shown == Shown() and (frame.width, frame.height) == size
            pictures += 1
    # Frames that an edit list hides are in the file, and not every player hides them. A film whose
    # key frames are hidden has to be decoded from them on.
    plain = plain and not length.hidden and pictures > 0
    return _Found(size, stream.codec_context.name, length.seconds(), plain)


def _shown(stream: VideoStream, frame: VideoFrame) -> Shown:
    shape = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    return Shown(way_of(frame), shape or Fraction(1))


def _check_stated_length(container: InputContainer, seconds: float) -> None:
    """Refuse a WebM cut short: it may end between any two frames; only its header shows that."""
    stated = (container.duration or 0) / av.time_base
    if "matroska" in container.format.name and stated - seconds > STATED_TOLERANCE:
        raise UndecodableError(f"{seconds:.1f} of {stated:.1f} seconds are there")


class _Length:
    """Counts packets, and measures the time that the shown ones cover."""

    def __init__(self, stream: VideoStream) -> None:
        self.stream = stream
        self.unit = stream.time_base or Fraction(1, 1000)
        self.frame = 1 / (stream.average_rate or Fraction(24))
        self.packets = 0
        self.shown = 0
        self.first: int | None = None
        self.last = 0

    @property
    def hidden(self) -> bool:
        """Whether the film has frames that are never shown."""
        return self.shown < max(self.packets, self.stream.frames)

    def add(self, packet: "Packet[Any]") -> None:
        """Count one packet. Raises UndecodableError for a damaged one."""
        if packet.is_corrupt:
            raise UndecodableError(f"packet {self.packets + 1} of the film is damaged or cut short")
        self.packets += 1
        if packet.is_discard:
            return
        self.shown += 1
        start = packet.pts if packet.pts is not None else packet.dts or 0
        self.first = start if self.first is None else min(self.first, start)
        self.last = max(self.last, start + (packet.duration or round(self.frame / self.unit)))

    def seconds(self) -> float:
        """Return the length. Raises UndecodableError for a film that is cut short, or no film."""
        # An edit list takes frames out of the index; what is in it has to be there.
        expected = min(len(self.stream.index_entries), self.stream.frames)
        if self.packets < expected:
            raise UndecodableError(f"{self.packets} of {expected} frames are there")
        if self.shown < 2:  # noqa: PLR2004 - a film moves
            raise UndecodableError("a single picture is no film")
        return float((self.last - (self.first or 0)) * self.unit)


def _conform(
    container: InputContainer, stream: VideoStream, target: Path, job: dict[str, Any]
) -> _Found:
    """Encode the film anew as H.264, and its sound as AAC."""
    length = _Length(stream)
    with av.open(str(target), "w", format="mp4", options={"movflags": "+faststart"}) as output:
        film = _Film(output, stream, job)
        sound = _sound(output, container)
        sources = [stream, *([sound.source] if sound else [])]
        for packet in container.demux(*sources):
            if isinstance(packet.stream, VideoStream):
                if packet.size:
                    length.add(packet)
                film.add(packet)
            elif sound:
                sound.add(packet)
        film.end()
        if sound:
            sound.end()
    if not film.size:
        raise UndecodableError("no frame of the film can be decoded")
    return _Found(film.size, stream.codec_context.name, length.seconds(), plain=False)


class _Clock:
    """Leaves out frames whose time does not grow: no file can hold them, no viewer shows them."""

    def __init__(self) -> None:
        self.last: int | None = None

    def runs_on(self, frame: VideoFrame | AudioFrame) -> bool:
        """Whether a frame comes after the one before; one without a time comes right after."""
        if frame.pts is None:
            frame.pts = 0 if self.last is None else self.last + max(_ticks(frame), 1)
        if self.last is not None and frame.pts <= self.last:
            return False
        self.last = frame.pts
        return True


def _ticks(frame: VideoFrame | AudioFrame) -> int:
    return frame.samples if isinstance(frame, AudioFrame) else int(frame.duration or 0)


class _Film:
    """Decodes, conforms and encodes the pictures."""

    def __init__(self, output: OutputContainer, source: VideoStream, job: dict[str, Any]) -> None:
        rate = source.average_rate or source.guessed_rate or Fraction(24)
        self.output = output
        self.stream = output.add_stream(
            "libx264", rate=rate, options={"preset": "veryfast", "crf": "18"}
        )
        self.stream.width, self.stream.height = job["width"], job["height"]
        self.stream.pix_fmt = "yuv420p"
        context = self.stream.codec_context
        context.thread_count = THREADS
        context.time_base = source.time_base or 1 / rate
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = TV
        self.source = source
        self.job = job
        self.graph: Graph | None = None
        self.drawn: tuple[int, int, str] | None = None
        self.clock = _Clock()
        self.size: tuple[int, int] | None = None
        """As a viewer shows the first frame; None before it."""

    def add(self, packet: "Packet[Any]") -> None:
        """Take one packet of the source, also the empty last one."""
        try:
            frames = self.source.decode(packet)
        except InvalidDataError:
            # Hidden frames before the first picture may depend on frames that were cut away.
            if self.size is not None or not packet.is_discard:
                raise
            return
        for frame in frames:
            self._draw(frame)

    def _draw(self, frame: VideoFrame) -> None:
        like = (frame.width, frame.height, frame.format.name)
        if self.graph is None or like != self.drawn:
            # Frames may change in the middle of a film.
            self._finish()
            shown = _shown(self.source, frame)
            if self.size is None:
                self._colour(frame)
                self.size = shown.size(frame.width, frame.height)
            self.graph = fitting(
                frame, shown, self.job["width"], self.job["height"], pixels="yuv420p",
                keep_alpha=False,
            )  # fmt: skip
            self.drawn = like
        self.graph.vpush(frame)
        self._encode(self.graph)

    def _colour(self, frame: VideoFrame) -> None:
        """Keep those colour properties of the first frame that the filters do not change."""
        context = self.stream.codec_context
        if frame.color_primaries not in (0, UNKNOWN) and frame.color_trc not in (16, 18):
            context.color_primaries = int(frame.color_primaries)

    def end(self) -> None:
        """Write what is left in the filters and the encoder."""
        self._finish()
        if self.size is not None:
            self.output.mux(self.stream.encode(None))

    def _finish(self) -> None:
        if self.graph is not None:
            self.graph.vpush(None)
            self._encode(self.graph)
            self.graph = None

    def _encode(self, graph: Graph) -> None:
        for frame in pulled(graph):
            frame.pict_type = 0  # the encoder places its own key frames
            if not self.clock.runs_on(frame):
                continue
            self.output.mux(self.stream.encode(frame))


def _sound(output: OutputContainer, container: InputContainer) -> "_Sound | None":
    """Take the first sound that can be decoded; a film without such a sound becomes silent."""
    for source in container.streams.audio:
        if has_decoder(source) and source.codec_context.sample_rate:
            return _Sound(output, source)
    return None


class _Sound:
    """Encodes sound as AAC, at a rate and in a layout that players play."""

    def __init__(self, output: OutputContainer, source: AudioStream) -> None:
        self.output = output
        self.source = source
        given = source.codec_context
        rate = given.sample_rate if given.sample_rate in SOUND_RATES else COMMON_RATE
        layout = "mono" if given.layout.nb_channels == 1 else "stereo"
        self.stream = output.add_stream("aac", rate=rate, layout=layout)
        self.stream.codec_context.open()
        self.resampler = AudioResampler(
            format=self.stream.codec_context.format, layout=layout, rate=rate,
            frame_size=self.stream.codec_context.frame_size,
        )  # fmt: skip
        self.clock = _Clock()

    def add(self, packet: "Packet[Any]") -> None:
        """Take one packet of the source, the empty last one too; a damaged one is left out."""
        try:
            frames = self.source.decode(packet)
        except InvalidDataError:
            return
        for frame in frames:
            self._encode(self.resampler.resample(frame))

    def end(self) -> None:
        """Write what is left in the resampler and the encoder."""
        self._encode(self.resampler.resample(None))
        self.output.mux(self.stream.encode(None))

    def _encode(self, frames: list[AudioFrame]) -> None:
        for frame in frames:
            if self.clock.runs_on(frame):
                self.output.mux(self.stream.encode(frame))
