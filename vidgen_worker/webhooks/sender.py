"""One request to one webhook: where it may go, how long it may take, what came of it.

An address that somebody has typed could lead to this machine or its network. So its form is looked
at before anything is resolved, all addresses of its name before anything is opened, and the one of
each connection before a byte is sent: a name that changes its address in between gains nothing.
Redirects are not followed, the environment's proxies are not used, and what a receiver answers is
read to a limit and dropped: only the status counts.
"""

import asyncio
import contextlib
import email.utils
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import httpx

from vidgen_worker import __version__
from vidgen_worker.media.public_address import NotPublicError, public_sockets, refusal
from vidgen_worker.providers.aiohttp_transport import AiohttpTransport
from vidgen_worker.providers.http_client import certificates

TIMEOUT = 15.0
"""Seconds from the look-up of the name to the end of the answer."""
LONGEST_ANSWER = 64 * 1024
"""Bytes of an answer that are read, so that its connection can be used again."""
LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=15)
HEADERS = {"content-type": "application/json", "user-agent": f"vidgen-worker/{__version__}"}


class Trouble(StrEnum):
    """Why no status came; the values are what people read. A closed set: no text of others."""

    REFUSED = "its address is not a public one, with https and port 443"
    NAME = "its name or address could not be reached"
    TLS = "its certificate or TLS was not accepted"
    TIMEOUT = f"no answer within {TIMEOUT:g} s"
    BROKEN = "the connection broke"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request: its status, or why there is none. `wish` is its Retry-After."""

    status: int | None
    trouble: Trouble | None = None
    wish: timedelta | None = None

    @property
    def arrived(self) -> bool:
        """Whether the receiver has taken the event."""
        return self.status is not None and 200 <= self.status < 300  # noqa: PLR2004

    @property
    def gone(self) -> bool:
        """Whether the receiver wants no more events."""
        return self.status == httpx.codes.GONE


class Sender:
    """Sends to any number of webhooks. With a `proxy`, that connects, and decides what it reaches.

    `allow_loopback` lets requests go to this machine, also by http and to any port.
    """

    def __init__(self, *, allow_loopback: bool = False, proxy: str | None = None) -> None:
        self._allow_loopback = allow_loopback
        transport: httpx.AsyncBaseTransport
        if proxy is None:
            sockets = public_sockets(allow_loopback=allow_loopback)
            transport = AiohttpTransport(certificates(), LIMITS, sockets)
        else:
            transport = httpx.AsyncHTTPTransport(verify=certificates(), limits=LIMITS, proxy=proxy)
        self._client = httpx.AsyncClient(
            transport=transport, trust_env=False, follow_redirects=False, timeout=TIMEOUT
        )

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send one POST. What goes wrong is an Answer; nothing is raised."""
        try:
            async with asyncio.timeout(TIMEOUT):
                return await self._send(httpx.URL(url), headers, body)
        except TimeoutError:
            return Answer(None, Trouble.TIMEOUT)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            return Answer(None, _trouble(error))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _send(self, url: httpx.URL, headers: Mapping[str, str], body: bytes) -> Answer:
        if await refusal(url, allow_loopback=self._allow_loopback) is not None:
            return Answer(None, Trouble.REFUSED)
        async with self._client.stream(
            "POST", url, content=body, headers=HEADERS | dict(headers)
        ) as response:
            # A broken end of an answer takes nothing from its status.
            with contextlib.suppress(httpx.HTTPError):
                await _drop(response)
            return Answer(response.status_code, wish=_wish(response.headers.get("retry-after")))


async def _drop(response: httpx.Response) -> None:
    """Read an answer to its end, or its limit: beyond that its connection is closed."""
    read = 0
    async for piece in response.aiter_raw():
        read += len(piece)
        if read > LONGEST_ANSWER:
            return


def _trouble(error: Exception) -> Trouble:
    """Return what an error means, by its causes."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    kinds: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], Trouble], ...] = (
        ((NotPublicError, httpx.UnsupportedProtocol, httpx.InvalidURL), Trouble.REFUSED),
        (ssl.SSLError, Trouble.TLS),
        ((httpx.TimeoutException, TimeoutError), Trouble.TIMEOUT),
        (httpx.ConnectError, Trouble.NAME),
    )
    for kind, trouble in kinds:
        if any(isinstance(one, kind) for one in causes):
            return trouble
    return Trouble.BROKEN


def _wish(value: str | None) -> timedelta | None:
    """Read Retry-After: seconds, or a date (RFC 9110, 10.2.3). None where it is neither."""
    if value is None:
        return None
    try:
        if value.strip().isascii() and value.strip().isdigit():
            return timedelta(seconds=min(int(value), 10**9))
        at = email.utils.parsedate_to_datetime(value)
        wish = (at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime.now(UTC)
    except (ValueError, OverflowError):
        return None
    return max(wish, timedelta())
