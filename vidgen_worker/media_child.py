"""The child process in which libav reads files from outside: look at one, conform it if needed.

Started by `media.py` as a script of its own. It reads one job a line as JSON on standard input,
answers one line on standard output, and ends with its input, that is with its parent, also in the
middle of a job. It has limits of memory, CPU and file size, no secrets, and nothing of ours
imported: whatever a file makes of libav, one job fails. It never talks to a network.
"""

import errno
import faulthandler
import hashlib
import json
import os
import queue
import resource
import signal
import sys
import threading
import traceback
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import av
import av.logging
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.filter import Graph
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

if TYPE_CHECKING:
    from av.packet import Packet  # subscriptable for the type checker only

MEMORY_BYTES = 2 * 2**30
"""Address space of a child: 720p needs a fifth of it, a bomb of a picture more."""
CPU_SECONDS = 120
"""CPU time of one job; conforming ten seconds of 720p takes about a tenth."""
MAX_PIXELS = 64_000_000
"""Largest picture or frame that is decoded; four times 4K."""
THREADS = 2
"""Threads of a decoder or encoder: more would multiply the memory on large machines."""

STATED_TOLERANCE = 0.5
"""Seconds by which a header may promise more than there is."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The disk's troubles are ours, not the file's; EIO is what libav also says of a damaged file.
_OURS = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT,
    errno.EROFS, errno.EMFILE, errno.ENFILE,
}  # fmt: skip
_CONFORM = (
    # Make the pixels square, cover the size, crop the centre.
    ("scale", "w={square}:h=ih"),
    ("setsar", "1"),
    ("scale", "w={width}:h={height}:force_original_aspect_ratio=increase:flags=lanczos"),
    ("crop", "w={width}:h={height}"),
    ("format", "{pixels}"),
)


class UndecodableError(Exception):
    """The bytes are no picture or clip that can be used."""


class TooLargeError(Exception):
    """The conformed file would be larger than the limit."""


def check_image(job: dict[str, Any]) -> dict[str, Any]:
    """Decode a picture; write a PNG of the exact size unless it is one already."""
    source, target = Path(job["path"]), Path(job["target"])
    _check_whole_picture(source)
    with av.open(str(source), "r") as container:
        stream = _video_stream(container)
        name = stream.codec_context.name
        frame = next(container.decode(stream), None)
        if frame is None:
            raise UndecodableError("there is no picture in the file")
        found = (frame.width, frame.height)
        conform = name != "png" or found != (job["width"], job["height"])
        if conform:
            graph = _conforming_graph(job, "rgb24", stream, frame)
            graph.vpush(frame)
            graph.vpush(None)
            target.write_bytes(_png(graph.vpull()))
    return {
        "width": found[0], "height": found[1], "format": name, "conformed": conform,
        **_stored(target if conform else source, job),
    }  # fmt: skip


def check_video(job: dict[str, Any]) -> dict[str, Any]:
    """Read a clip to its end; write an H.264 MP4 of the exact size unless it is one already."""
    source, target = Path(job["path"]), Path(job["target"])
    _check_whole_mp4(source)
    with av.open(str(source), "r") as container:
        stream = _video_stream(container)
        context = stream.codec_context
        found = (context.width, context.height)
        playable = (
            "mp4" in container.format.name
            and container.metadata.get("major_brand", "").strip() != "qt"
            and (context.name, context.pix_fmt) == ("h264", "yuv420p")
        )
        conform = not playable or found != (job["width"], job["height"])
        seconds = _conform(container, stream, target, job) if conform else _walk(container, stream)
        _check_stated_length(container, seconds)
        answer = {
            "width": found[0], "height": found[1], "codec": context.name, "seconds": seconds,
            "conformed": conform,
        }  # fmt: skip
    return answer | _stored(target if conform else source, job)


def _video_stream(container: InputContainer) -> VideoStream:
    if not container.streams.video:
        raise UndecodableError("there is neither picture nor film in the file")
    stream = container.streams.video[0]
    context = stream.codec_context
    if context.width * context.height > MAX_PIXELS:
        raise UndecodableError(f"{context.width}x{context.height} is more than {MAX_PIXELS} pixels")
    # Damage is an error, not something to be painted over.
    context.options = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
    context.thread_count = THREADS
    return stream


def _walk(container: InputContainer, stream: VideoStream) -> float:
    """Read every packet and decode the key frames; return the length in seconds.

    The frames between them would cost ten times as much, and a film cut short shows without them.
    """
    stream.codec_context.skip_frame = "NONKEY"
    length = _Length(stream)
    pictures = 0
    for packet in container.demux(stream):
        if packet.size:
            length.add(packet)
        pictures += len(packet.decode())
    if not pictures:
        raise UndecodableError("no key frame of the film can be decoded")
    return length.seconds()


def _check_stated_length(container: InputContainer, seconds: float) -> None:
    """Refuse a WebM cut short: it may end between any two frames, only its header tells."""
    stated = (container.duration or 0) / av.time_base
    if "matroska" in container.format.name and stated - seconds > STATED_TOLERANCE:
        raise UndecodableError(f"{seconds:.1f} of {stated:.1f} seconds are there")


class _Length:
    """Counts packets and measures the time they cover."""

    def __init__(self, stream: VideoStream) -> None:
        self.expected = stream.frames
        self.unit = stream.time_base or Fraction(1, 1000)
        self.frame = 1 / (stream.average_rate or Fraction(24))
        self.packets = 0
        self.first: int | None = None
        self.last = 0

    def add(self, packet: "Packet[Any]") -> None:
        """Count one packet. Raises UndecodableError for a damaged one."""
        if packet.is_corrupt:
            raise UndecodableError(f"packet {self.packets + 1} of the film is damaged or cut short")
        self.packets += 1
        start = packet.pts if packet.pts is not None else packet.dts or 0
        self.first = start if self.first is None else min(self.first, start)
        self.last = max(self.last, start + (packet.duration or round(self.frame / self.unit)))

    def seconds(self) -> float:
        """Return the length. Raises UndecodableError for a film that is cut short, or no film."""
        if self.packets < self.expected:
            raise UndecodableError(f"{self.packets} of {self.expected} frames are there")
        if self.packets < 2:  # noqa: PLR2004 - a film moves
            raise UndecodableError("a single picture is no film")
        return float((self.last - (self.first or 0)) * self.unit)


def _conform(
    container: InputContainer, stream: VideoStream, target: Path, job: dict[str, Any]
) -> float:
    """Encode the film anew as H.264, and its sound as AAC; return its length in seconds."""
    length = _Length(stream)
    with av.open(str(target), "w", format="mp4", options={"movflags": "+faststart"}) as output:
        film = _Film(output, stream, job)
        sound = _Sound(output, container.streams.audio[0]) if container.streams.audio else None
        for packet in container.demux(*filter(None, [stream, sound and sound.source])):
            if isinstance(packet.stream, VideoStream):
                if packet.size:
                    length.add(packet)
                film.add(packet)
            elif sound:
                sound.add(packet)
        film.end()
        if sound:
            sound.end()
    if not film.frames:
        raise UndecodableError("no frame of the film can be decoded")
    return length.seconds()


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
        self.stream.codec_context.thread_count = THREADS
        self.stream.codec_context.time_base = source.time_base or 1 / rate
        self.source = source
        self.job = job
        self.graph: Graph | None = None
        self.frames = 0

    def add(self, packet: "Packet[Any]") -> None:
        """Take one packet of the source, the empty last one too."""
        for frame in self.source.decode(packet):
            if self.graph is None:
                self.graph = _conforming_graph(self.job, "yuv420p", self.source, frame)
            self.graph.vpush(frame)
            self._encode(self.graph)

    def end(self) -> None:
        """Write what is left in the filters and the encoder."""
        if self.graph is not None:
            self.graph.vpush(None)
            self._encode(self.graph)
            self.output.mux(self.stream.encode(None))

    def _encode(self, graph: Graph) -> None:
        for frame in _pulled(graph):
            frame.pict_type = 0  # the source's key frames are no business of the encoder
            self.frames += 1
            self.output.mux(self.stream.encode(frame))


class _Sound:
    """Copies AAC, encodes anything else as AAC."""

    def __init__(self, output: OutputContainer, source: AudioStream) -> None:
        self.output = output
        self.source = source
        self.copied = source.codec_context.name == "aac"
        if self.copied:
            self.stream = output.add_stream_from_template(source)
        else:
            self.stream = output.add_stream("aac", rate=source.codec_context.sample_rate or 48000)
            self.stream.codec_context.open()
            self.resampler = AudioResampler(
                format=self.stream.codec_context.format,
                layout=self.stream.codec_context.layout,
                rate=self.stream.codec_context.sample_rate,
                frame_size=self.stream.codec_context.frame_size,
            )

    def add(self, packet: "Packet[Any]") -> None:
        """Take one packet of the source, the empty last one too."""
        if self.copied:
            if packet.dts is not None:
                packet.stream = self.stream
                self.output.mux(packet)
            return
        for frame in self.source.decode(packet):
            self._encode(self.resampler.resample(frame))

    def end(self) -> None:
        """Write what is left in the resampler and the encoder."""
        if not self.copied:
            self._encode(self.resampler.resample(None))
            self.output.mux(self.stream.encode(None))

    def _encode(self, frames: list[AudioFrame]) -> None:
        for frame in frames:
            self.output.mux(self.stream.encode(frame))


def _conforming_graph(
    job: dict[str, Any], pixels: str, source: VideoStream, frame: VideoFrame
) -> Graph:
    """Build the filters for frames like `frame`: what a header says of them may be wrong."""
    graph = Graph()
    unit = source.time_base or Fraction(1, 1000)
    buffer = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=unit
    )
    shape = source.codec_context.sample_aspect_ratio or Fraction(1)
    values = {
        "width": job["width"], "height": job["height"], "pixels": pixels,
        "square": max(1, round(frame.width * shape)),
    }  # fmt: skip
    nodes = [graph.add(name, arguments.format(**values)) for name, arguments in _CONFORM]
    graph.link_nodes(buffer, *nodes, graph.add("buffersink")).configure()
    return graph


def _pulled(graph: Graph) -> Iterator[VideoFrame]:
    while True:
        try:
            yield graph.vpull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return


def _png(frame: VideoFrame) -> bytes:
    encoder = av.CodecContext.create("png", "w")
    assert isinstance(encoder, VideoCodecContext)  # noqa: S101 - for the type checker
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, frame.format.name
    encoder.time_base = Fraction(1, 25)
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


def _check_whole_picture(path: Path) -> None:
    """Refuse a PNG, JPEG or WebP that is cut short: their decoders would paint the rest grey."""
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(0)
        if head.startswith(PNG_SIGNATURE):
            _check_whole_png(file)
        elif head.startswith(b"\xff\xd8"):
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 65536))
            if b"\xff\xd9" not in file.read():
                raise UndecodableError("the JPEG is cut short")
        elif head[:4] == b"RIFF" and head[8:] == b"WEBP":
            size = file.seek(0, os.SEEK_END)
            if size < int.from_bytes(head[4:8], "little") + 8:
                raise UndecodableError("the WebP is cut short")


def _check_whole_png(file: BinaryIO) -> None:
    file.seek(len(PNG_SIGNATURE))
    kind = b""
    while kind != b"IEND":
        header = file.read(8)
        length, kind = int.from_bytes(header[:4], "big"), header[4:]
        checksum = zlib.crc32(kind)
        while length:
            piece = file.read(min(length, 2**20))
            if not piece:
                raise UndecodableError("the PNG is cut short")
            checksum = zlib.crc32(piece, checksum)
            length -= len(piece)
        stated = file.read(4)
        if len(stated) < 4:  # noqa: PLR2004 - the bytes of a CRC
            raise UndecodableError("the PNG is cut short")
        if int.from_bytes(stated, "big") != checksum:
            raise UndecodableError(f"a chunk {kind!r} of the PNG is damaged")


def _check_whole_mp4(path: Path) -> None:
    """Refuse an MP4 whose boxes reach beyond its end; libav reads it as far as it goes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = 0
        while start + 8 <= size:
            file.seek(start)
            header = file.read(16)
            length, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if start == 0 and kind != b"ftyp":
                return
            if length == 1:  # a 64-bit length follows
                length = int.from_bytes(header[8:], "big")
            elif length == 0:  # to the end of the file
                return
            if length < 8 or start + length > size:  # noqa: PLR2004 - the header itself
                raise UndecodableError(f"the MP4 is cut short or damaged in its box {kind!r}")
            start += length


