"""Writes the file of an output: streams, encoders and their settings, pictures and sound in step.

It chooses nothing that the job or the format's table says, and draws nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import av
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.filter import Graph
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vidgen_worker.films.job import SAMPLE_RATE, Cue, Job
from vidgen_worker.films.presets import FORMATS, Format
from vidgen_worker.films.render.planes import BT709, PIXELS, TV
from vidgen_worker.media.filters import pulled
from vidgen_worker.media.libav import THREADS

if TYPE_CHECKING:
    from av.container import OutputContainer

KEY_SECONDS = 2
"""A player can jump to a picture every so often."""
SOUND_BITS = 128_000
# With threads that are counted, the same frames make the same bytes.
ENCODERS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "veryfast"},
    "libsvtav1": {"preset": "8", "svtav1-params": f"lp={THREADS}"},
    "prores": {"profile": "2"},
}
MILLISECOND = Fraction(1, 1000)
STYLE = (
    "[Script Info]\nScriptType: v4.00+\n\n[V4+ Styles]\nFormat: Name, Fontname, Fontsize\n"
    "Style: Default,Arial,16\n\n[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, "
    "MarginR, MarginV, Effect, Text\n"
)
"""What libav's encoder of text tracks asks for before the first text."""
INDEXED = frozenset({"mp4", "mov", "ipod"})
FAST = {"movflags": "+faststart"}
"""The index comes first: a player begins before it has the whole file."""
Tell = Callable[[int], None]
"""Is told how many frames are done."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """How pictures are encoded: rate factor, most bits a second. None: as the encoder likes."""

    crf: int | None = None
    bits: int | None = None


class Writer:
    """One file that is being written; it is complete when its `with` block ends."""

    def __init__(
        self, job: Job, file: Path, *, how: Encoding | None = None,
        template: VideoStream | None = None,
    ) -> None:  # fmt: skip
        self.job = job
        self.form: Format = FORMATS[job.format]
        options = FAST if self.form.container in INDEXED else {}
        self.output: OutputContainer = av.open(
            str(file), "w", format=self.form.container, options=options
        )
        self.video: VideoStream | None = None
        if template is not None:
            self.video = self.output.add_stream_from_template(template)
        elif self.form.encoder:
            self.video = self._video(how or Encoding())
        self._place = 0
        self.audio = self._audio() if self.form.sound and job.mix else None
        self.text = self._text() if job.cues and self.form.container == "mp4" else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.output.close()

    def _video(self, how: Encoding) -> VideoStream:
        name = str(self.form.encoder)
        options = dict(ENCODERS[name]) if name in ENCODERS else {}
        if how.crf is not None:
            options["crf"] = str(how.crf)
        if how.bits is not None:
            options |= {"maxrate": str(how.bits), "bufsize": str(how.bits)}
        stream = self.output.add_stream(name, rate=self.job.fps, options=options)
        assert isinstance(stream, VideoStream)  # noqa: S101 - the codec says so
        stream.width, stream.height = self.job.width, self.job.height
        stream.pix_fmt = self.form.pixels
        context = stream.codec_context
        context.thread_count = THREADS
        context.gop_size = round(self.job.fps * KEY_SECONDS)
        context.time_base = 1 / self.job.fps
        if self.form.pixels.startswith("yuv"):
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = TV
        return stream

    def _audio(self) -> AudioStream:
        stream = self.output.add_stream(str(self.form.sound), rate=SAMPLE_RATE, layout="stereo")
        assert isinstance(stream, AudioStream)  # noqa: S101 - the codec says so
        if self.form.sound != "pcm_s16le":
            stream.codec_context.bit_rate = SOUND_BITS
        stream.codec_context.open()
        return stream

    def _text(self) -> Any:  # noqa: ANN401 - PyAV's types know no text track that is written
        stream = cast("Any", self.output.add_stream("mov_text"))
        stream.codec_context.subtitle_header = STYLE.encode()
        stream.time_base = MILLISECOND
        return stream

    def write(
        self, frames: Iterator[VideoFrame] | None, sounds: Iterator[AudioFrame] | None, tell: Tell
    ) -> None:
        """Write pictures and sound as they are shown and heard, so that neither waits in memory."""
        heard = self.heard(sounds) if sounds is not None and self.audio is not None else None
        if self.text is not None:
            self._write_text()
        for number, frame in enumerate(frames or ()):
            self._encode(number, frame)
            if heard is not None:
                self.follow(heard, self.job.sample(number + 1))
            tell(number + 1)
        if self.video is not None and frames is not None:
            self.output.mux(self.video.encode(None))
        if heard is not None:
            self.end_sound(heard)

    def copy(self, packet: "av.Packet[VideoStream]") -> None:
        """Write a packet of the stream that this file's was made like."""
        assert self.video is not None  # noqa: S101 - there is a template
        packet.stream = self.video
        self.output.mux(packet)

    def _encode(self, number: int, frame: VideoFrame) -> None:
        assert self.video is not None  # noqa: S101 - frames come for a film only
        if frame.format.name != self.form.pixels:
            frame = frame.reformat(format=self.form.pixels)
        frame.pts, frame.time_base = number, 1 / self.job.fps
        frame.pict_type = 0  # the encoder places its own key frames
        self.output.mux(self.video.encode(frame))

    def heard(self, sounds: Iterator[AudioFrame]) -> Iterator[AudioFrame]:
        """Bring sound to the encoder's own format and length of frames."""
        assert self.audio is not None  # noqa: S101 - there is sound
        context = self.audio.codec_context
        resampler = AudioResampler(
            format=context.format, layout="stereo", rate=SAMPLE_RATE,
            frame_size=context.frame_size or None,
        )  # fmt: skip
        for frame in sounds:
            yield from resampler.resample(frame)
        yield from resampler.resample(None)

    def follow(self, heard: Iterator[AudioFrame], until: int) -> None:
        """Encode sound up to a sample."""
        assert self.audio is not None  # noqa: S101 - there is sound
        while self._place < until and (frame := next(heard, None)) is not None:
            self._place += frame.samples
            self.output.mux(self.audio.encode(frame))

    def end_sound(self, heard: Iterator[AudioFrame]) -> None:
        """Encode what is left of the sound."""
        assert self.audio is not None  # noqa: S101 - there is sound
        for frame in heard:
            self.output.mux(self.audio.encode(frame))
        self.output.mux(self.audio.encode(None))

    def _write_text(self) -> None:
        """Write the captions as a track that a viewer may switch on."""
        place = 0
        for cue in self.job.cues:
            start, end = self._time(cue.start), self._time(cue.end)
            if start > place:
                self._text_packet("", place, start)
            self._text_packet(cue.text, start, end)
            place = end
        whole = self._time(self.job.frames)
        if whole > place:
            self._text_packet("", place, whole)

    def _text_packet(self, text: str, start: int, end: int) -> None:
        said = text.encode()
        packet = av.Packet(len(said).to_bytes(2, "big") + said)
        packet.stream = cast("Any", self.text)
        packet.time_base = MILLISECOND
        packet.pts = packet.dts = start
        packet.duration = end - start
        self.output.mux(packet)

    def _time(self, frame: int) -> int:
        return round(frame / self.job.fps * 1000)


