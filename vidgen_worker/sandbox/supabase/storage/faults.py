"""The faults that a test can plan for Storage's next requests.

It never looks at buckets or objects.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response

from vidgen_worker.sandbox.serving import ConnectionDropped, drop_connection
from vidgen_worker.sandbox.supabase.storage import refusals
from vidgen_worker.sandbox.supabase.storage.refusals import StorageRefusalError

PAGE = "<html><head><title>502 Bad Gateway</title></head><body>cloudflare</body></html>"

Kind = Literal[
    "upload", "leave", "download", "sign", "bucket", "list", "info", "remove", "copy", "move"
]

FAULTS: Mapping[int, StorageRefusalError] = {
    403: refusals.UNAUTHORIZED,
    404: refusals.NO_BUCKET,
    413: refusals.TOO_LARGE,
    415: StorageRefusalError(
        415, "invalid_mime_type", "mime type is not supported", code="InvalidMimeType"
    ),
    429: refusals.TOO_MANY,
    500: refusals.INTERNAL,
    544: refusals.TIMED_OUT,
}


@dataclass(slots=True)
class StorageFault:
    """A fault of the next `times` requests of a kind (`any`: of every kind)."""

    kind: str = "any"
    times: int = 1
    status: int | None = None
    """An error; 502, 503 and 504 come as a gateway's page of HTML."""
    hang: float | None = None
    """Seconds without an answer, once the request is received whole; what comes then is right, and
    is done even if the client has left."""
    begin_after: float | None = None
    """Seconds before the request is looked at, its body included."""
    hang_after: float | None = None
    """Seconds between what was asked, which is done at once, and the answer."""
    drop: Literal["before", "during", "after"] | None = None
    """The connection is cut: at once, amid an upload, or in place of the answer."""


async def begin(fault: StorageFault, request: Request) -> Response | None:
    """Do what a fault says before the request is looked at; return an answer, if that is it."""
    if fault.begin_after is not None:
        await asyncio.sleep(fault.begin_after)
    if fault.hang is not None:
        await _take_whole(request)
        await asyncio.sleep(fault.hang)
    if fault.drop == "during":
        async for chunk in request.stream():
            if chunk:
                break
    if fault.drop in ("before", "during"):
        await drop_connection(request)
    if fault.status is None:
        return None
    known = FAULTS.get(fault.status)
    return HTMLResponse(PAGE, fault.status) if known is None else known.response


async def end(fault: StorageFault, request: Request) -> None:
    """Do what a fault says once the request is done."""
    if fault.hang_after is not None:
        await asyncio.sleep(fault.hang_after)
    if fault.drop == "after":
        await drop_connection(request)


async def _take_whole(request: Request) -> None:
    """Receive the body, for the handler to find; one that its client cuts off is no request."""
    try:
        await request.body()
    except ClientDisconnect:
        raise ConnectionDropped from None
