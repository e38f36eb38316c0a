"""Access to the doubles: only programs and pages of this machine.

They listen on loopback, but a browser on this machine goes there for any page of the Internet: a
page whose name suddenly resolves to 127.0.0.1 would read prompts and keys (it still says its name
in `Host`), and a form sent here would change how the sandbox behaves (it says its `Origin`). The
doubles' own interfaces are guarded by keys, as the real ones are; `/sandbox/` has none.
"""

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

CONTROLS = "/sandbox/"
MISDIRECTED = 421
FORBIDDEN = 403


def only_from_here(app: ASGIApp) -> ASGIApp:
    """Answer strangers with a sentence in place of `app`."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        refused = None if scope["type"] == "lifespan" else _refusal(scope)
        if refused is None:
            await app(scope, receive, send)
        elif scope["type"] == "http":
            await refused(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    return application


def _refusal(scope: Scope) -> PlainTextResponse | None:
    headers = Headers(scope=scope)
    host, origin = headers.get("host", ""), headers.get("origin")
    if not is_of_this_machine(f"//{host}"):
        said = (
            f"The sandbox answers as 127.0.0.1 and localhost, not as {host[:100]!r}: "
            "ask it by one of those.\n"
        )
        return PlainTextResponse(said, MISDIRECTED)
    if not scope["path"].startswith(CONTROLS):
        return None
    if (origin is not None and not is_of_this_machine(origin)) or (
        headers.get("sec-fetch-site") == "cross-site"
    ):
        said = (
            "The sandbox is controlled by programs and pages of this machine, not by a page of "
            f"{(origin or 'another site')[:100]!r}.\n"
        )
        return PlainTextResponse(said, FORBIDDEN)
    return None


def is_of_this_machine(address: str) -> bool:
    """Whether an address (`//host:port`, an origin) names this machine's loopback."""
    try:
        parts = urlsplit(address)
        name = parts.hostname or ""
        if parts.username is not None or parts.port == 0:
            return False
    except ValueError:
        return False
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
