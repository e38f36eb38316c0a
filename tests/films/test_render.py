"""Outputs as they are made: sizes, tags, frames, letters, sound; and what a bad file can do."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont
from PIL import features as pillow

from tests.support.cuts import RATE, Studio, clip, cut, heard, pictures, plain, strength, wav
from vidgen_worker.films.fonts import Fonts, MissingGlyphError
from vidgen_worker.films.job import Job, to_json
from vidgen_worker.films.render.captions import SIZES
from vidgen_worker.films.render.likeness import estimated, features
from vidgen_worker.films.render.quality import TARGETS, MisalignedError, measured
from vidgen_worker.films.rendering import Failed, Made, Trouble, look, render

if not pillow.check("fribidi") or not Fonts().files:
    pytest.skip("there is no libfribidi0, or no font", allow_module_level=True)
RED, GREEN, BLUE = (220, 30, 30), (30, 200, 30), (30, 30, 220)
FADE = {"transition": {"kind": "fade", "seconds": 0.25}}
SHAPES = {"wide": (320, 180), "high": (180, 320), "even": (240, 240)}
PRESETS: list[object] = ["web", "av1", "vertical", "square", "story", "small"]
OTHERS: list[object] = [
    "poster",
    "preview",
    {"preset": "preview", "name": "chat", "format": "gif"},
    "captions",
    "audio",
    "prores",
]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    studio = Studio(tmp_path_factory.mktemp("studio"))
    for name, size in SHAPES.items():
        clip(studio.folder / f"{name}-red.mp4", plain(RED, size), frames=18, tone=440)
        clip(studio.folder / f"{name}-green.mp4", plain(GREEN, size), frames=18)
    wav(studio.folder / "music.wav", 200, 1.0)
    wav(studio.folder / "voice.wav", 1000, 0.8, loud=0.5)
    mark = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    ImageDraw.Draw(mark).rectangle((10, 5, 29, 14), fill=(255, 255, 255, 255))
    mark.save(studio.folder / "logo.png")
    Image.new("RGB", (200, 100), BLUE).save(studio.folder / "end.png")
    yield studio
    studio.runner.close()


def jobs(studio: Studio, shape: str, outputs: list[object], **rest: object) -> tuple[Job, ...]:
    """A film of a red and a green clip that dissolve, with a caption, a logo and an end card."""
    usual = {
        "parts_": [{}, FADE], "end": {"asset": "end.png", "seconds": 0.25},
        "logo": {"asset": "logo.png"}, "captions": [{"from": 0, "to": 0.5, "text": "Lamp"}],
        "sound": {"music": {"asset": "music.wav", "gain": -6}},
    }  # fmt: skip
    made = cut(2, outputs=outputs, **usual | rest)
    return studio.plan(made, [f"{shape}-red.mp4", f"{shape}-green.mp4"])


@pytest.mark.parametrize("shape", SHAPES)
def test_every_output_plays_and_has_its_size_its_tags_and_its_length(
    studio: Studio, shape: str
) -> None:
    wanted = PRESETS + OTHERS if shape == "wide" else ["web", "vertical", "square", "story"]
    for group in (wanted[:6], wanted[6:]):
        for job in jobs(studio, shape, [*group]) if group else ():
            file = studio.here(job)
            if job.format not in ("vtt", "m4a", "gif"):
                _plays(job, file)


TAGS = {"mp4": "avc1", "av1": "av01", "mov": "apcn"}


def _plays(job: Job, file: Path) -> None:
    with av.open(str(file)) as container:
        stream = max(container.streams.video, key=lambda one: one.frames)
        context = stream.codec_context
        if job.format in TAGS:
            assert context.codec_tag == TAGS[job.format]
            assert (context.colorspace, context.color_range) == (1, 1)
            assert container.streams.best("audio") is not None or job.name == "preview"
            texts = container.streams.subtitles
            assert len(texts) == (job.format != "mov" and bool(job.cues))
        decoded = list(container.decode(stream))
    assert {(frame.width, frame.height) for frame in decoded} == {(job.width, job.height)}
    assert len(decoded) == (job.frames if job.format not in ("jpeg", "avif_still") else 1)
    times = [Fraction(frame.pts or 0) * (frame.time_base or 1) for frame in decoded]
    steps = {round((b - a) * job.fps, 2) for a, b in pairwise(times)}
    assert steps <= {1}
    if job.format in TAGS:
        content = file.read_bytes()
        assert content.index(b"moov") < content.index(b"mdat")


def test_a_film_shows_its_scenes_its_fade_its_logo_and_its_end(studio: Studio) -> None:
    (wide, high, bars) = jobs(
        studio, "wide", ["web", "story", {"preset": "vertical", "fit": "contain"}]
    )
    shown = pictures(studio.here(wide))
    assert len(shown) == 18 + 18 - 6 + 6
    assert [_nearest(shown[number], (160, 60)) for number in (11, 18, 31)] == [RED, GREEN, BLUE]
    red, green, _ = _pixel(shown[14], (160, 60))
    assert abs(red - green) < 60, "in the middle of a fade both scenes are seen"
    # The logo is as large as it was drawn at most, in its corner, on the parts only.
    assert min(_pixel(shown[11], (301, 14))) > 200
    assert _nearest(shown[31], (301, 14)) == BLUE
    whole = pictures(studio.here(high))[11]
    assert whole.size == (180, 320)
    assert _nearest(whole, (90, 160)) == RED
    around = _pixel(whole, (90, 20))
    assert 60 < around[0] < 200, "the blurred picture is darker"
    assert max(_pixel(pictures(studio.here(bars))[11], (90, 20))) < 30


def _pixel(picture: Image.Image, at: tuple[int, int]) -> tuple[int, ...]:
    found = picture.getpixel(at)
    assert isinstance(found, tuple)
    return tuple(map(int, found))


def _nearest(picture: Image.Image, at: tuple[int, int]) -> tuple[int, int, int]:
    found = _pixel(picture, at)
    return min(
        (RED, GREEN, BLUE),
        key=lambda one: sum(abs(a - b) for a, b in zip(one, found, strict=True)),
    )


@pytest.mark.parametrize("text", ["Lamp, 49 €", "مصباح", "ランプ"])
def test_a_caption_is_drawn_in_its_font_s_own_shapes(studio: Studio, text: str) -> None:
    try:
        ((_, file),) = studio.fonts.runs(text)
    except MissingGlyphError as error:
        pytest.skip(f"{error} on this machine")
    (job,) = studio.plan(
        cut(1, captions=[{"from": 0, "to": 0.4, "text": text}],
            caption_style={"look": "plain", "place": "middle", "size": "l"}),
        ["wide-red.mp4"],
    )  # fmt: skip
    frame = pictures(studio.here(job))[3].convert("L")
    found = frame.point(lambda light: 255 if light > 170 else 0)
    font = ImageFont.truetype(file, round(180 * SIZES["l"]), layout_engine=ImageFont.Layout.RAQM)
    drawn = Image.new("L", (320, 180))
    ImageDraw.Draw(drawn).text((160, 90), text, 255, font, "mm")
    drawn = drawn.point(lambda light: 255 if light > 170 else 0)
    mine, right = found.crop(found.getbbox()), drawn.crop(drawn.getbbox())
    assert abs(mine.width - right.width) <= 2
    assert abs(mine.height - right.height) <= 2
    same = ImageChops.logical_and(
        mine.resize(right.size).convert("1"), right.convert("1")
    ).histogram()[255]
    either = ImageChops.logical_or(
        mine.resize(right.size).convert("1"), right.convert("1")
    ).histogram()[255]
    assert same / either > 0.55, f"{same} of {either} pixels of the letters"


def test_captions_come_as_webvtt_too(studio: Studio) -> None:
    captions = [{"from": 0.25, "to": 0.5, "text": "a < b\n--> c"}]
    (job,) = jobs(studio, "wide", ["captions"], captions=captions)
    assert studio.here(job).read_text() == (
        "WEBVTT\n\n00:00:00.250 --> 00:00:00.500\na &lt; b\n--&gt; c\n"
    )


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(st.booleans(), st.floats(0, 0.3), st.floats(0.45, 0.75)), min_size=2, max_size=6
    )
)
def test_sound_is_heard_with_its_pictures_at_every_cut(
    studio: Studio, parts: list[tuple[bool, float, float]]
) -> None:
    made = cut(
        len(parts),
        parts_=[{"from": start, "to": end} for _, start, end in parts],
        sound={"loudness": None},
    )
    (job,) = studio.plan(made, [f"wide-{'red' if loud else 'green'}.mp4" for loud, _, _ in parts])
    file = studio.here(job)
    shown, samples = pictures(file), heard(file) if any(loud for loud, _, _ in parts) else []
    assert len(shown) == job.frames
    if not samples:
        return
    assert abs(len(samples) / RATE - job.frames / job.fps) <= 1 / job.fps
    edges = {scene.start for scene in job.scenes} | {job.frames}
    for number, picture in enumerate(shown):
        if any(abs(number - edge) <= 1 or number + 1 == edge for edge in edges):
            continue
        window = samples[job.sample(number) : job.sample(number + 1)]
        loud = max(map(abs, window)) > 0.05
        assert loud == (_nearest(picture, (160, 60)) == RED), number


def test_music_gives_way_to_a_voice_and_the_film_has_its_loudness(studio: Studio) -> None:
    clip(studio.folder / "long.mp4", plain(BLUE), frames=96)
    made = cut(
        1, outputs=["audio", "prores"],
        sound={"music": {"asset": "music.wav"}, "voice": [{"asset": "voice.wav", "at": 1}]},
    )  # fmt: skip
    sound, film = studio.plan(made, ["long.mp4"])
    samples = heard(studio.here(sound))
    assert abs(len(samples) - 4 * RATE) <= 1024
    alone, below = (strength(samples[a : a + RATE // 4], 200) for a in (RATE // 2, 3 * RATE // 2))
    assert below < 0.5 * alone
    assert strength(samples[3 * RATE // 2 : 7 * RATE // 4], 1000) > 2 * below
    # It is repeated, as it is shorter than the film.
    assert strength(samples[10 * RATE // 4 : 11 * RATE // 4], 200) > 0.5 * alone
    exact = studio.here(film)
    assert len(heard(exact)) == 4 * RATE
    assert abs(_loudness(exact) - -14) < 0.5


def _loudness(file: Path) -> float:
    graph = av.filter.Graph()
    found = 0.0
    with av.open(str(file)) as container:
        stream = container.streams.audio[0]
        nodes = [graph.add_abuffer(template=stream), graph.add("ebur128", "metadata=1")]
        graph.link_nodes(*nodes, graph.add("abuffersink")).configure()
        for frame in container.decode(stream):
            graph.push(frame)
            while True:
                try:
                    found = float(graph.pull().metadata.get("lavfi.r128.I", found))
                except (av.error.BlockingIOError, av.error.EOFError):
                    break
    return found


def test_two_renders_in_children_are_equal_to_the_byte(studio: Studio) -> None:
    told: list[float] = []
    for job in jobs(studio, "wide", ["web", "av1"]):
        first = studio.made(job)
        again = studio.runner.run(render(job, studio.folder, told.append))
        assert isinstance(again, Made)
        assert (first.sha256, first.size) == (again.sha256, again.size)
    assert told == sorted(told[: len(told) // 2]) + sorted(told[len(told) // 2 :])
    assert told[-1] == 1.0


def test_packets_are_copied_where_nothing_changes(studio: Studio) -> None:
    (job,) = studio.plan(cut(2), ["wide-red.mp4", "wide-red.mp4"])
    (alone,) = studio.plan(cut(1), ["wide-red.mp4"])
    once = _packets(studio.folder / "wide-red.mp4")
    for film, times in ((alone, 1), (job, 2)):
        assert _packets(studio.here(film)) == once * times
    # A target that nothing can be won for ends in the same copy.
    (aimed,) = studio.plan(cut(1, outputs=[{"preset": "web", "target": "best"}]), ["wide-red.mp4"])
    assert _packets(studio.here(aimed)) == once


def _packets(file: Path) -> list[bytes]:
    with av.open(str(file)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def test_a_target_is_a_measured_quality(studio: Studio) -> None:
    drawn = Image.frombytes("L", (340, 200), random.Random(7).randbytes(340 * 200))
    noise = (
        Image.blend(drawn, Image.new("L", drawn.size, 128), 0.2).convert("RGB").resize((680, 400))
    )
    clip(studio.folder / "rich.mp4", lambda n: noise.crop((n, n, n + 320, n + 180)), frames=73)
    outputs = [{"preset": "vertical", "name": t, "target": t} for t in ("small", "best")]
    sizes = []
    for job in studio.plan(cut(1, outputs=outputs), ["rich.mp4"]):
        made = studio.made(job)
        assert made.quality is not None
        assert abs(made.quality["vmaf"] - TARGETS[job.name]) < 1.5, made.quality
        sizes.append(made.size)
    assert sizes[0] < 0.9 * sizes[1]


def test_the_estimated_vmaf_is_libvmaf_s_where_that_was_asked() -> None:
    """Of a drawing that is the same each time, as it is and a little softer."""
    whole = scenery()
    for radius, said in LIBVMAF.items():
        soft = whole.filter(ImageFilter.GaussianBlur(radius)) if radius else whole
        found = estimated([features(whole, soft, [whole])])
        assert abs(found.vmaf - said) < 2.5, (radius, found, said)


def test_films_of_other_frames_are_not_judged(studio: Studio) -> None:
    (job,) = studio.plan(cut(1), ["wide-red.mp4"])
    with av.open(str(studio.folder / "wide-red.mp4")) as one:
        frames = list(one.decode(video=0))
    with pytest.raises(MisalignedError, match="more frames"):
        measured(iter(frames), iter(frames[:-1]), job)
    with av.open(str(studio.folder / "wide-green.mp4")) as other:
        strange = list(other.decode(video=0))
    with pytest.raises(MisalignedError, match="other frames"):
        measured(iter(frames), iter(strange), job)


@pytest.mark.parametrize("spoil", ["cut short", "no film", "empty"])
def test_a_file_that_is_no_clip_makes_its_part_unusable(studio: Studio, spoil: str) -> None:
    whole = (studio.folder / "wide-red.mp4").read_bytes()
    bad = {"cut short": whole[: len(whole) * 2 // 3], "no film": b"<html>" * 99, "empty": b""}
    (studio.folder / "bad.mp4").write_bytes(bad[spoil])
    found = studio.runner.run(look(studio.folder, "bad.mp4"))
    assert isinstance(found, Failed)
    assert found.trouble is Trouble.PART_UNUSABLE
    # And where it was whole when it was looked at.
    (job,) = studio.plan(cut(1, outputs=["square"]), ["wide-red.mp4"])
    job = replace(job, scenes=(replace(job.scenes[0], file="bad.mp4"),))
    made = studio.render(job)
    assert isinstance(made, Failed)
    assert made.trouble is Trouble.PART_UNUSABLE
    assert not (studio.folder / "output-square.mp4").exists()


LIBVMAF = {0.0: 97.43, 0.5: 84.37}
"""What libvmaf (model 0.6.1) said of `scenery` after a blur of these radii."""


def scenery() -> Image.Image:
    """A plane of brightness with forms of many sizes."""
    dice = random.Random(7)
    made = Image.new("L", (640, 360), 128)
    for cells in (8, 16, 32, 64, 128, 256):
        layer = Image.frombytes("L", (cells, cells), dice.randbytes(cells * cells))
        made = Image.blend(made, layer.resize(made.size, Image.Resampling.BICUBIC), 0.3)
    return made


@pytest.fixture(scope="module")
def endless(studio: Studio) -> Job:
    """A render that takes far longer than a test."""
    (job,) = studio.plan(cut(1, outputs=["prores"]), ["wide-red.mp4"])
    scene = replace(job.scenes[0], frames=10**6)
    return replace(job, scenes=(scene,), frames=10**6, mix=None)


@pytest.mark.parametrize(
    ("number", "trouble"),
    [(signal.SIGSEGV, Trouble.RENDER_FAILED), (signal.SIGKILL, Trouble.MACHINE)],
)
def test_a_child_that_dies_twice_fails_its_output_alone(
    studio: Studio, endless: Job, number: signal.Signals, trouble: Trouble
) -> None:
    async def killed() -> Made | Failed:
        work = asyncio.create_task(render(endless, studio.folder, lambda _: None))
        seen: set[int] = set()
        while len(seen) < 2:
            for child in await _children(work, without=seen):
                seen.add(child)
                os.kill(child, number)
        return await work

    found = studio.runner.run(killed())
    assert isinstance(found, Failed)
    assert found.trouble is trouble
    assert number.name in found.details


def test_a_render_that_is_cancelled_leaves_neither_process_nor_file(
    studio: Studio, endless: Job
) -> None:
    async def cancelled() -> int:
        work = asyncio.create_task(render(endless, studio.folder, lambda _: None))
        (child,) = await _children(work, without=set())
        assert psutil.Process(child).nice() == psutil.Process().nice() + 10
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        return child

    assert not psutil.pid_exists(studio.runner.run(cancelled()))
    assert not (studio.folder / "output-prores.mov").exists()


async def _children(work: "asyncio.Task[object]", without: set[int]) -> set[int]:
    """Wait until the render's next child writes its file: then it is at work."""
    while not work.done():
        found = {child.pid for child in psutil.Process().children()} - without
        writing = {pid for pid in found if _writes(pid)}
        if writing:
            return writing
        await asyncio.sleep(0)
    raise AssertionError(f"it ended before: {work.result()}")


