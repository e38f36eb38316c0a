"""The cut: read from JSON, refused by a pointer, written back equal."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidgen_worker.films.cut import Cut, CutError
from vidgen_worker.films.presets import PRESETS
from vidgen_worker.films.reading import read, written

ID = "0b9f6e0a-52c4-4a55-8b52-6a3a0e9f7f10"
SCENE = {"scene": ID}

REFUSED: list[tuple[Any, str, str]] = [
    ([], "", "not an object"),
    ({"parts": [SCENE], "part": []}, "/part", "there is no key 'part' here"),
    ({}, "/parts", "either parts or a scenario"),
    ({"parts": []}, "/parts", "there is no part"),
    ({"parts": [SCENE], "scenario": ID}, "/parts", "either parts or a scenario"),
    ({"parts": [{}]}, "/parts/0", "either a scene or a task"),
    ({"parts": [{"scene": "1"}]}, "/parts/0/scene", "'1' is no id"),
    ({"parts": [SCENE] * 51, "outputs": ["web"]}, "/parts", "51 are more than 50"),
    ({"parts": [SCENE] * 501}, "/parts", "501 are more than 500"),
    ({"parts": [SCENE | {"from": 2, "to": 1}]}, "/parts/0/to", "before it begins"),
    ({"parts": [SCENE | {"from": -1}]}, "/parts/0/from", "-1 is no number from 0 to 180"),
    ({"parts": [SCENE | {"from": True}]}, "/parts/0/from", "True is no number"),
    ({"parts": [SCENE | {"from": float("nan")}]}, "/parts/0/from", "nan is no number"),
    ({"parts": [SCENE | {"transition": {"kind": "wipe"}}]}, "/parts/0/transition/kind", "no such"),
    ({"parts": [SCENE | {"caption": "x" * 201}]}, "/parts/0/caption", "201 characters are more"),
    ({"parts": [SCENE | {"caption": "a\u0007"}]}, "/parts/0/caption", "U+0007 can't be written"),
    ({"parts": [SCENE], "captions": [{"from": 0, "to": 1}]}, "/captions/0/text", "it is missing"),
    (
        {"parts": [SCENE | {"caption": "x"}], "captions": [{"from": 0, "to": 1, "text": "x"}] * 60},
        "/captions",
        "61 captions are too many",
    ),
    ({"parts": [SCENE], "outputs": ["web"] * 9}, "/outputs", "9 are more than 8"),
    ({"parts": [SCENE], "outputs": ["web", "web"]}, "/outputs/1", "another file 'web'"),
    (
        {"parts": [SCENE], "outputs": ["poster", {"preset": "web", "name": "poster-avif"}]},
        "/outputs/1",
        "another file 'poster-avif'",
    ),
    ({"parts": [SCENE], "outputs": []}, "/outputs", "there is no output"),
    ({"parts": [SCENE], "outputs": ["webm"]}, "/outputs/0", "there is no 'webm' here"),
    (
        {"parts": [SCENE], "outputs": [{"preset": "web", "name": "../x"}]},
        "/outputs/0/name",
        "no name for a file",
    ),
    (
        {"parts": [SCENE], "outputs": [{"preset": "web", "fit": "blur"}]},
        "/outputs/0/fit",
        "the preset 'web' has no fit",
    ),
    ({"parts": [SCENE], "on_failure": "stop"}, "/on_failure", "there is no 'stop' here"),
    ({"parts": [SCENE], "a/b~c": 1}, "/a~1b~0c", "there is no key"),
    ({"parts": [SCENE], "captions": [{"text": "x" * 33_000}]}, "", "bytes are more than 32768"),
    *(
        ({"parts": [SCENE], "logo": {"asset": asset}}, "/logo/asset", "no path within your own")
        for asset in ("../logo.png", "/logo.png", "a//b.png", "https://x.y/z.png", "a\\b", "a/..")
    ),
]


@pytest.mark.parametrize(("said", "pointer", "wrong"), REFUSED)
def test_a_cut_is_refused_where_it_is_wrong(said: object, pointer: str, wrong: str) -> None:
    with pytest.raises(CutError) as refused:
        read(said)
    assert refused.value.pointer == pointer
    assert wrong in refused.value.wrong
    assert str(refused.value).startswith(f"{pointer or 'the cut'}: ")
    assert refused.value.remedy


WHOLE: dict[str, Any] = {
    "parts": [
        SCENE,
        {
            "task": ID, "from": 0.5, "to": 4, "caption": "From 49 euros",
            "transition": {"kind": "fade", "seconds": 0.5},
        },
    ],
    "captions": [{"from": 0.5, "to": 3.5, "text": "Meet the new Aurora lamp"}],
    "caption_style": {"look": "box", "place": "bottom", "size": "m"},
    "sound": {
        "music": {"asset": "music/warm.mp3", "gain": -9},
        "voice": [{"asset": "voice/de.mp3", "at": 2}],
        "keep_clips": False, "loudness": -14,
    },
    "logo": {"asset": "logo.png", "corner": "top-right", "width": 0.12},
    "end": {"asset": "end.png", "seconds": 2},
    "outputs": ["web", {"preset": "vertical", "name": "reel"}, "poster"],
    "on_failure": "skip",
}  # fmt: skip


def test_the_cut_of_the_documents_is_read_whole() -> None:
    cut = read(WHOLE)
    assert [output.name for output in cut.outputs] == ["web", "reel", "poster"]
    assert cut.parts[1].fade == 0.5
    assert set(cut.assets) == {"music/warm.mp3", "voice/de.mp3", "logo.png", "end.png"}
    again = json.loads(json.dumps(written(cut)))
    assert read(again) == cut
    assert again["sound"] == WHOLE["sound"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*WHOLE, "scene", "from", "text"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@st.composite
def spoilt(draw: st.DrawFn) -> object:
    """A whole cut in which one value, anywhere, is another one."""
    said = json.loads(json.dumps(WHOLE))
    place: Any = said
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(keys))
        deeper = isinstance(place[key], dict | list) and place[key]
        if not deeper or draw(st.booleans()):
            place[key] = draw(JSON)
            return said
        place = place[key]


@settings(max_examples=100, deadline=None)
@given(JSON | spoilt())
def test_reading_answers_with_a_cut_or_with_its_own_error(said: object) -> None:
    try:
        cut = read(said)
    except CutError:
        return
    assert read(written(cut)) == cut


TIMES = st.floats(0, 180, allow_nan=False)
NAMES = st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8})?\.mp3", fullmatch=True)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=40)
PARTS = st.fixed_dictionaries(
    {"scene": st.uuids().map(str)},
    optional={
        "from": st.floats(0, 80),
        "to": st.floats(81, 180),
        "caption": TEXTS.filter(str.strip),
        "transition": st.fixed_dictionaries(
            {"kind": st.just("fade")}, optional={"seconds": st.floats(0.1, 5)}
        ),
    },
)
CUTS = st.fixed_dictionaries(
    {"parts": st.lists(PARTS, min_size=1, max_size=5)},
    optional={
        "sound": st.fixed_dictionaries(
            {},
            optional={
                "music": st.fixed_dictionaries(
                    {"asset": NAMES}, optional={"gain": st.floats(-60, 20)}
                ),
                "voice": st.lists(st.fixed_dictionaries({"asset": NAMES, "at": TIMES}), max_size=3),
                "keep_clips": st.booleans(),
                "loudness": st.none() | st.floats(-40, -5),
            },
        ),
        "outputs": st.lists(st.sampled_from(sorted(PRESETS)), min_size=1, max_size=8, unique=True),
        "end": st.fixed_dictionaries({"asset": NAMES, "seconds": st.floats(0.1, 30)}),
        "on_failure": st.sampled_from(["fail", "skip"]),
    },
)


@settings(max_examples=100, deadline=None)
@given(CUTS)
def test_what_is_read_writes_back_equal(said: dict[str, Any]) -> None:
    cut = read(said)
    assert isinstance(cut, Cut)
    assert read(json.loads(json.dumps(written(cut)))) == cut
    assert len(cut.parts) == len(said["parts"])