def _stored(file: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Describe the file that is to be stored."""
    size = file.stat().st_size
    if size > job["max_bytes"]:
        raise TooLargeError(f"{size} bytes are more than {job['max_bytes']}")
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return {"file": str(file), "size": size, "sha256": digest}


JOBS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "image": check_image,
    "video": check_video,
}


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """Do one job. Everything that can happen to it becomes an answer."""
    _limit_cpu()
    try:
        return {"found": JOBS[job["kind"]](job)}
    except UndecodableError as error:
        return {"undecodable": str(error)}
    except TooLargeError as error:
        return {"too_large": str(error)}
    except MemoryError:
        return {"undecodable": f"it needs more than {MEMORY_BYTES} bytes of memory"}
    except (FFmpegError, OSError) as error:
        return _judged(error, job)
    except Exception:  # noqa: BLE001 - the parent raises it, with this traceback
        return {"failed": traceback.format_exc()}


def _judged(error: FFmpegError | OSError, job: dict[str, Any]) -> dict[str, Any]:
    """Tell the file's faults from ours."""
    if error.errno == errno.EFBIG:
        return {"too_large": f"conformed, it is more than {job['max_bytes']} bytes"}
    if isinstance(error, FFmpegError) and error.errno not in _OURS:
        return {"undecodable": f"libav says: {error}"}
    return {"failed": "".join(traceback.format_exception(error))}


def _limit(kind: int, soft: int) -> None:
    """Lower a limit; never above what is already set for this process."""
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(kind, (soft, hard))


def _limit_cpu() -> None:
    """Give the next job its own CPU time: the system counts it over the whole life."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, round(usage.ru_utime + usage.ru_stime) + CPU_SECONDS)


def _read_jobs(jobs: "queue.SimpleQueue[dict[str, Any]]") -> None:
    """Pass jobs on; the end of the input is the end of the parent, whatever runs just then."""
    for line in sys.stdin.buffer:
        jobs.put(json.loads(line))
    os._exit(0)


def main(max_bytes: int) -> None:
    """Serve jobs until standard input ends."""
    # Ctrl-C and a service's SIGTERM go to the whole group; the parent decides what they mean.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails with EFBIG instead
    faulthandler.enable()
    av.logging.set_level(None)
    # Answers get a descriptor of their own, so that nothing libav prints can mix with them.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    if sys.platform == "linux":
        _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    _limit(resource.RLIMIT_FSIZE, max_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()
    answers.write(b'{"ready": true}\n')
    while True:
        answers.write(json.dumps(answer(jobs.get())).encode() + b"\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
