"""Resolutions: what is asked for, what each model takes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidgen_worker.domain.resolution import (
    FALLBACK,
    RATIOS,
    UnsupportedResolutionError,
    image_models,
    look_up,
    size,
    video_models,
)
from vidgen_worker.service import video_generation_service

EXPECTED = {
    "1280:720": ("1280:720", "1920:1080"),
    "720:1280": ("720:1280", "1080:1920"),
    "1104:832": ("1104:832", "1168:880"),
    "832:1104": ("832:1104", "1080:1440"),
    "960:960": ("960:960", "1024:1024"),
    "1584:672": ("1584:672", "1920:1080"),
    "1280:768": ("1280:768", "1920:1080"),
    "768:1280": ("768:1280", "1080:1920"),
}


def test_resolution_mapping() -> None:
    assert dict(RATIOS) == EXPECTED
    for resolution, (video_ratio, image_ratio) in EXPECTED.items():
        found = look_up(resolution)
        assert (found.video_ratio, found.image_ratio) == (video_ratio, image_ratio)
        assert not found.fallback
        assert video_generation_service._get_resolution_mapping(resolution) == {
            "video_ratio": video_ratio,
            "image_ratio": image_ratio,
        }


@pytest.mark.parametrize("nothing", [None, "", "   "])
def test_no_resolution_falls_back(nothing: str | None) -> None:
    found = look_up(nothing)
    assert (found.resolution, found.fallback) == (FALLBACK, True)


def test_an_unknown_resolution_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedResolutionError, match=r"'4096:2160'.*1280:720"):
        look_up("4096:2160")


@given(st.text(max_size=40))
def test_any_text_is_mapped_or_refused(text: str) -> None:
    try:
        found = look_up(text)
    except UnsupportedResolutionError:
        assert text.strip() not in RATIOS
        assert text.strip()
    else:
        assert found.resolution in RATIOS


def test_the_default_models_accept_every_ratio_of_the_mapping() -> None:
    image, video = image_models()["gen4_image"], video_models()["gen4_turbo"]
    for video_ratio, image_ratio in RATIOS.values():
        assert image_ratio in image.ratios
        assert video.nearest(video_ratio) in video.ratios


@pytest.mark.parametrize(("asked", "made"), [("1280:768", "1280:720"), ("768:1280", "720:1280")])
def test_a_size_that_no_model_accepts_becomes_the_nearest_one(asked: str, made: str) -> None:
    video = video_models()["gen4_turbo"]
    assert asked not in video.ratios
    nearest = video.nearest(asked)
    (width, height), (w, h) = size(asked), size(nearest)
    assert (width > height) == (w > h), made
