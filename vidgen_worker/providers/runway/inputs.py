"""The inputs of Runway: checks of a scene's values, and the bodies of the paid requests.

Every check raises Fault `scene_invalid` that names the field and the remedy, before anything is
paid; the SDK itself checks nothing. A field that the model does not list is never sent, because
Runway refuses the whole request for it. Nothing here does I/O or reads a picture.
"""

import ipaddress
import re
import unicodedata
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints
from urllib.parse import SplitResult, urlsplit

from vidgen_worker.domain.faults import Fault, FaultName
from vidgen_worker.domain.resolution import Model
from vidgen_worker.providers.protocol import Request

TEXT_TO_IMAGE = "/v1/text_to_image"
IMAGE_TO_VIDEO = "/v1/image_to_video"
PROMPT_UNITS_MAX = 1000
"""Longest `promptText`, in UTF-16 code units (OpenAPI document, both endpoints)."""
ASSET_URL_MIN = 13
"""Shortest https URI of an asset, in characters (OpenAPI document)."""
ASSET_URL_MAX = 2048
"""Longest https URI of an asset, in characters (OpenAPI document)."""
HOST_LABEL_MAX = 63
"""Longest part of a host name between two dots (RFC 1035, 2.3.4)."""
PRODUCT_TAG = "product"
"""The tag of the product reference: prompts mention it as `@product`."""

_SPACE_OR_CONTROL = re.compile(r"[\s\x00-\x20\x7f-\x9f\\]")
_ASCII_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?", re.IGNORECASE)
_NUMBER = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)", re.IGNORECASE)
# Resolvers take these for dots in a host name (UTS 46).
_OTHER_DOTS = str.maketrans(dict.fromkeys("\u3002\uff0e\uff61", "."))


def utf16_units(text: str) -> int:
    """Count the UTF-16 code units of `text`. Raises UnicodeEncodeError for a lone surrogate."""
    return len(text.encode("utf-16-le")) // 2


def check_prompt(field: str, text: str | None) -> str | None:
    """Return the prompt as it is sent, None for an absent or blank one.

    Raises Fault `scene_invalid` for one of more than 1,000 UTF-16 units or with half an emoji.
    """
    if text is None or not text.strip():
        return None
    try:
        units = utf16_units(text)
    except UnicodeEncodeError as error:
        problem = f"holds a broken character at position {error.start + 1}. Remove it, then retry."
        raise _invalid(field, problem) from error
    if units > PROMPT_UNITS_MAX:
        problem = (
            f"has {units} characters as Runway counts them (UTF-16 units); "
            f"at most {PROMPT_UNITS_MAX} are accepted. Shorten it, then retry."
        )
        raise _invalid(field, problem)
    return text


def check_duration(field: str, seconds: int, model: Model) -> int:
    """Return the duration. Raises Fault `scene_invalid` if the model does not make such clips."""
    if isinstance(seconds, bool) or seconds not in model.durations:
        accepted = ", ".join(map(str, model.durations))
        problem = (
            f"is {seconds} seconds; the model {model.name} makes clips of {accepted} seconds. "
            f"Choose one of these, then retry."
        )
        raise _invalid(field, problem)
    return seconds


def check_asset_url(field: str, url: str, *, allow_loopback: bool) -> str:
    """Return the URL. Raises Fault `scene_invalid` unless Runway may fetch it.

    Runway takes https with a domain name, up to 2,048 characters
    (https://docs.dev.runwayml.com/assets/inputs/). `allow_loopback` also lets
    `http://127.0.0.1:PORT` pass, which only a sandbox can fetch.
    """
    if not ASSET_URL_MIN <= len(url) <= ASSET_URL_MAX:
        problem = (
            f"is a URL of {len(url)} characters; {ASSET_URL_MIN} to {ASSET_URL_MAX} are accepted. "
            "Store the picture under a shorter URL, then retry."
        )
        raise _invalid(field, problem)
    problem = _url_problem(url, allow_loopback=allow_loopback)
    if problem:
        raise _invalid(field, f"{problem} Use https:// with a host name, then retry.")
    return url


def _url_problem(url: str, *, allow_loopback: bool) -> str:
    """Say what is wrong with `url`; an empty string when nothing is."""
    if _SPACE_OR_CONTROL.search(url):
        return "is a URL with a space, a backslash or a control character."
    try:
        url.encode()
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "is a URL that can't be read."
    if allow_loopback and (parts.scheme, parts.hostname) == ("http", "127.0.0.1") and port:
        return "is a URL with a user name." if "@" in parts.netloc else ""
    if parts.scheme != "https":
        return "is not an https URL."
    if port == 0:
        return "is a URL with port 0."
    return _host_problem(parts)


