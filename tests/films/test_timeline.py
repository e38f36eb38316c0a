"""Films in frames: what is shown when, how large, in which font; and what the clips forbid."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.cuts import cut
from vidgen_worker.films.cut import Cut, CutError
from vidgen_worker.films.fonts import Fonts, MissingGlyphError
from vidgen_worker.films.job import Job, from_json, to_json
from vidgen_worker.films.plan import Film, key, plan
from vidgen_worker.films.source import Source
from vidgen_worker.films.timeline import timeline

CLIP = Source(
    "part-0", 1280, 720, 5.0, Fraction(24), sound=True, codec="h264", plain=True, size=1000
)
FONTS = Fonts()
if not FONTS.files:
    pytest.skip("there are no fonts on this machine", allow_module_level=True)
LATIN = Fonts([Path(FONTS.runs("Lamp")[0][1])])
FADE = {"transition": {"kind": "fade", "seconds": 0.5}}


def film(made: Cut, *clips: Source | None, **assets: Source) -> Film:
    return Film(made, clips or (CLIP,) * len(made.parts), assets)


def test_scenes_share_the_frames_of_a_fade() -> None:
    laid = timeline(
        cut(3, parts_=[{}, FADE | {"from": 1, "to": 4}, FADE], end={"asset": "e", "seconds": 1}),
        [CLIP] * 3, Fraction(24),
    )  # fmt: skip
    assert [(s.start, s.first, s.frames, s.fade) for s in laid.scenes] == [
        (0, 0, 120, 0), (108, 24, 72, 12), (168, 0, 120, 12),
    ]  # fmt: skip
    assert laid.frames == 288 + 24


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"parts_": [{"to": 6}]}, "/parts/0/to", "the clip is 5.00 s long"),
    ({"parts_": [{"from": 5.5}]}, "/parts/0/from", "the clip is 5.00 s long"),
    ({"parts_": [{"from": 4.999}]}, "/parts/0", "not one frame"),
    (
        {"parts_": [{"to": 0.4}, FADE]},
        "/parts/1/transition/seconds",
        "0.5 s are longer than the part before, 0.40 s",
    ),
    (
        {"parts_": [{}, FADE | {"to": 0.4}]},
        "/parts/1/transition/seconds",
        "0.5 s are longer than its part, 0.40 s",
    ),
    (
        {"parts_": [{}, FADE | {"to": 0.8}, FADE]},
        "/parts/1/transition/seconds",
        "it and the next fade have no room",
    ),
    ({"parts_": [{}] * 37}, "/parts", "the film would be 185.0 s long"),
    ({"captions": [{"from": 4, "to": 6, "text": "x"}]}, "/captions/0/to", "the film is 5.00 s"),
    (
        {"captions": [{"from": 0, "to": 2, "text": "a"}, {"from": 1, "to": 3, "text": "b"}]},
        "/captions/1/text",
        "at the same time as /captions/0/text",
    ),
    (
        {"parts_": [{"caption": "a"}], "captions": [{"from": 0, "to": 2, "text": "a"}]},
        "/parts/0/caption",
        "at the same time as /captions/0/text",
    ),
    ({"outputs": [{"preset": "poster", "at": 9}]}, "/outputs/0/at", "the film is 5.00 s long"),
    ({"logo": {"asset": "logo.png"}}, "/logo/asset", "there is no 'logo.png' in your folder"),
    (
        {"captions": [{"from": 0, "to": 1, "text": "Lamp 日"}]},
        "/captions/0/text",
        "no font for U+65E5",
    ),
]


@pytest.mark.parametrize(("said", "pointer", "wrong"), REFUSED)
def test_what_only_the_clips_tell_is_refused_by_its_pointer(
    said: dict[str, Any], pointer: str, wrong: str
) -> None:
    made = cut(len(said.get("parts_", [0])), **said)
    with pytest.raises(CutError) as refused:
        plan(film(made), LATIN)
    assert (refused.value.pointer, wrong in refused.value.wrong) == (pointer, True), refused.value


def test_music_of_a_moment_and_one_file_as_two_things_are_refused() -> None:
    """It would be opened thousands of times; and each use is looked at."""
    made = cut(1, sound={"music": {"asset": "a"}})
    with pytest.raises(CutError, match="/sound/music/asset: it is shorter than 1 s"):
        plan(film(made, a=Source("a", seconds=0.01, sound=True)), FONTS)
    made = cut(1, logo={"asset": "a"}, sound={"music": {"asset": "a"}})
    with pytest.raises(CutError, match="/sound/music/asset: there is no sound in it"):
        plan(film(made, a=Source("a", 10, 10)), FONTS)


def test_an_asset_has_to_be_what_it_is_used_as() -> None:
    made = cut(1, logo={"asset": "a"}, sound={"music": {"asset": "b"}})
    sound, picture = Source("a", seconds=2.0, sound=True), Source("b", 10, 10)
    with pytest.raises(CutError, match="/sound/music/asset: there is no sound in it"):
        plan(film(made, a=picture, b=picture), FONTS)
    with pytest.raises(CutError, match="/logo/asset: it is no picture"):
        plan(film(made, a=sound, b=sound), FONTS)


def test_a_part_without_a_clip_is_left_out() -> None:
    made = cut(3, parts_=[{"caption": "one"}, FADE, {"caption": "three"}])
    laid = timeline(made, [CLIP, None, CLIP], Fraction(24))
    assert [scene.start for scene in laid.scenes] == [0, 120]
    assert [(text.start, text.text) for text in laid.texts] == [(0, "one"), (120, "three")]


CASES = [
    ((1280, 720), "vertical", (720, 1280)),
    ((1920, 1080), "vertical", (1080, 1920)),
    ((960, 960), "story", (540, 960)),
    ((1280, 720), "square", (720, 720)),
    ((1280, 720), "web", (1280, 720)),
    ((3840, 2160), "web", (1920, 1080)),
    ((720, 1280), "small", (480, 854)),
    ((320, 181), "web", (320, 180)),
    ((1280, 720), "preview", (480, 270)),
]


@pytest.mark.parametrize(("shown", "preset", "size"), CASES)
def test_an_output_is_no_larger_than_the_film(
    shown: tuple[int, int], preset: str, size: tuple[int, int]
) -> None:
    clip = replace(CLIP, width=shown[0], height=shown[1])
    job = plan(film(cut(1, outputs=[preset]), clip), FONTS)[0]
    assert (job.width, job.height) == size


def test_outputs_become_files_with_names_of_their_own() -> None:
    outputs = ["poster", "preview", {"preset": "preview", "name": "chat", "format": "gif"}]
    jobs = plan(film(cut(1, outputs=[*outputs, "captions", "audio"])), FONTS)
    assert [(job.name, job.format) for job in jobs] == [
        ("poster", "jpeg"), ("poster-avif", "avif_still"), ("preview", "mp4"),
        ("preview-avif", "avif"), ("chat", "gif"), ("captions", "vtt"), ("audio", "m4a"),
    ]  # fmt: skip
    assert [job.frames for job in jobs if job.name.startswith("preview")] == [36, 36]


def test_packets_are_copied_only_where_nothing_changes() -> None:
    other = replace(CLIP, width=960, height=960)
    assert plan(film(cut(2)), FONTS)[0].same
    for changed in (
        film(cut(2), CLIP, other), film(cut(2, parts_=[{}, FADE])),
        film(cut(1, captions=[{"from": 0, "to": 1, "text": "x"}])),
        film(cut(1, outputs=["square"])), film(cut(1), replace(CLIP, plain=False)),
    ):  # fmt: skip
        assert not plan(changed, FONTS)[0].same


def test_a_job_survives_its_way_to_the_child_and_has_a_key_of_its_content() -> None:
    made = cut(2, captions=[{"from": 0, "to": 1, "text": "x"}], sound={"music": {"asset": "a"}})
    (job,) = plan(film(made, a=Source("a", seconds=2.0, sound=True)), FONTS)
    assert from_json(to_json(job)) == job
    digests = {"part-0": "1", "a": "2"}
    assert key(job, digests) == key(from_json(to_json(job)), digests)
    assert key(job, digests) != key(job, digests | {"a": "3"})
    assert key(job, digests) != key(replace(job, width=640), digests)


@st.composite
def cuts(draw: st.DrawFn) -> Cut:
    parts = []
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.floats(0, 2))
        part: dict[str, object] = {"from": start, "to": start + draw(st.floats(1.5, 3))}
        if draw(st.booleans()):
            fade = {"kind": "fade", "seconds": draw(st.floats(0.05, 0.7))}
            part["transition"] = fade
        parts.append(part)
    return cut(len(parts), parts_=parts, outputs=["web", "preview"])


@settings(max_examples=60, deadline=None)
@given(cuts(), st.sampled_from([Fraction(24), Fraction(25), Fraction(30_000, 1001), Fraction(60)]))
def test_scenes_follow_each_other_at_every_rate_and_sound_is_as_long(
    made: Cut, fps: Fraction
) -> None:
    clip = replace(CLIP, fps=fps)
    for job in plan(film(made, *[clip] * len(made.parts)), FONTS):
        _check_rows(job)
        # The sum of times that are rounded once each stays within half a frame for each of them.
        parts = sum(part.end - part.start - part.fade for part in made.parts if part.end)
        wanted = parts + made.parts[0].fade
        if job.name == "web":
            assert abs(job.frames / job.fps - wanted) <= 2 * len(made.parts) / job.fps
        assert abs(job.samples / 48_000 - job.frames / job.fps) <= Fraction(1, 48_000)


def _check_rows(job: Job) -> None:
    for before, scene in zip(job.scenes, job.scenes[1:], strict=False):
        assert scene.start == before.end - scene.fade
        # No more than two scenes are ever open at once.
        assert scene.fade + (before.fade if before is not job.scenes[0] else 0) <= before.frames
    assert job.scenes[0].start == 0
    assert all(scene.frames >= 1 for scene in job.scenes)


def test_a_font_is_found_for_every_script_or_the_character_is_named(tmp_path: Path) -> None:
    (_, latin), *rest = FONTS.runs("Lamp, 49 €")
    assert not rest
    only = Fonts([Path(latin)])
    assert only.runs("Lamp") == (("Lamp", latin),)
    with pytest.raises(MissingGlyphError, match=r"no font for U\+10FFF"):
        only.runs("Lamp \U00010fff")
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"\0\1\0\0 not a font")
    assert Fonts([tmp_path, Path(latin)]).runs("Lamp") == (("Lamp", latin),)
    assert Fonts([tmp_path / "nothing"]).files == ()


def test_a_text_of_two_scripts_is_split_where_no_font_has_both() -> None:
    try:
        runs = FONTS.runs("Lamp مصباح")
    except MissingGlyphError:
        pytest.skip("there is no Arabic font on this machine")
    assert "".join(text for text, _ in runs) == "Lamp مصباح"
    assert len({font for _, font in runs}) == len(runs)
