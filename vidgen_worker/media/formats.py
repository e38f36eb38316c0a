"""The format of an output, and where its film ends, by its bytes and before libav opens it.

Magic bytes name the one demuxer or decoder that may open a file: a format that names other files
(a playlist, a list to concatenate) is none of them. Runs in the child; it decodes nothing.
"""

from pathlib import Path

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
HEAD = 4096
"""Bytes that tell what a file is."""
BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"styp", b"sidx"})
"""Boxes that an MP4 or MOV begins with."""
CONTROL = frozenset(range(32)) - frozenset(b"\t\n\r\f\x1b")


class UndecodableError(Exception):
    """The bytes are not a usable picture or clip."""


class NoOutputError(Exception):
    """The bytes are something other than an output: a page, an error, an empty wrapper."""


class TooLargeError(Exception):
    """The conformed file would be larger than the limit."""


def form(head: bytes) -> str:
    """Name the format of a file that begins like this. Raises NoOutputError for a page."""
    if not head.strip(b"\0"):
        raise NoOutputError("there is nothing in the file but zeros" if head else "it is empty")
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[4:8] in BOXES:
        return "mov"
    if head.startswith(b"RIFF") and head[8:12] in _RIFF:
        return _RIFF[head[8:12]]
    if len(head) > 2 * TS_PACKET and head[0] == head[TS_PACKET] == head[2 * TS_PACKET] == TS_SYNC:
        return "mpegts"
    if _is_text(head):
        said = head[:200].decode("utf-8", "backslashreplace")
        raise NoOutputError(f"it is a text and no output; it begins with {said!r}")
    raise UndecodableError("it is neither picture nor film")


_MAGIC = (
    (PNG, "png"), (JPEG, "jpeg"), (b"GIF87a", "gif"), (b"GIF89a", "gif"), (b"BM", "bmp"),
    (b"II*\0", "tiff"), (b"MM\0*", "tiff"), (b"\x1a\x45\xdf\xa3", "matroska"), (b"OggS", "ogg"),
)  # fmt: skip
_RIFF = {b"WEBP": "webp", b"AVI ": "avi"}
TS_PACKET, TS_SYNC = 188, 0x47


def _is_text(head: bytes) -> bool:
    """Whether a person could read it, in UTF-8, UTF-16 or an old 8-bit code."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")):
        return True
    text = head.replace(b"\0", b"") if head[:16].count(0) in (7, 8) else head
    if any(byte in CONTROL for byte in text):
        return False
    try:
        text.decode()
    except UnicodeDecodeError as error:
        cut_at_the_end = error.start >= len(text) - 4
        return cut_at_the_end or sum(byte < 0x7F for byte in text) > len(text) / 2  # noqa: PLR2004
    return True


def head_of(path: Path) -> bytes:
    """Read the beginning of a file."""
    with path.open("rb") as file:
        return file.read(HEAD)


# Films


def mp4_end(path: Path) -> int:
    """Return where the film of an MP4 ends; refuse a file without a film, or with one cut short.

    What follows the film is a tail, whatever it looks like. Where all pictures are in one table,
    libav reports the missing ones; missing fragments show only in a last box that is cut short.
    """
    size = path.stat().st_size
    seen: set[bytes] = set()
    with path.open("rb") as file:
        start = 0
        while start + 8 <= size:
            file.seek(start)
            header = file.read(16)
            length, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if length == 1:  # a 64-bit length follows
                length = int.from_bytes(header[8:], "big")
            elif length == 0:  # to the end of the file
                length = size - start
            complete = {b"moov", b"mdat"} <= seen
            if length < 8 or start + length > size:  # noqa: PLR2004 - the header itself
                if complete and (b"moof" not in seen or kind not in (b"moof", b"mdat")):
                    return start
                raise UndecodableError(f"the MP4 is cut short or damaged in its box {kind!r}")
            seen.add(kind)
            start += length
    if not seen & {b"moov", b"mdat", b"moof"}:
        raise NoOutputError("the MP4 is an empty wrapper: there is no film in it")
    return start


def proves_whole(name: str, path: Path) -> bool:
    """Whether a file of this format that decodes is known to have all its bytes."""
    if name == "gif":
        return path.read_bytes().rstrip(b"\0").endswith(b";")
    if name == "avi":
        with path.open("rb") as file:
            header = file.read(8)
        return path.stat().st_size >= int.from_bytes(header[4:], "little") + 8
    return name in {"png", "jpeg", "webp", "mov"}
