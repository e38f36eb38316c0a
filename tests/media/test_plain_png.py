"""The PNG that needs no process of its own, and everything that looks nearly like it."""

import hashlib
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from vidgen_worker.media import plain_png as reader
from vidgen_worker.media.outputs import Media
from vidgen_worker.media.plain_png import OVERHEAD, plain_png

WIDTH, HEIGHT = 16, 9
MEGABYTE = 1_000_000
RGB = (8, 2, 0, 0, 0)
ROWS = b"".join(
    bytes([filter_]) + bytes(range(3 * WIDTH)) for filter_ in (0, 1, 2, 3, 4, 0, 1, 2, 3)
)
LAST = len(ROWS) - len(ROWS) // HEIGHT
"""Where the last row begins."""
PACKED = zlib.compress(ROWS)


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(kind)).to_bytes(4, "big")
    return len(content).to_bytes(4, "big") + kind + content + checksum


def png(
    packed: bytes = PACKED, *,
    size: tuple[int, int] = (WIDTH, HEIGHT), colours: tuple[int, ...] = RGB, more: bytes = b"",
) -> bytes:  # fmt: skip
    """Write a PNG; `more` are chunks between its header and its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, *colours))
    parts = [packed[:20], packed[20:]]
    pixels = b"".join(chunk(b"IDAT", part) for part in parts)
    return b"\x89PNG\r\n\x1a\n" + header + more + pixels + chunk(b"IEND", b"")


def looked_at(folder: Path, content: bytes, max_bytes: int = MEGABYTE) -> dict[str, Any] | None:
    file = folder / "output"
    file.write_bytes(content)
    return plain_png({"path": str(file), "width": WIDTH, "height": HEIGHT, "max_bytes": max_bytes})


@pytest.mark.parametrize(
    "content",
    [
        png(),
        png(more=chunk(b"pHYs", struct.pack(">IIB", 2835, 2835, 1)) + chunk(b"tEXt", b"a\0b")),
        png() + b"a tail that no viewer looks at",
    ],
    ids=["nothing but pixels", "notes", "a tail"],
)
def test_a_plain_png_is_described_as_libav_would(tmp_path: Path, content: bytes) -> None:
    found = looked_at(tmp_path, content)
    assert found == {
        "width": WIDTH, "height": HEIGHT, "format": "png", "conformed": False, "whole": True,
        "file": str(tmp_path / "output"), "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip


def exif(way: int) -> bytes:
    return b"MM\0*" + struct.pack(">IHHHIHH", 8, 1, 0x112, 3, 1, way, 0)


NEARLY = {
    "a row short": png(zlib.compress(ROWS[:LAST])),
    "a byte too many": png(zlib.compress(ROWS + b"\0")),
    "pixels without end": png(zlib.compress(bytes(50 * MEGABYTE))),
    "a filter that is none": png(zlib.compress(b"\5" + ROWS[1:])),
    "a last filter that is none": png(zlib.compress(ROWS[:LAST] + b"\5" + ROWS[LAST + 1 :])),
    "a wrong checksum of the pixels": png(PACKED[:-1] + bytes([PACKED[-1] ^ 1])),
    "no end of the pixels": png(PACKED[:-6]),
    "bytes behind the pixels": png(PACKED + b"more"),
    "a flipped bit": png()[:60] + bytes([png()[60] ^ 1]) + png()[61:],
    "cut short": png()[:-13],
    "another size": png(size=(HEIGHT, WIDTH)),
    "sixteen bits": png(colours=(16, 2, 0, 0, 0)),
    "a palette": png(colours=(8, 3, 0, 0, 0)),
    "alpha": png(colours=(8, 6, 0, 0, 0)),
    "one transparent colour": png(more=chunk(b"tRNS", bytes(6))),
    "interlaced": png(colours=(8, 2, 0, 0, 1)),
    "two headers": png(more=chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, *RGB))),
    "lying": png(more=chunk(b"eXIf", exif(6))),
    "wide pixels": png(more=chunk(b"pHYs", struct.pack(">IIB", 1, 2, 0))),
    "an animation": png(more=chunk(b"acTL", struct.pack(">II", 2, 0))),
    "larger than its pixels": png(more=chunk(b"tEXt", bytes(2 * OVERHEAD))),
    "no picture": b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""),
    "another format": b"\xff\xd8\xff" + png(),
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("content", NEARLY.values(), ids=NEARLY.keys())
def test_whatever_is_odd_about_a_png_is_left_to_libav(tmp_path: Path, content: bytes) -> None:
    assert looked_at(tmp_path, content) is None


def test_what_is_odd_about_a_png_is_found_in_each_of_its_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "UNPACKED_AT_ONCE", 1)  # a row at a time
    assert looked_at(tmp_path, png()) is not None
    for name, content in NEARLY.items():
        assert looked_at(tmp_path, content) is None, name


def test_a_plain_png_above_the_limit_is_left_to_who_says_so(tmp_path: Path) -> None:
    assert looked_at(tmp_path, png(), len(png())) is not None
    assert looked_at(tmp_path, png(), len(png()) - 1) is None


def faults_of_processes(child: int) -> int:
    """Page faults of the processes that a child has had and waited for: proc(5), field 11."""
    fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    return int(fields[8])


async def test_a_plain_png_takes_no_process_and_any_other_picture_takes_one(tmp_path: Path) -> None:
    media = Media(max_image_bytes=MEGABYTE, max_video_bytes=MEGABYTE)
    try:
        await media.prove()
        (child,) = media.child_pids
        before = faults_of_processes(child)
        file = tmp_path / "output"
        file.write_bytes(png())
        assert not (await media.check_image(file, f"{WIDTH}:{HEIGHT}")).conformed
        assert faults_of_processes(child) == before
        file.write_bytes(png(more=chunk(b"eXIf", exif(2))))
        assert (await media.check_image(file, f"{WIDTH}:{HEIGHT}")).conformed
        assert faults_of_processes(child) > before
    finally:
        await media.aclose()
