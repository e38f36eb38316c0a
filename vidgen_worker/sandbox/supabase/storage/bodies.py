"""The content of a request to Storage: its JSON, and the parts of its path.

The sentences are those of the real server's schema. It never looks at the database.
"""

import re
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from vidgen_worker.sandbox.supabase.storage import refusals
from vidgen_worker.sandbox.supabase.texts import json_of


def bucket_in(request: Request) -> str:
    """Return the bucket of the path."""
    return str(request.path_params["bucket"])


def name_in(request: Request) -> str:
    """Return the object's name in the path."""
    return str(request.path_params["name"])


async def body_of(request: Request, *needed: str) -> dict[str, Any]:
    """Return the JSON object with what is needed. Raises `StorageRefusalError`."""
    content = await request.body()
    is_json = request.headers.get("content-type", "").startswith("application/json")
    if not content and is_json:
        raise refusals.invalid(
            "Body cannot be empty when content-type is set to 'application/json'"
        )
    try:
        body = json_of(content) if content else None
    except ValueError as error:
        text = "Body is not valid JSON but content-type is set to 'application/json'"
        raise refusals.invalid(text) from error
    if not isinstance(body, dict):
        raise refusals.invalid("body must be object")
    for name in needed:
        if name not in body:
            raise refusals.invalid(f"body must have required property '{name}'")
    return body


def expiry_in(body: Mapping[str, Any]) -> int:
    """Return for how many seconds an address is to be good. Raises `StorageRefusalError`."""
    given = body["expiresIn"]
    # Its schema takes a number's text for the number; storage3 sends that.
    is_text = isinstance(given, str) and re.fullmatch(r"-?\d+", given) is not None
    if not is_text and (not isinstance(given, int) or isinstance(given, bool)):
        raise refusals.invalid("body/expiresIn must be integer")
    seconds = int(given)
    if seconds < 1:
        raise refusals.invalid("body/expiresIn must be >= 1")
    return seconds


def names_in(body: Mapping[str, Any], key: str) -> list[str]:
    """Return a list of names. Raises `StorageRefusalError`."""
    names = body[key]
    if not isinstance(names, list):
        raise refusals.invalid(f"body/{key} must be array")
    if not names:
        raise refusals.invalid(f"body/{key} must NOT have fewer than 1 items")
    return [str(name) for name in names]


def whole(where: str, given: Mapping[str, Any], name: str, *, least: int) -> int | None:
    """Return a whole number, None where it is not given. Raises `StorageRefusalError`."""
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or re.fullmatch(r"-?\d{1,15}", str(value)) is None:
        raise refusals.invalid(f"{where}/{name} must be integer")
    if int(value) < least:
        raise refusals.invalid(f"{where}/{name} must be >= {least}")
    return int(value)


def text(where: str, given: Mapping[str, Any], name: str) -> str:
    """Return a text, empty where it is not given. Raises `StorageRefusalError`."""
    value = given.get(name)
    if isinstance(value, (dict, list)):
        raise refusals.invalid(f"{where}/{name} must be string")
    return "" if value is None else str(value)


def one_of(where: str, given: Mapping[str, Any], name: str, allowed: tuple[str, ...]) -> str:
    """Return one of these words, the first where none is given. Raises `StorageRefusalError`."""
    value = given.get(name, allowed[0])
    if value not in allowed:
        raise refusals.invalid(f"{where}/{name} must be equal to one of the allowed values")
    return str(value)
