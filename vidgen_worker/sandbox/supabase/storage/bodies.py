"""The content of a request to Storage: its JSON, and the parts of its path.

The sentences are those of the real server's schema. It never looks at the database.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from vidgen_worker.sandbox.supabase.storage import refusals


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
        body = json.loads(content) if content else None
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
