"""Runway's contract: models, fields, ratios and limits, and the check of a request against them.

Fields, models and ratios are read from the SDK's own parameter types, so they can't drift. Lengths
and ranges, which those types only mention in prose, are written down here with their source. A
check answers with the issues of a Zod validation, as the real API does. It never fetches anything.
"""

import collections.abc
import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)
from urllib.parse import urlsplit

from runwayml.types.image_to_video_create_params import ImageToVideoCreateParams
from runwayml.types.text_to_image_create_params import TextToImageCreateParams
from typing_extensions import is_typeddict

Kind = Literal["image", "video"]
Path = tuple[str | int, ...]

UNIONS: dict[Kind, Any] = {"image": TextToImageCreateParams, "video": ImageToVideoCreateParams}

# OpenAPI document of 2026-08-08.
PROMPT_UNITS = 1000
LARGEST_SEED = 4_294_967_295
URL_CHARACTERS = range(13, 2049)
UPLOAD_CHARACTERS = 5000
DATA_CHARACTERS = 5_242_880
TAG = re.compile(r"[a-z][a-z0-9_]{2,15}")
DURATIONS = {"gen4_turbo": (2, 10), "gen4.5": (2, 10)}
REFERENCES = {"gen4_image": (0, 3), "gen4_image_turbo": (1, 3)}
FRAMES = {"gen4_turbo": (1, 1), "gen4.5": (1, 1), "veo3.1": (1, 2), "veo3.1_fast": (1, 2)}
SHORT_PROMPTS = frozenset({*REFERENCES, *FRAMES})
# Width divided by height of the first frame; documentation, "Inputs".
ASPECTS = {
    "gen4_turbo": (0.5, 2.358),
    "gen4.5": (0.5, 2.0),
    "veo3.1": (0.5, 2.0),
    "veo3.1_fast": (0.5, 2.0),
}

IMAGE_CREDITS = {"gen4_image_turbo": 2}
VIDEO_CREDITS_PER_SECOND = {"gen4_turbo": 5, "gen4.5": 12, "veo3.1": 40, "veo3.1_fast": 15}
SILENT_CREDITS_PER_SECOND = {"veo3.1": 20, "veo3.1_fast": 10}
OTHER_IMAGE_CREDITS = 10
OTHER_VIDEO_CREDITS_PER_SECOND = 20
DEFAULT_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Issue:
    """One thing wrong with a request: Zod's code, where, and a sentence."""

    code: str
    path: Path
    message: str

    def as_json(self) -> dict[str, Any]:
        """Return it as the API shows it."""
        return {"code": self.code, "path": list(self.path), "message": self.message}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a request: its type, and whether it must be there."""

    kind: Any
    required: bool


@cache
def models(kind: Kind) -> Mapping[str, type]:
    """Return the parameter type of each model that the SDK knows."""
    found: dict[str, type] = {}
    for variant in get_args(UNIONS[kind]):
        for name in get_args(fields(variant)["model"].kind):
            found[name] = variant
    return found


@cache
def fields(variant: type) -> Mapping[str, Field]:
    """Return the fields of a TypedDict of the SDK, by their JSON name."""
    found: dict[str, Field] = {}
    for name, annotation in get_type_hints(variant, include_extras=True).items():
        required = False
        json_name = name
        peeled = annotation
        while (origin := get_origin(peeled)) in (Required, Annotated):
            if origin is Annotated:
                peeled, *notes = get_args(peeled)
                aliases = [note.alias for note in notes if getattr(note, "alias", None)]
                json_name = aliases[0] if aliases else json_name
            else:
                required = True
                (peeled,) = get_args(peeled)
        found[json_name] = Field(peeled, required)
    return found


def ratios(kind: Kind, model: str) -> tuple[str, ...]:
    """Return the values that a model takes as `ratio`; none where it has no such field."""
    field = fields(models(kind)[model]).get("ratio")
    return get_args(field.kind) if field is not None else ()


def check(kind: Kind, body: object, *, allow_loopback_assets: bool = False) -> list[Issue]:
    """Return everything wrong with the body of a POST; nothing when the API would accept it."""
    if not isinstance(body, dict):
        return [Issue("invalid_type", (), "Invalid input: expected object")]
    model = body.get("model")
    if not isinstance(model, str) or model not in models(kind):
        known = "|".join(f'"{name}"' for name in models(kind))
        return [Issue("invalid_union", ("model",), f"Invalid input: expected one of {known}")]
    issues = list(_check_value(models(kind)[model], body, ()))
    # Limits make sense only for values of the right type.
    return issues or list(_check_limits(model, body, allow_loopback=allow_loopback_assets))


def cost(kind: Kind, body: Mapping[str, Any]) -> int:
    """Return the credits that a valid request costs (prices of the documentation, 2026-04)."""
    model = str(body["model"])
    if kind == "image":
        small = "720" in str(body.get("ratio", "")).split(":")
        known = IMAGE_CREDITS | {"gen4_image": 5 if small else 8}
        return known.get(model, OTHER_IMAGE_CREDITS)
    per_second = VIDEO_CREDITS_PER_SECOND.get(model, OTHER_VIDEO_CREDITS_PER_SECOND)
    if body.get("audio") is False:
        per_second = SILENT_CREDITS_PER_SECOND.get(model, per_second)
    return per_second * int(body.get("duration", DEFAULT_SECONDS))


def utf16_units(text: str) -> int:
    """Return the length of a text as JavaScript counts it."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def assets(body: Mapping[str, Any]) -> list[tuple[Path, str]]:
    """Return where a request names an asset, and its URI."""
    found: list[tuple[Path, str]] = []
    for name in ("promptImage", "referenceImages"):
        match body.get(name):
            case str(uri):
                found.append(((name,), uri))
            case list(entries):
                found += [
                    ((name, index, "uri"), entry["uri"])
                    for index, entry in enumerate(entries)
                    if isinstance(entry, dict) and isinstance(entry.get("uri"), str)
                ]
    return found