def _host_problem(parts: SplitResult) -> str:
    if "@" in parts.netloc:
        return "is a URL with a user name or password."
    # As a resolver sees it: full-width digits and dots are digits and dots.
    folded = unicodedata.normalize("NFKC", (parts.hostname or "").translate(_OTHER_DOTS))
    labels = folded.removesuffix(".").split(".")
    if _is_address(folded) or _NUMBER.fullmatch(labels[-1]):
        # No top-level domain is a number: 127.1, 0x7f.1 and 2130706433 are addresses too.
        return "is a URL with an IP address."
    if len(labels) < 2:  # noqa: PLR2004 - a host and its domain
        return "is a URL without a full host name."
    if not all(_is_label(label) for label in labels):
        return "is a URL whose host name can't be read."
    return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _is_label(label: str) -> bool:
    if label.isascii():
        return len(label) <= HOST_LABEL_MAX and bool(_ASCII_LABEL.fullmatch(label))
    return all(character.isalnum() or character in "-·" for character in label)


def image_request(
    model: Model, prompt: str | None, ratio: str, reference_url: str | None
) -> Request:
    """Declare the still: a prompt, a size, and the product's picture where the model takes one.

    Raises Fault `scene_invalid` where the model needs a prompt or a reference that is absent.
    """
    body: dict[str, Any] = {"model": model.name}
    _put_prompt(body, model, "image_prompt", prompt)
    _put_ratio(body, model, ratio)
    if reference_url is None:
        if "reference_images" in model.required:
            problem = f"is absent, and the model {model.name} needs it. Add a picture, then retry."
            raise _invalid("product_reference_image_url", problem)
    elif "reference_images" in model.fields:
        reference = {"uri": reference_url}
        if _takes_tags(model.name):
            reference["tag"] = PRODUCT_TAG
        body["referenceImages"] = [reference]
    return Request(TEXT_TO_IMAGE, model.name, body)


def video_request(model: Model, prompt: str | None, ratio: str, duration: int) -> Request:
    """Declare the clip: a size, a duration in seconds, a prompt if there is one.

    Its first frame is the request's source. Raises Fault `scene_invalid` where the model needs a
    prompt that is absent.
    """
    body: dict[str, Any] = {"model": model.name}
    _put_prompt(body, model, "visual_prompt", prompt)
    _put_ratio(body, model, ratio)
    if "duration" in model.fields:
        # gen4_turbo has no documented default, so it is always said.
        body["duration"] = check_duration("duration", duration, model)
    return Request(IMAGE_TO_VIDEO, model.name, body)


def body_of(request: Request) -> dict[str, Any]:
    """Return the body as it is sent: a clip's source is its first frame, a still's a reference."""
    body = dict(request.body)
    if request.source is None:
        return body
    if request.endpoint == IMAGE_TO_VIDEO:
        return {**body, "promptImage": request.source}
    return {**body, "referenceImages": [*body.get("referenceImages", ()), {"uri": request.source}]}


def _put_prompt(body: dict[str, Any], model: Model, field: str, prompt: str | None) -> None:
    text = check_prompt(field, prompt)
    if text is not None and "prompt_text" in model.fields:
        body["promptText"] = text
    elif text is None and "prompt_text" in model.required:
        problem = f"is empty, and the model {model.name} needs it. Write a prompt, then retry."
        raise _invalid(field, problem)


def _put_ratio(body: dict[str, Any], model: Model, ratio: str) -> None:
    if ratio not in model.ratios:
        details = f"the model {model.name} takes {', '.join(model.ratios)}, not {ratio}"
        raise Fault(FaultName.RESOLUTION_UNSUPPORTED, details=details)
    body["ratio"] = ratio


def _takes_tags(model: str) -> bool:
    """Whether this model's `referenceImages` have a `tag`, by the SDK's own types."""
    from runwayml.types import text_to_image_create_params  # noqa: PLC0415 - it takes long

    for params in get_args(text_to_image_create_params.TextToImageCreateParams):
        hints = get_type_hints(params)
        if model in get_args(hints["model"]):
            return any(
                "tag" in get_type_hints(item) for item in _classes(hints["reference_images"])
            )
    return False


def _classes(hint: Any) -> Iterator[type]:  # noqa: ANN401 - a type expression has no type
    """Yield every class inside a type expression."""
    for part in get_args(hint):
        if isinstance(part, type) and not get_args(part):
            yield part
        yield from _classes(part)


def _invalid(field: str, problem: str) -> Fault:
    message = f"The field {field} {problem}"
    return Fault(FaultName.SCENE_INVALID, field=field, message=message, details=message)
