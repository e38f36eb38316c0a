"""The ratios for a scenario's resolution, and the ratios and durations of each model.

A model's ratios, durations and required fields are read from the types of the official SDK, so
that they agree with the SDK that sends the request. Nothing here does I/O.
"""

import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Required, Union, get_args, get_origin, get_type_hints

FALLBACK = "720:1280"
"""Used when a scene has no scenario, or the scenario names no resolution."""

RATIOS: Mapping[str, tuple[str, str]] = types.MappingProxyType(
    {
        "1280:720": ("1280:720", "1920:1080"),
        "720:1280": ("720:1280", "1080:1920"),
        "1104:832": ("1104:832", "1168:880"),
        "832:1104": ("832:1104", "1080:1440"),
        "960:960": ("960:960", "1024:1024"),
        "1584:672": ("1584:672", "1920:1080"),
        "1280:768": ("1280:768", "1920:1080"),
        "768:1280": ("768:1280", "1080:1920"),
    }
)
"""Resolution → (video ratio, image ratio), both as "width:height" in pixels."""


class UnsupportedResolutionError(ValueError):
    """A scenario asks for a resolution that is not in the mapping."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """A resolution, and the two ratios that it maps to."""

    resolution: str
    video_ratio: str
    image_ratio: str
    fallback: bool


def look_up(resolution: str | None) -> Resolution:
    """Map a scenario's resolution; None and blank text mean the fallback.

    Raises UnsupportedResolutionError naming the resolution and the ones that are supported.
    """
    asked = (resolution or "").strip()
    name = asked or FALLBACK
    if name not in RATIOS:
        msg = f"resolution {name[:64]!r} is not supported; use one of {', '.join(RATIOS)}"
        raise UnsupportedResolutionError(msg)
    video_ratio, image_ratio = RATIOS[name]
    return Resolution(name, video_ratio, image_ratio, fallback=not asked)


def size(ratio: str) -> tuple[int, int]:
    """Width and height in pixels of a ratio written "width:height"."""
    width, height = ratio.split(":")
    return int(width), int(height)


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the provider, with the values that it accepts.

    `ratios` are those written in pixels; `durations` is None where the SDK's type is a plain
    number (then 2 to 10 seconds, Runway's documentation of the gen4 models).
    """

    name: str
    ratios: tuple[str, ...]
    durations: tuple[int, ...]
    fields: frozenset[str]
    required: frozenset[str]

    def nearest(self, ratio: str) -> str:
        """The ratio of this model whose shape, then size, is nearest to `ratio`."""
        if ratio in self.ratios:
            return ratio
        width, height = size(ratio)

        def distance(candidate: str) -> tuple[float, float]:
            w, h = size(candidate)
            return (
                round(abs(math.log(w / h) - math.log(width / height)), 6),
                abs(math.log(w * h) - math.log(width * height)),
            )

        return min(self.ratios, key=distance)


_PLAIN_DURATIONS = tuple(range(2, 11))


@cache
def image_models() -> Mapping[str, Model]:
    """The text-to-image models that the SDK knows and that take a ratio in pixels."""
    from runwayml.types import text_to_image_create_params  # noqa: PLC0415 - it takes long

    return _models(text_to_image_create_params.TextToImageCreateParams)


@cache
def video_models() -> Mapping[str, Model]:
    """The image-to-video models that the SDK knows and that take a ratio in pixels."""
    from runwayml.types import image_to_video_create_params  # noqa: PLC0415 - it takes long

    return _models(image_to_video_create_params.ImageToVideoCreateParams)


def _models(union: object) -> dict[str, Model]:
    models = {}
    for params in get_args(union):
        hints = get_type_hints(params, include_extras=True)
        ratios = tuple(
            value
            for value in _literals(hints.get("ratio"))
            if isinstance(value, str) and all(part.isdigit() for part in value.split(":", 1))
        )
        ratios = tuple(ratio for ratio in ratios if ":" in ratio and max(size(ratio)) >= 256)  # noqa: PLR2004 - "16:9" is a shape, not a size
        names = [name for name in _literals(hints["model"]) if isinstance(name, str)]
        if not ratios or not names:
            continue
        durations = tuple(v for v in _literals(hints.get("duration")) if isinstance(v, int))
        models[names[0]] = Model(
            name=names[0],
            ratios=ratios,
            durations=durations or _PLAIN_DURATIONS,
            fields=frozenset(hints),
            required=frozenset(k for k, v in hints.items() if get_origin(v) is Required),
        )
    return models


def _literals(hint: Any) -> Iterator[object]:  # noqa: ANN401 - a type expression has no type
    """Every literal value inside a type expression (Required, Annotated, Union, Literal)."""
    origin = get_origin(hint)
    if origin is Literal:
        yield from get_args(hint)
    elif origin in (Required, Union, types.UnionType):
        for part in get_args(hint):
            yield from _literals(part)
    elif origin is Annotated:
        yield from _literals(get_args(hint)[0])