def is_loopback(uri: str) -> bool:
    """Whether a URL points at this machine by number."""
    return urlsplit(uri).hostname in {"127.0.0.1", "localhost", "::1"}


def _check_value(kind: Any, value: object, path: Path) -> Iterator[Issue]:  # noqa: ANN401 - types
    """Check one value against one type of the SDK."""
    origin = get_origin(kind)
    if is_typeddict(kind):
        yield from _check_object(kind, value, path)
    elif origin is Literal:
        allowed = get_args(kind)
        if not any(value == one and type(value) is type(one) for one in allowed):
            options = "|".join(f'"{one}"' for one in allowed)
            yield Issue("invalid_value", path, f"Invalid option: expected one of {options}")
    elif origin in (Union, UnionType):
        attempts = [list(_check_value(option, value, path)) for option in get_args(kind)]
        if all(attempts):
            # The deepest complaint comes from the option that was meant.
            yield from max(attempts, key=lambda issues: max(len(issue.path) for issue in issues))
    elif origin is not None and issubclass(origin, collections.abc.Iterable):
        yield from _check_array(get_args(kind)[0], value, path)
    elif kind in _SCALARS:
        name, types = _SCALARS[kind]
        is_number_but_bool = isinstance(value, bool) and kind is not bool
        if not isinstance(value, types) or is_number_but_bool:
            yield Issue("invalid_type", path, f"Invalid input: expected {name}")


_SCALARS: dict[Any, tuple[str, tuple[type, ...]]] = {
    str: ("string", (str,)),
    int: ("int", (int,)),
    float: ("number", (int, float)),
    bool: ("boolean", (bool,)),
}


def _check_array(kind: Any, value: object, path: Path) -> Iterator[Issue]:  # noqa: ANN401 - types
    if not isinstance(value, list):
        yield Issue("invalid_type", path, "Invalid input: expected array")
        return
    for index, entry in enumerate(value):
        yield from _check_value(kind, entry, (*path, index))


def _check_object(variant: type, value: object, path: Path) -> Iterator[Issue]:
    if not isinstance(value, dict):
        yield Issue("invalid_type", path, "Invalid input: expected object")
        return
    known = fields(variant)
    for name, field in known.items():
        if name in value:
            yield from _check_value(field.kind, value[name], (*path, name))
        elif field.required:
            yield Issue("invalid_type", (*path, name), "Invalid input: required")
    if unknown := [name for name in value if name not in known]:
        names = ", ".join(f'"{name}"' for name in unknown)
        yield Issue("unrecognized_keys", path, f"Unrecognized key(s) in object: {names}")


def _check_limits(model: str, body: dict[str, Any], *, allow_loopback: bool) -> Iterator[Issue]:
    """Check lengths and ranges of a request whose types are right."""
    if "promptText" in body:
        most = PROMPT_UNITS if model in SHORT_PROMPTS else None
        units = utf16_units(body["promptText"])
        yield from _check_range(units, (1, most), ("promptText",), "string", "characters")
    if "seed" in body:
        yield from _check_range(body["seed"], (0, LARGEST_SEED), ("seed",), "number", "")
    if "duration" in body and model in DURATIONS:
        yield from _check_range(body["duration"], DURATIONS[model], ("duration",), "number", "")
    for name, limits in (("referenceImages", REFERENCES), ("promptImage", FRAMES)):
        if isinstance(body.get(name), list) and model in limits:
            yield from _check_range(len(body[name]), limits[model], (name,), "array", "items")
    for index, entry in enumerate(body.get("referenceImages", ())):
        if "tag" in entry and not TAG.fullmatch(entry["tag"]):
            message = "Invalid tag: 3 to 16 lowercase letters, digits and _, first a letter"
            yield Issue("invalid_format", ("referenceImages", index, "tag"), message)
    for path, uri in assets(body):
        problem = _problem_of_uri(uri, allow_loopback=allow_loopback)
        if problem is not None:
            yield Issue("invalid_format", path, problem)


def _check_range(
    value: int, limits: tuple[int, int | None], path: Path, what: str, unit: str
) -> Iterator[Issue]:
    least, most = limits
    if value < least:
        message = f"Too small: expected {what} to have >={least} {unit}".rstrip()
        yield Issue("too_small", path, message)
    if most is not None and value > most:
        yield Issue("too_big", path, f"Too big: expected {what} to have <={most} {unit}".rstrip())


def _problem_of_uri(uri: str, *, allow_loopback: bool) -> str | None:
    """Say what is wrong with the URI of an asset."""
    if uri.startswith("runway://"):
        return None if len(uri) <= UPLOAD_CHARACTERS else "Upload URI is too long"
    if uri.startswith("data:"):
        if not re.match(r"data:image/[a-z.+-]+;base64,", uri):
            return "Data URI must have an image content type and be base64 encoded"
        return None if len(uri) <= DATA_CHARACTERS else "Data URI is larger than 5 MB"
    if allow_loopback and uri.startswith("http://") and is_loopback(uri):
        return None
    return _problem_of_url(uri)


def _problem_of_url(url: str) -> str | None:
    if len(url) not in URL_CHARACTERS:
        return "URL must be 13 to 2048 characters long"
    parts = urlsplit(url)
    if parts.scheme != "https":
        return "Invalid URL: only HTTPS URLs are supported"
    if not parts.hostname or "." not in parts.hostname or _is_address(parts.hostname):
        return "Invalid URL: must have a domain name, not an IP address"
    return None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
