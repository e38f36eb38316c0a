"""The PNG that is stored as it came: exact size, eight bits of red, green and blue, and whole.

Most stills are such a file, and for them no decoder of libav's is needed and no process is forked,
which costs five times as much as the look itself. Only Python and zlib read it, in bounded memory:
the worker itself, which has the secrets, unpacks compressed answers with the same zlib. It never
refuses a file. What it can't vouch for is judged by libav, in a process of its own.
"""

import hashlib
import struct
import zlib
from pathlib import Path
from typing import Any

from vidgen_worker.media.formats import PNG, NoOutputError, UndecodableError
from vidgen_worker.media.pictures import UPRIGHT, png_chunks, still

OVERHEAD = 64 * 1024
"""Bytes by which an honest file may be larger than its pixels: headers, profile, stored blocks."""
UNPACKED_AT_ONCE = 64 * 1024
"""Bytes of pixels that are looked at together."""
LAST_FILTER = 4
"""Filters of a row are numbered from 0 to this (PNG specification, 9.2)."""
_COLOURS = (8, 2, 0, 0, 0)
"""IHDR behind the size: bits, colour type RGB, compression, filter method, not interlaced."""


def plain_png(job: dict[str, Any]) -> dict[str, Any] | None:
    """Describe the file of a job that is such a PNG; None where only libav can tell."""
    path, width, height = Path(job["path"]), job["width"], job["height"]
    row = 1 + 3 * width  # the filter's number, then the pixels
    try:
        with path.open("rb", buffering=0) as file:
            if file.read(len(PNG)) != PNG:
                return None
        if path.stat().st_size > min(job["max_bytes"], row * height + OVERHEAD):
            return None
        data = path.read_bytes()
        if not _is_shown_as_stored(data) or not _is_whole(data, width, height, row):
            return None
    except (UndecodableError, NoOutputError, zlib.error, OSError, MemoryError):
        return None  # the process that looks next says what is wrong, and whose fault it is
    return {
        "width": width, "height": height, "format": "png", "conformed": False, "whole": True,
        "file": str(path), "size": len(data), "sha256": hashlib.sha256(data).hexdigest(),
    }  # fmt: skip


def _is_shown_as_stored(data: bytes) -> bool:
    """Whether a viewer needs nothing but the pixels. Raises as `still` does."""
    found = still(data)
    return found.plain and found.way == UPRIGHT and found.shape in (None, 1)


def _is_whole(data: bytes, width: int, height: int, row: int) -> bool:
    """Whether the pixels are all there, and nothing else. Raises zlib.error."""
    chunks = [(kind, content) for kind, content, _ in png_chunks(data)]
    kinds = [kind for kind, _ in chunks]
    header = struct.pack(">IIBBBBB", width, height, *_COLOURS)
    if chunks[0] != (b"IHDR", header) or kinds.count(b"IHDR") > 1 or b"tRNS" in kinds:
        return False
    packed = b"".join(content for kind, content in chunks if kind == b"IDAT")
    return _unpacks_to(packed, row, height)


def _unpacks_to(packed: bytes, row: int, height: int) -> bool:
    """Whether these are so many rows of pixels, each with a filter. Raises zlib.error.

    Some rows at once: all pixels together are six megabytes, whose memory costs more than zlib.
    """
    unpacker, step = zlib.decompressobj(), row * max(UNPACKED_AT_ONCE // row, 1)
    left, size = packed, row * height
    while size > 0:
        # What was asked for, or all that there is.
        pixels = unpacker.decompress(left, min(step, size))
        if len(pixels) < min(step, size) or max(pixels[::row]) > LAST_FILTER:
            return False
        left, size = unpacker.unconsumed_tail, size - len(pixels)
    # One byte more than there may be: it shows what has too many, and reads the checksum.
    return not unpacker.decompress(left, 1) and unpacker.eof and not unpacker.unused_data
