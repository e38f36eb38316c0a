"""How libav opens a file from outside: one demuxer, one protocol, limits. Runs in the child."""

import io
import os
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.stream import VideoStream

from vidgen_worker.media.formats import UndecodableError

MAX_PIXELS = 64_000_000
"""Largest picture or frame that is decoded; four times 4K."""
THREADS = 2
"""Threads of an encoder, and of the decoder before it: more would multiply the memory."""
# Damage is an error: libav must not conceal it.
STRICT = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
# A demuxer that is not on this list is never opened, whatever a file says of itself. Those that
# open other files (concat, hls, dash, image2, …) are not, nor may any open a file by its name.
_DEMUXERS = {
    "mov": "mov", "matroska": "matroska", "avi": "avi", "gif": "gif", "mpegts": "mpegts",
    "ogg": "ogg", "mp3": "mp3", "wav": "wav", "flac": "flac",
}  # fmt: skip


class _Part(io.FileIO):
    """The first bytes of a file: libav would read a tail as more of the film."""

    def __init__(self, path: Path, end: int) -> None:
        super().__init__(path)
        self._end = end

    def read(self, size: int = -1, /) -> bytes:  # type: ignore[override]
        left = max(self._end - self.tell(), 0)
        return super().read(left if size < 0 else min(size, left)) or b""

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if whence == os.SEEK_END:
            offset, whence = self._end + offset, os.SEEK_SET
        return super().seek(offset, whence)


def opened(name: str, source: Path | bytes, end: int | None = None) -> InputContainer:
    """Open a film up to its end, or a picture in a film's format. Raises UndecodableError."""
    demuxer = _DEMUXERS.get(name)
    if demuxer is None:
        raise UndecodableError(f"a file of format {name} is not a film")
    return av.open(
        _file(source, end), "r",
        format=demuxer,
        options={"format_whitelist": _WHITELIST, "protocol_whitelist": "file"},
        # A title in an old character encoding is no reason to refuse a film.
        metadata_errors="replace",
    )  # fmt: skip


def _file(source: Path | bytes, end: int | None) -> str | io.RawIOBase | io.BytesIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    return str(source) if end in (None, source.stat().st_size) else _Part(source, end or 0)


_WHITELIST = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,ogg,mp3,wav,flac"


def has_decoder(stream: VideoStream | AudioStream) -> bool:
    """Whether there is a decoder for it; PyAV's types don't say that there may be none."""
    context: object = stream.codec_context
    return context is not None


def video_stream(container: InputContainer, threads: int = 1) -> VideoStream:
    """Return the pictures of a film, ready to be decoded. Raises UndecodableError.

    One thread decodes a few pictures at a lower cost.
    """
    if not container.streams.video:
        raise UndecodableError("there is neither picture nor film in the file")
    stream = container.streams.video[0]
    context = stream.codec_context
    if not has_decoder(stream):
        raise UndecodableError("there is no decoder here for the codec of its pictures")
    if context.width * context.height > MAX_PIXELS:
        raise UndecodableError(f"{context.width}x{context.height} is more than {MAX_PIXELS} pixels")
    context.options = dict(STRICT)
    context.thread_count = threads
    return stream
