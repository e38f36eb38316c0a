"""A still's own bytes, and how it is to be shown, before libav sees one of them.

Bytes behind the picture's own end are cut off: such a tail is no damage. Its metadata (EXIF,
density) is read here, never by libav. Runs in the child; it decodes nothing.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from vidgen_worker.media.formats import HEAD, PNG, NoOutputError, UndecodableError, form

ODDEST_SHAPE = 8
"""A pixel that is wider than high by more than this factor, or the reverse, is a mistake."""
UPRIGHT, LAST_WAY = 1, 8
"""Orientations as EXIF numbers them."""


@dataclass(frozen=True, slots=True)
class Still:
    """A picture's own bytes, and how it is to be shown.

    `way` is the orientation as EXIF numbers it, `shape` the width of a pixel by its height.
    `plain` says that a viewer needs nothing but these bytes.
    """

    format: str
    data: bytes
    way: int = UPRIGHT
    shape: Fraction | None = None
    plain: bool = True
    canvas: tuple[int, int, int, int] | None = None
    """The place of an animation's first picture: x, y, and the whole width and height."""


def still(data: bytes) -> Still:
    """Read a picture's bytes. Raises UndecodableError where they are cut short or damaged."""
    match form(data[:HEAD]):
        case "png":
            return _png(data)
        case "jpeg":
            return _jpeg(data)
        case "webp":
            return _webp(data)
        case name:
            return Still(name, data)


def _png(data: bytes) -> Still:
    kept, way, shape, pictures, plain, colour = [PNG], UPRIGHT, None, False, True, 0
    for kind, content, chunk in png_chunks(data):
        match kind:
            case b"IHDR" if len(content) == 13:  # noqa: PLR2004 - as PNG says
                colour = content[9]
            case b"eXIf":
                way = _way(content)
            case b"pHYs" if len(content) == 9:  # noqa: PLR2004 - as PNG says
                across, down, unit = struct.unpack(">IIB", content)
                shape = _shape(across, down, densities=unit != 0)
            case b"acTL":
                plain = False
            case b"IDAT":
                pictures = pictures or bool(content)
            case _:
                pass
        # A grey profile does not fit the colours that the picture may be converted to.
        if kind in _PNG_SHOWN and not (kind == b"iCCP" and colour in _PNG_GREY):
            kept.append(chunk)
    if not pictures:
        raise NoOutputError("the PNG is an empty wrapper: there is no picture in it")
    return Still("png", b"".join(kept), way, shape, plain)


_PNG_SHOWN = {b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"IDAT", b"IEND"}
_PNG_GREY = {0, 4}


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield kind, content and all bytes of each chunk up to the last one."""
    start, kind, empty = len(PNG), b"", True
    while kind != b"IEND":
        length, kind = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
        end = start + 12 + length
        if end > len(data):
            if empty and len(data) - len(PNG) < HEAD and b"IDAT" not in data:
                raise NoOutputError("the PNG is an empty wrapper: there is no picture in it")
            raise UndecodableError("the PNG is cut short")
        content = data[start + 8 : end - 4]
        empty = empty and kind != b"IDAT"
        if zlib.crc32(content, zlib.crc32(kind)) == int.from_bytes(data[end - 4 : end], "big"):
            yield kind, content, data[start:end]
        elif kind[:1].isupper():
            raise UndecodableError(f"a chunk {kind!r} of the PNG is damaged")
        start = end


def _jpeg(data: bytes) -> Still:
    kept, way, shape, parts, scans = [data[:2]], UPRIGHT, None, 3, 0
    for marker, start, end in _jpeg_parts(data):
        content = data[start + 4 : end]
        if marker == _APP1 and content.startswith(b"Exif\0\0"):
            way = _way(content[6:])
        elif marker == _APP0 and content.startswith(b"JFIF\0") and len(content) >= 12:  # noqa: PLR2004
            unit, across, down = struct.unpack(">BHH", content[7:12])
            shape = _shape(across, down, densities=unit != 0)
        elif marker in _JPEG_FRAMES and len(content) >= 6:  # noqa: PLR2004 - as JPEG says
            parts = content[5]
        scans += marker == _SCAN
        if marker not in _JPEG_NOTES:
            kept.append(data[start:end])
    if not scans:
        raise NoOutputError("the JPEG is an empty wrapper: there is no picture in it")
    if parts == 3:  # noqa: PLR2004 - a grey or CMYK profile does not fit the colours of the PNG
        profile = [
            data[start:end]
            for marker, start, end in _jpeg_parts(data)
            if marker == _APP2 and data[start + 4 : end].startswith(b"ICC_PROFILE\0")
        ]
        kept[1:1] = profile
    return Still("jpeg", b"".join(kept), way, shape)


_APP0, _APP1, _APP2, _SCAN, _END, _FILL = 0xE0, 0xE1, 0xE2, 0xDA, 0xD9, 0xFF
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Comments, and all application segments but Adobe's, which says how colours are coded.
_JPEG_NOTES = frozenset(range(0xE0, 0xEE)) | {0xEF, 0xFE}
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})


def _jpeg_parts(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment up to the end of the picture, scans with data."""
    start = 2
    while True:
        start = data.find(b"\xff", start)
        if start < 0 or start + 1 >= len(data):
            raise UndecodableError("the JPEG is cut short")
        marker = data[start + 1]
        if marker == _FILL:
            start += 1
            continue
        if marker == _END:
            yield marker, start, start + 2
            return
        if marker in _JPEG_ALONE or marker == 0:
            start += 2
            continue
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        if marker == _SCAN:
            end = _scan_end(data, end)
        if end > len(data):
            raise UndecodableError("the JPEG is cut short")
        yield marker, start, end
        start = max(end, start + 2)


