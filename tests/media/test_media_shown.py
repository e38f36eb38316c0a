"""What is judged and stored is what a viewer shows: the way up, shape, colours, hidden parts."""

import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import pytest
from PIL import Image

from tests.support.films import (
    AS_DRAWN,
    BLUE,
    GREEN,
    RED,
    SIZE,
    WHITE,
    Corners,
    Looking,
    corners,
    drawn,
    film,
    frames,
    pure,
    trimmed,
)
from vidgen_worker.domain.faults import Fault

BLACK = (0, 0, 0)


@pytest.fixture(scope="module")
def media() -> Iterator[Looking]:
    looking = Looking()
    yield looking
    looking.runner.run(looking.media.aclose())
    looking.runner.close()


def opened(file: Path) -> Image.Image:
    with Image.open(file) as image:
        image.load()
        assert image.format == "PNG"
        assert not image.getexif()
        return image


# Film


MATRICES: dict[str, tuple[tuple[int, int, int, int], Corners]] = {
    "as it is": ((1, 0, 0, 1), AS_DRAWN),
    "mirrored": ((-1, 0, 0, 1), (GREEN, RED, WHITE, BLUE)),
    "by 180 degrees": ((-1, 0, 0, -1), (WHITE, BLUE, GREEN, RED)),
    "upside down": ((1, 0, 0, -1), (BLUE, WHITE, RED, GREEN)),
    "clockwise": ((0, 1, -1, 0), (BLUE, RED, WHITE, GREEN)),
    "counter-clockwise": ((0, -1, 1, 0), (GREEN, WHITE, RED, BLUE)),
    "transposed": ((0, 1, 1, 0), (RED, BLUE, GREEN, WHITE)),
    "transversed": ((0, -1, -1, 0), (WHITE, GREEN, BLUE, RED)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_a_film_is_stored_in_the_orientation_that_a_viewer_shows(
    media: Looking, tmp_path: Path, name: str
) -> None:
    matrix, wanted = MATRICES[name]
    lying = matrix[0] == 0
    shown = (90, 160) if lying else (160, 90)
    file = film(tmp_path / "a.mp4", matrix=matrix)
    found = media.check_video(file, f"{shown[0]}:{shown[1]}", 1)
    assert ((found.width, found.height), found.conformed) == (shown, name != "as it is")
    stored = frames(found.file)
    assert (stored[-1].size, corners(stored[-1]), len(stored)) == (shown, wanted, 24)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_film_with_non_square_pixels_is_stored_in_square_ones(
    media: Looking, tmp_path: Path, name: str
) -> None:
    def circle(number: int) -> Image.Image:
        # In the middle third of the width: what a crop to 16:9 leaves of 4:3 pixels in 120x90.
        image = Image.new("RGB", (120, 90), BLUE)
        image.paste(RED, (45, 25, 75, 65))  # 40 wide and 40 high, as shown
        del number
        return image

    file = film(tmp_path / name, size=(120, 90), shape=Fraction(4, 3), draw=circle)
    found = media.check_video(file, "160:90", 1)
    assert ((found.width, found.height), found.conformed) == ((160, 90), True)
    stored = frames(found.file)[-1]
    assert stored.size == (160, 90)
    red = [x for x in range(160) if pure(stored.getpixel((x, 45))) == RED]  # type: ignore[arg-type]
    assert [red[0], red[-1]] == pytest.approx([60, 99], abs=2)


def test_a_film_whose_end_is_trimmed_by_an_edit_list_does_not_keep_the_end(
    media: Looking, tmp_path: Path
) -> None:
    def colours(number: int) -> Image.Image:
        return Image.new("RGB", SIZE, RED if number < 24 else BLUE)

    file = trimmed(film(tmp_path / "a.mp4", draw=colours, count=48), 0, 900)
    found = media.check_video(file, "160:90", 1)
    assert found.conformed
    stored = [pure(image.getpixel((80, 45))) for image in frames(found.file)]  # type: ignore[arg-type]
    assert set(stored) == {RED}


@pytest.mark.parametrize(
    "tail",
    [
        b"x" * 5000,
        b"\0" * 5000,
        b"\0\0\x10\0mdat" + b"x" * 50,
        b"\xff\xff\xff\xffuuid",
        b"\0\0\0\0",
        b"<html>",
    ],
)
def test_a_film_with_a_tail_is_stored_as_it_is(media: Looking, tmp_path: Path, tail: bytes) -> None:
    file = film(tmp_path / "a.mp4")
    file.write_bytes(file.read_bytes() + tail)
    found = media.check_video(file, "160:90", 1)
    assert (found.conformed, found.right_duration) == (False, True)


def test_a_film_in_fragments_is_stored_and_one_cut_short_is_not(
    media: Looking, tmp_path: Path
) -> None:
    file = tmp_path / "a.mp4"
    with av.open(str(file), "w", options={"movflags": "frag_keyframe+empty_moov"}) as output:
        stream = output.add_stream("libx264", rate=24, options={"g": "6"})
        stream.width, stream.height, stream.pix_fmt = 160, 90, "yuv420p"
        for number in range(24):
            image = drawn(SIZE)
            image.putpixel((number, 0), BLACK)
            frame = av.VideoFrame.from_image(image)  # type: ignore[no-untyped-call]
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    found = media.check_video(file, "160:90", 1)
    assert found.right_duration
    content = file.read_bytes()
    file.write_bytes(content[: content.rindex(b"mdat") + 20])
    with pytest.raises(Fault, match="cut short") as raised:
        media.check_video(file, "160:90", 1)
    assert raised.value.name == "output_undecodable"


@pytest.mark.parametrize(
    ("codec", "pixels", "full"),
    [
        ("libx264", "yuvj420p", True),
        ("libvpx-vp9", "yuv420p", True),
        ("libx264", "yuv420p10le", False),
        ("libx264", "yuv422p", False),
        ("libx265", "yuv420p10le", False),
    ],
)
def test_a_film_of_another_range_or_depth_keeps_its_greys(
    media: Looking, tmp_path: Path, codec: str, pixels: str, *, full: bool
) -> None:
    grey = (200, 200, 200)
    name = "a.mkv" if codec.startswith("libvpx") else "a.mp4"
    file = film(
        tmp_path / name, codec=codec, pixels=pixels, full_range=full, count=6,
        draw=lambda _: Image.new("RGB", SIZE, grey),
        options={"x265-params": "log-level=none"} if codec == "libx265" else {},
    )  # fmt: skip
    found = media.check_video(file, "160:90", 1)
    assert found.conformed
    with av.open(str(found.file)) as container:
        frame = next(container.decode(video=0))
        assert (frame.format.name, int(frame.color_range)) == ("yuv420p", 1)
        luma = bytes(frame.planes[0])[0]
    assert luma == pytest.approx(16 + 200 * 219 / 255, abs=2)


def test_an_hdr_film_is_not_stored_grey(media: Looking, tmp_path: Path) -> None:
    file = tmp_path / "a.mp4"
    with av.open(str(file), "w") as output:
        params = "log-level=none:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"
        stream = output.add_stream("libx265", rate=24, options={"x265-params": params})
        stream.width, stream.height, stream.pix_fmt = 160, 90, "yuv420p10le"
        for _ in range(6):
            frame = av.VideoFrame(160, 90, "yuv420p10le")
            for plane, value in zip(frame.planes, (500, 512, 512), strict=True):
                plane.update(struct.pack("<H", value) * (plane.buffer_size // 2))
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    found = media.check_video(file, "160:90", 1)
    assert found.conformed
    with av.open(str(found.file)) as container:
        frame = next(container.decode(video=0))
        assert (int(frame.color_trc), int(frame.color_primaries)) == (1, 1)
        # As it is, the code is 123: grey. A viewer shows 90 candelas, which is nearly white.
        assert bytes(frame.planes[0])[0] > 150


def test_what_is_transparent_in_a_film_does_not_show_its_hidden_colour(
    media: Looking, tmp_path: Path
) -> None:
    image = drawn(SIZE).convert("RGBA")
    image.paste((0, 255, 0, 0), (80, 0, 160, 45))
    image.save(tmp_path / "still.png")
    file = tmp_path / "a.mov"
    with av.open(str(file), "w") as output, av.open(str(tmp_path / "still.png")) as still:
        stream = output.add_stream("png", rate=24)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 160, 90, "rgba"
        frame = next(still.decode(video=0))
        for number in range(6):
            frame.pts, frame.time_base = number, Fraction(1, 24)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    found = media.check_video(file, "160:90", 1)
    assert corners(frames(found.file)[-1]) == (RED, BLACK, BLUE, WHITE)


@pytest.mark.parametrize(
    ("name", "sound"),
    [
        ("a.mov", ("pcm_s16le", 192_000, "stereo")),
        ("a.mov", ("pcm_s16le", 48_000, "5.1")),
        ("a.mov", ("pcm_s16le", 44_100, "mono")),
        ("a.mov", ("pcm_s24le", 96_000, "quad")),
        ("a.mov", ("pcm_s16le", 7_350, "7.1")),
        ("a.mp4", ("flac", 192_000, "stereo")),
        ("a.mp4", ("ac3", 48_000, "5.1")),
    ],
)
def test_sound_of_any_rate_and_layout_is_stored_so_that_every_player_plays_it(
    media: Looking, tmp_path: Path, name: str, sound: tuple[str, int, str]
) -> None:
    found = media.check_video(film(tmp_path / name, sound=sound), "160:90", 1)
    assert (found.conformed, found.right_duration) == (True, True)
    with av.open(str(found.file)) as container:
        [audio] = container.streams.audio
        assert (audio.codec_context.name, audio.codec_context.layout.nb_channels <= 2) == (
            "aac", True,
        )  # fmt: skip
        heard = list(container.decode(audio))
    assert sum(frame.samples for frame in heard) / heard[0].sample_rate == pytest.approx(1, abs=0.1)


def renamed(file: Path, was: bytes, now: bytes) -> Path:
    content = file.read_bytes()
    assert was in content
    file.write_bytes(content.replace(was, now))
    return file


@pytest.mark.parametrize("codec", [b"zzzz", b"drmi", b"\0\0\0\0", b"mp4s"])
def test_a_film_in_an_unknown_codec_does_not_decode(
    media: Looking, tmp_path: Path, codec: bytes
) -> None:
    file = renamed(film(tmp_path / "a.mp4"), b"avc1\0\0", codec + b"\0\0")
    with pytest.raises(Fault) as raised:
        media.check_video(file, "160:90", 1)
    assert raised.value.name == "output_undecodable"


def test_a_film_whose_sound_is_in_an_unknown_codec_is_shown_without(
    media: Looking, tmp_path: Path
) -> None:
    file = renamed(
        film(tmp_path / "a.mov", sound=("pcm_s16le", 48_000, "stereo")), b"sowt", b"zzzz"
    )
    found = media.check_video(file, "160:90", 1)
    assert found.conformed
    assert len(frames(found.file)) == 24


@pytest.mark.parametrize(("order", "count"), [("0", 48), ("3", 20)])
def test_frames_that_change_in_the_middle_of_a_film_are_all_brought_to_the_size(
    media: Looking, tmp_path: Path, order: str, count: int
) -> None:
    # With frames out of order, the times that are written here run backwards now and then.
    options = {"bf": order}
    small, large = film(tmp_path / "s.h264", options=options), film(
        tmp_path / "l.h264", size=(320, 180), options=options
    )  # fmt: skip
    both = tmp_path / "b.h264"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    file = tmp_path / "a.ts"
    with av.open(str(both), format="h264") as source, av.open(str(file), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size:
                packet.stream, packet.time_base = stream, Fraction(1, 24)
                packet.pts = packet.dts = number
                output.mux(packet)
    found = media.check_video(file, "160:90", 2)
    assert found.conformed
    stored = frames(found.file)
    assert {image.size for image in stored} == {(160, 90)}
    assert len(stored) >= count


def test_a_film_of_varying_frame_rate_keeps_its_times(media: Looking, tmp_path: Path) -> None:
    file = tmp_path / "a.mkv"
    times = [0, 40, 80, 500, 540, 1400, 1440]
    with av.open(str(file), "w") as output:
        stream = output.add_stream("libx264", rate=24, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 160, 90, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time in times:
            frame = av.VideoFrame.from_image(drawn(SIZE))  # type: ignore[no-untyped-call]
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    found = media.check_video(file, "160:90", 1)
    with av.open(str(found.file)) as container:
        stored = [round(float(frame.time) * 1000) for frame in container.decode(video=0)]
    assert stored == pytest.approx(times, abs=2)


@pytest.mark.parametrize("size", [(161, 91), (91, 161), (159, 90), (33, 17), (1280, 90)])
def test_a_film_of_any_size_is_cropped_about_its_centre(
    media: Looking, tmp_path: Path, size: tuple[int, int]
) -> None:
    file = film(tmp_path / "a.mkv", codec="ffv1", pixels="yuv444p", size=size, count=3)
    found = media.check_video(file, "160:90", 1)
    assert (found.width, found.height) == size
    stored = frames(found.file)[-1]
    assert (stored.size, corners(stored)) == ((160, 90), AS_DRAWN)


# Stills


WAYS: dict[int, Corners] = {
    1: AS_DRAWN,
    2: MATRICES["mirrored"][1],
    3: MATRICES["by 180 degrees"][1],
    4: MATRICES["upside down"][1],
    5: MATRICES["transposed"][1],
    6: MATRICES["clockwise"][1],
    7: MATRICES["transversed"][1],
    8: MATRICES["counter-clockwise"][1],
}


def noted(way: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = way
    return exif


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
@pytest.mark.parametrize("way", WAYS)
def test_a_still_is_stored_in_the_orientation_of_its_exif(
    media: Looking, tmp_path: Path, name: str, way: int
) -> None:
    drawn(SIZE).save(tmp_path / name, exif=noted(way), quality=95)
    shown = (90, 160) if way > 4 else (160, 90)
    found = media.check_image(tmp_path / name, f"{shown[0]}:{shown[1]}")
    assert (found.width, found.height) == shown
    assert found.conformed is (name != "a.png" or way != 1)
    with Image.open(found.file) as image:
        assert (image.size, corners(image)) == (shown, WAYS[way])
        assert image.getexif().get(0x112, 1) == 1


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*" * 9])
def test_exif_data_that_can_not_be_read_turns_no_picture(
    media: Looking, tmp_path: Path, exif: bytes
) -> None:
    drawn(SIZE).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + exif)
    found = media.check_image(tmp_path / "a.jpg", "160:90")
    assert corners(opened(found.file)) == AS_DRAWN


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_a_still_with_non_square_pixels_is_stored_in_square_ones(
    media: Looking, tmp_path: Path, name: str
) -> None:
    image = Image.new("RGB", (80, 90), BLUE)
    image.paste(RED, (30, 25, 50, 65))  # 40 by 40 as shown: a pixel is twice as wide as high
    image.save(tmp_path / name, dpi=(72, 144), quality=95)
    found = media.check_image(tmp_path / name, "160:90")
    assert ((found.width, found.height), found.conformed) == ((160, 90), True)
    stored = opened(found.file)
    red = [x for x in range(160) if pure(stored.getpixel((x, 45))) == RED]  # type: ignore[arg-type]
    assert [red[0], red[-1]] == pytest.approx([60, 99], abs=2)


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
@pytest.mark.parametrize("size", [SIZE, (320, 180)])
def test_what_is_transparent_in_a_still_stays_so_and_loses_its_hidden_colour(
    media: Looking, tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    image = drawn(size).convert("RGBA")
    image.paste((0, 255, 0, 0), (size[0] // 2, 0, size[0], size[1] // 2))
    image.save(tmp_path / name, exact=True, lossless=True)  # a WebP's options
    found = media.check_image(tmp_path / name, "160:90")
    assert found.conformed
    stored = opened(found.file)
    assert stored.mode == "RGBA"
    assert corners(stored) == (RED, BLACK, BLUE, WHITE)  # whoever drops the alpha sees nothing
    assert stored.getpixel((120, 22)) == (0, 0, 0, 0)
    edge = [stored.getpixel((x, 22)) for x in range(160)]
    assert max(green * alpha / 255 for _, green, _, alpha in edge) < 8  # type: ignore[misc]


def test_a_palette_with_a_transparent_colour_does_not_show_it(
    media: Looking, tmp_path: Path
) -> None:
    image = drawn(SIZE).quantize(4)
    green = image.getpixel((120, 20))
    for name in ("a.png", "a.gif"):
        image.save(tmp_path / name, transparency=green)
        found = media.check_image(tmp_path / name, "160:90")
        assert corners(opened(found.file)) == (RED, BLACK, BLUE, WHITE)


def test_a_png_whose_alpha_hides_nothing_is_stored_as_it_is(media: Looking, tmp_path: Path) -> None:
    drawn(SIZE).convert("RGBA").save(tmp_path / "a.png")
    assert not (media.check_image(tmp_path / "a.png", "160:90")).conformed


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_a_still_with_a_tail_is_a_still(media: Looking, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    drawn(SIZE).save(file, quality=95)
    whole = file.read_bytes()
    small = tmp_path / f"small-{name}"
    drawn((40, 20), (BLACK, BLACK, BLACK, BLACK)).save(small)
    for tail in (b"tail" * 50_000, small.read_bytes(), b"\0" * 9, b"\xff\xd8\xff", b"\xff"):
        file.write_bytes(whole + tail)
        found = media.check_image(file, "160:90")
        assert (found.width, found.height) == SIZE
        with Image.open(found.file) as image:
            assert corners(image) == AS_DRAWN


def test_a_jpeg_with_a_thumbnail_and_a_second_picture_shows_the_first(
    media: Looking, tmp_path: Path
) -> None:
    file, other = tmp_path / "a.jpg", drawn(SIZE, (BLACK, BLACK, BLACK, BLACK))
    drawn(SIZE).save(file, format="MPO", save_all=True, append_images=[other], quality=95)
    thumbnail = tmp_path / "t.jpg"
    other.resize((40, 20)).save(thumbnail)
    content = file.read_bytes()
    notes = b"Exif\0\0" + thumbnail.read_bytes()
    segment = b"\xff\xe1" + struct.pack(">H", len(notes) + 2) + notes
    file.write_bytes(content[:2] + segment + content[2:])
    found = media.check_image(file, "160:90")
    assert corners(opened(found.file)) == AS_DRAWN
    file.write_bytes(file.read_bytes()[: len(segment) + 400])
    with pytest.raises(Fault, match="cut short"):
        media.check_image(file, "160:90")


def test_a_progressive_jpeg_is_whole_only_with_its_last_scan(
    media: Looking, tmp_path: Path
) -> None:
    file = tmp_path / "a.jpg"
    drawn(SIZE).save(file, progressive=True, quality=95)
    found = media.check_image(file, "160:90")
    assert corners(opened(found.file)) == AS_DRAWN
    file.write_bytes(file.read_bytes()[:-40] + b"tail" * 99)
    with pytest.raises(Fault, match="cut short"):
        media.check_image(file, "160:90")


def test_damaged_metadata_of_a_png_is_no_damage_of_the_picture(
    media: Looking, tmp_path: Path
) -> None:
    file = tmp_path / "a.png"
    drawn(SIZE).save(file)
    content = file.read_bytes()
    note = struct.pack(">I", 4) + b"teXt" + b"oops" + b"\0\0\0\0"
    file.write_bytes(content[:33] + note + content[33:])
    assert not (media.check_image(file, "160:90")).conformed


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16", "LA", "CMYK"])
def test_a_still_in_another_colour_mode_is_stored_as_it_looks(
    media: Looking, tmp_path: Path, mode: str
) -> None:
    name = "a.jpg" if mode == "CMYK" else "a.png"
    image = drawn((320, 180), (WHITE, BLACK, BLACK, WHITE))
    (image.convert("L") if mode == "I;16" else image).convert(mode).save(tmp_path / name)
    if mode == "I;16":
        deep = Image.new("I;16", (320, 180), 0)
        deep.paste(65535, (0, 0, 160, 90))
        deep.paste(65535, (160, 90, 320, 180))
        deep.save(tmp_path / name)
    found = media.check_image(tmp_path / name, "160:90")
    assert corners(opened(found.file)) == (WHITE, BLACK, BLACK, WHITE)


def test_a_cmyk_jpeg_keeps_its_colours(media: Looking, tmp_path: Path) -> None:
    drawn(SIZE).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    found = media.check_image(tmp_path / "a.jpg", "160:90")
    assert corners(opened(found.file)) == AS_DRAWN


@pytest.mark.parametrize("name", ["a.webp", "a.gif", "a.png"])
def test_of_an_animation_the_first_picture_is_the_still(
    media: Looking, tmp_path: Path, name: str
) -> None:
    rest = [Image.new("RGB", SIZE, BLACK), Image.new("RGB", SIZE, WHITE)]
    drawn(SIZE).save(tmp_path / name, save_all=True, append_images=rest, duration=100)
    found = media.check_image(tmp_path / name, "160:90")
    assert found.conformed
    stored = opened(found.file)
    assert (getattr(stored, "n_frames", 1), corners(stored)) == (1, AS_DRAWN)


def test_a_still_keeps_its_colour_profile(media: Looking, tmp_path: Path) -> None:
    from PIL import ImageCms  # noqa: PLC0415

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name in ("a.jpg", "a.png"):
        drawn((320, 180)).save(tmp_path / name, icc_profile=profile)
        found = media.check_image(tmp_path / name, "160:90")
        assert opened(found.file).info.get("icc_profile") == profile
    drawn(SIZE).convert("CMYK").save(tmp_path / "inks.jpg", icc_profile=profile)
    found = media.check_image(tmp_path / "inks.jpg", "160:90")
    assert "icc_profile" not in opened(found.file).info


def test_an_avif_is_a_still(media: Looking, tmp_path: Path) -> None:
    drawn((320, 180)).save(tmp_path / "a.avif")
    found = media.check_image(tmp_path / "a.avif", "160:90")
    assert corners(opened(found.file)) == AS_DRAWN


def test_a_png_of_a_chunk_without_end_is_cut_short(media: Looking, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    drawn(SIZE).save(file)
    content = file.read_bytes()
    at = content.index(b"IDAT") - 4
    file.write_bytes(content[:at] + b"\xff\xff\xff\xff" + content[at + 4 :])
    with pytest.raises(Fault, match="cut short"):
        media.check_image(file, "160:90")
