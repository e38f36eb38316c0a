"""aiohttp below httpx, for requests that may be sent twice: some 60 % of the CPU of httpx's own.

What aiohttp would add is left out: cookies, redirects, decompression, headers of its own, a second
try by itself, the quoting of a URL anew. Its errors become httpx's, without the URL, which may be a
key. Never below a paid POST: of a lost connection it doesn't say whether the request has left.
Written here because httpx-aiohttp 0.2 calls each lost connection a ConnectTimeout, keeps cookies,
quotes anew, has no time-out for writing, and does not let us check an address before it connects.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiohttp
import httpx
from yarl import URL

ADDED_BY_AIOHTTP = ("accept", "accept-encoding", "content-type", "user-agent")
"""Headers that it would add where a request has none."""
LONGEST_HEADER = 65_536
"""Bytes of one header: a redirect to a signed address is a long one."""
TOGETHER = 65_536
"""Bytes of a body that are written at once: a part's head, and its end, go with its content."""

AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]
"""As `getaddrinfo` returns it: family, type, protocol, canonical name, address."""
Sockets = Callable[[AddressInfo], socket.socket]

# The first match counts, so that special errors come before general ones.
_ERRORS: tuple[tuple[type[BaseException], type[httpx.TransportError]], ...] = (
    (aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout),
    (aiohttp.ServerTimeoutError, httpx.ReadTimeout),
    (aiohttp.ClientConnectorError, httpx.ConnectError),  # names, refusals, TLS
    (aiohttp.ServerDisconnectedError, httpx.RemoteProtocolError),
    (aiohttp.ClientPayloadError, httpx.RemoteProtocolError),  # fewer bytes than were promised
    (aiohttp.ClientResponseError, httpx.RemoteProtocolError),  # no HTTP
    (aiohttp.ClientConnectionResetError, httpx.WriteError),
    (aiohttp.ClientConnectionError, httpx.ReadError),
    (aiohttp.InvalidURL, httpx.UnsupportedProtocol),
    (aiohttp.NonHttpUrlClientError, httpx.UnsupportedProtocol),
    (aiohttp.ClientError, httpx.ReadError),
    (OSError, httpx.ReadError),
    (ValueError, httpx.LocalProtocolError),  # a header that can't be written
)