def _scan_end(data: bytes, start: int) -> int:
    """Find the marker behind the coded pixels; the length of the data where there is none."""
    while True:
        start = data.find(b"\xff", start)
        if start < 0 or start + 1 >= len(data):
            raise UndecodableError("the JPEG is cut short")
        following = data[start + 1]
        if following not in (0, _FILL) and following not in _JPEG_ALONE:
            return start
        start += 1 if following == _FILL else 2


def _webp(data: bytes) -> Still:
    end = int.from_bytes(data[4:8], "little") + 8
    if end > len(data):
        raise UndecodableError("the WebP is cut short")
    way, canvas, chunks, first = UPRIGHT, None, [], None
    for kind, content in _riff_chunks(data[12:end]):
        if kind == b"EXIF":
            way = _way(content.removeprefix(b"Exif\0\0"))
        elif kind == b"VP8X":
            canvas = _u24(content, 4) + 1, _u24(content, 7) + 1
        elif kind == b"ANMF" and first is None:
            first = content
        elif kind in (b"VP8 ", b"VP8L", b"ALPH"):
            chunks.append((kind, content))
    if first is not None and canvas is not None:
        x, y, width, height = 2 * _u24(first, 0), 2 * _u24(first, 3), _u24(first, 6), _u24(first, 9)
        chunks = [pair for pair in _riff_chunks(first[16:]) if pair[0] in _WEBP_SHOWN]
        lies = (x, y, *canvas)
        return Still("webp", _as_webp(chunks, width + 1, height + 1), way, None, canvas=lies)
    if not chunks:
        raise NoOutputError("the WebP is an empty wrapper: there is no picture in it")
    width, height = canvas or (1, 1)
    return Still("webp", _as_webp(chunks, width, height), way)


_WEBP_SHOWN = {b"VP8 ", b"VP8L", b"ALPH"}


def _as_webp(chunks: list[tuple[bytes, bytes]], width: int, height: int) -> bytes:
    """Put one picture together again, without its metadata."""
    if any(kind == b"ALPH" for kind, _ in chunks):
        size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        chunks = [(b"VP8X", b"\x10\0\0\0" + size), *chunks]
    body = b"".join(
        kind + len(content).to_bytes(4, "little") + content + b"\0" * (len(content) % 2)
        for kind, content in chunks
    )
    return b"RIFF" + (len(body) + 4).to_bytes(4, "little") + b"WEBP" + body


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    start = 0
    while start + 8 <= len(data):
        kind, length = (
            data[start : start + 4],
            int.from_bytes(data[start + 4 : start + 8], "little"),
        )
        if start + 8 + length > len(data):
            raise UndecodableError(f"the WebP is damaged in its chunk {kind!r}")
        yield kind, data[start + 8 : start + 8 + length]
        start += 8 + length + length % 2


def _u24(data: bytes, start: int) -> int:
    return int.from_bytes(data[start : start + 3], "little")


def _way(exif: bytes) -> int:
    """Return the orientation in the EXIF data; upright where none can be read."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return UPRIGHT
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, start)
        for number in range(entries):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, start + 2 + 12 * number)
            if (tag, kind) == (0x112, 3):
                return value if UPRIGHT <= value <= LAST_WAY else UPRIGHT
    except struct.error:
        pass
    return UPRIGHT


def _shape(across: int, down: int, *, densities: bool) -> Fraction | None:
    """Return the shape of a pixel: with more pixels to the inch, each is narrower.

    Without a unit it is the ratio itself, as libav writes and reads it.
    """
    if not across or not down:
        return None
    shape = Fraction(down, across) if densities else Fraction(across, down)
    return shape if Fraction(1, ODDEST_SHAPE) <= shape <= ODDEST_SHAPE else None