def write_gif(job: Job, file: Path, frames: Iterator[VideoFrame], tell: Tell) -> None:
    """Write a GIF with a palette of its own: it waits in memory, so only for a short preview."""
    graph = Graph()
    buffer = graph.add_buffer(
        width=job.width, height=job.height, format=VideoFormat(PIXELS), time_base=1 / job.fps
    )
    split, palette = graph.add("split"), graph.add("palettegen", "stats_mode=diff")
    use, sink = graph.add("paletteuse", "dither=bayer:bayer_scale=4"), graph.add("buffersink")
    buffer.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    for number, frame in enumerate(frames):
        frame.pts, frame.time_base = number, 1 / job.fps
        graph.vpush(frame)
        tell(number + 1)
    graph.vpush(None)
    with Writer(job, file) as writer:
        writer.write(pulled(graph), None, lambda _: None)


def webvtt(job: Job) -> str:
    """Return the captions as WebVTT."""
    cues = [
        f"{_stamp(cue.start, job)} --> {_stamp(cue.end, job)}\n{_escaped(cue)}\n"
        for cue in job.cues
    ]
    return "\n".join(["WEBVTT\n", *cues])


def _stamp(frame: int, job: Job) -> str:
    thousandths = round(frame / job.fps * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}.{rest % 1000:03}"


def _escaped(cue: Cue) -> str:
    """A blank line would end a cue, and "-->" would begin one."""
    text = cue.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "\n".join(line for line in text.split("\n") if line.strip())