class AiohttpTransport(httpx.AsyncBaseTransport):
    """One pool of connections. `sockets` makes each of them, and may refuse by OSError.

    Of `limits` it respects the number of connections, and how long an idle one is kept.
    """

    def __init__(
        self, certificates: ssl.SSLContext, limits: httpx.Limits, sockets: Sockets | None = None
    ) -> None:
        self._certificates = certificates
        self._limits = limits
        self._sockets = sockets
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request. Raises httpx.TransportError."""
        allowed: dict[str, float | None] = request.extensions.get("timeout", {})
        connect, pool = allowed.get("connect"), allowed.get("pool")
        both = None if connect is None or pool is None else connect + pool
        body = _Body(request, allowed.get("write"))
        with _as_httpx(request):
            async with body.taken():
                response = await self._opened().request(
                    request.method,
                    _url(request),
                    headers=_headers(request),
                    data=body.data,
                    allow_redirects=False,
                    middlewares=(_Once(request),),
                    timeout=aiohttp.ClientTimeout(
                        connect=both, sock_connect=connect, sock_read=allowed.get("read")
                    ),
                )
        return httpx.Response(
            response.status,
            headers=list(response.raw_headers),
            stream=_Stream(response, request),
            extensions={"http_version": b"HTTP/1.1"},
        )

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        """Return the session, which needs a running loop to be made."""
        if self._session is None:
            connector = aiohttp.TCPConnector(
                ssl=self._certificates,
                limit=self._limits.max_connections or 0,
                keepalive_timeout=self._limits.keepalive_expiry,
                # The system's: /etc/hosts counts, whatever resolver is installed beside aiohttp.
                resolver=aiohttp.ThreadedResolver(),
                socket_factory=self._sockets,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=ADDED_BY_AIOHTTP,
                max_line_size=LONGEST_HEADER,
                max_field_size=LONGEST_HEADER,
            )
        return self._session


class _Stream(httpx.AsyncByteStream):
    """The body of an answer, as its bytes come."""

    def __init__(self, response: aiohttp.ClientResponse, request: httpx.Request) -> None:
        self._response = response
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx(self._request):
            async for piece in self._response.content.iter_any():
                yield piece

    async def aclose(self) -> None:
        """Hang up, unless the connection went back to the pool at the end of the body."""
        self._response.close()


class _Once:
    """Lets no error of a lost connection through to aiohttp, which would send the request again."""

    def __init__(self, request: httpx.Request) -> None:
        self._request = request

    async def __call__(
        self, theirs: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        with _as_httpx(self._request):
            return await send(theirs)


@contextlib.contextmanager
def _as_httpx(request: httpx.Request) -> Iterator[None]:
    """Turn an error of aiohttp into the one that httpx would raise."""
    try:
        yield
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise _translated(error, request) from error


def _translated(error: BaseException, request: httpx.Request) -> httpx.TransportError:
    kind = next(ours for theirs, ours in _ERRORS if isinstance(error, theirs))
    said = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
    said = " ".join(said.replace(str(_url(request)), request.url.host).split())
    return kind(said or type(error).__name__, request=request)


def _url(request: httpx.Request) -> URL:
    """The address as httpx would write it; its user's name is a header already."""
    url = request.url
    if url.scheme not in ("http", "https") or not url.host:
        said = "Request URL is missing an 'http://' or 'https://' protocol, or its host."
        raise httpx.UnsupportedProtocol(said, request=request)
    return URL(f"{url.scheme}://{url.netloc.decode()}{url.raw_path.decode()}", encoded=True)


def _headers(request: httpx.Request) -> list[tuple[str, str]]:
    return [
        (name.decode("ascii"), value.decode("utf-8"))
        for name, value in request.headers.raw
        if name.lower() != b"transfer-encoding"  # aiohttp's own, where there is no length
    ]


class _Body:
    """The body of a request, with a limit to the wait for its transfer."""

    def __init__(self, request: httpx.Request, seconds: float | None) -> None:
        self._request = request
        self._seconds = seconds
        self._waiting: asyncio.Timeout | None = None

    @property
    def data(self) -> bytes | AsyncIterator[bytes] | None:
        """The body as aiohttp takes it."""
        try:
            return self._request.content or None
        except httpx.RequestNotRead:
            return self._pieces()

    @contextlib.asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Raise httpx.WriteTimeout within, once nothing is taken for so many seconds."""
        try:
            async with asyncio.timeout(None) as self._waiting:
                yield
        except TimeoutError as error:
            if not self._waiting or not self._waiting.expired():
                raise
            said = f"nothing of the body was taken for {self._seconds:g} s"
            raise httpx.WriteTimeout(said, request=self._request) from error
        finally:
            self._waiting = None

    async def _pieces(self) -> AsyncIterator[bytes]:
        stream = self._request.stream
        if not isinstance(stream, httpx.AsyncByteStream):
            raise TypeError("the body can't be read by a coroutine")
        held = bytearray()
        async for piece in stream:
            held += piece
            if len(held) < TOGETHER:
                continue
            # aiohttp asks for the next piece once the last one is written.
            self._wait(self._seconds)
            yield bytes(held)
            held.clear()
        self._wait(self._seconds)
        yield bytes(held)
        self._wait(None)

    def _wait(self, seconds: float | None) -> None:
        """Wait so long from now; an answer may come before all of the body is taken."""
        if self._waiting is not None:
            now = asyncio.get_running_loop().time()
            self._waiting.reschedule(None if seconds is None else now + seconds)