def _writes(pid: int) -> bool:
    try:
        return any(file.path.endswith("prores.mov") for file in psutil.Process(pid).open_files())
    except psutil.Error:
        return False


PEAK = """
import json, sys
from pathlib import Path
from vidgen_worker.films.job import from_json
from vidgen_worker.films.render.outputs import make

folder = Path(sys.argv[1])
make(from_json(json.load(sys.stdin)), folder, folder / "memory.mp4", lambda _: None)
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


def test_memory_grows_neither_with_the_number_of_scenes_nor_with_their_length(
    studio: Studio,
) -> None:
    clip(studio.folder / "large.mp4", plain(RED, (640, 360)), frames=48, tone=440)
    peaks = [_peak(studio, scenes, seconds) for scenes, seconds in ((3, 0.75), (12, 2.0))]
    assert peaks[1] <= 1.1 * peaks[0], peaks


def _peak(studio: Studio, scenes: int, seconds: float) -> int:
    """Render a film of so many scenes in a process of its own; return its peak memory in KB."""
    sound = {"music": {"asset": "music.wav"}}
    made = cut(scenes, parts_=[FADE | {"to": seconds}] * scenes, sound=sound)
    (job,) = studio.plan(made, ["large.mp4"] * scenes)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(studio.folder)],
        input=json.dumps(to_json(job)), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout)
