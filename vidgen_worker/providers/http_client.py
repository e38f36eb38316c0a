"""httpx's client as all our adapters use it: without cookies, and with bounds for every answer.

`PaidClient` sends what is paid; all else goes by `FreeClient`, in its own module, for less CPU.
Nothing here knows aiohttp.

None of the services that we ask uses cookies, and httpx looks for them in every answer by way of
the standard library's cookie jar: a twentieth of the CPU that a request takes. What is asked, and
what follows from an answer, is the adapters' business.
"""

import asyncio
import functools
import os
import ssl
import zlib
from collections.abc import AsyncIterator
from typing import Any, final

import httpx

LARGEST_ANSWER = 8 * 1024 * 1024
"""Bytes of an answer, after decompression: what we ask for is JSON of a few kilobytes."""
SLOWEST_UPLOAD = 50_000
"""Bytes a second that a request's body may take at the least, beside its time-outs."""


class _NoCookies(httpx.Cookies):
    """Stays empty."""

    def extract_cookies(self, response: httpx.Response) -> None:
        """Leave them in the answer."""


_NO_COOKIES = _NoCookies()


def certificates() -> ssl.SSLContext:
    """Return the certificates that httpx would trust, read once a process.

    Reading them costs some 20 ms CPU. Raises OSError where SSL_CERT_FILE can't be used.
    """
    return _certificates(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@functools.cache
def _certificates(_file: str | None, _folder: str | None) -> ssl.SSLContext:
    context = httpx.create_ssl_context()
    context.set_alpn_protocols(["http/1.1"])  # httpx would, and aiohttp would not
    return context


class HttpClient(httpx.AsyncClient):
    """Keeps no cookies, and takes no answer that is too large or too slow.

    An exchange ends within twice its read time-out, and what its body takes; one without a read
    time-out is bounded by whoever sends it.
    """

    async def send(
        self,
        request: httpx.Request,
        *,
        stream: bool = False,
        **options: Any,  # noqa: ANN401 - httpx's
    ) -> httpx.Response:
        """Send a request; the answer is read here unless it is to be streamed.

        Raises httpx.HTTPError, `DecodingError` for an answer that is too large.
        """
        if stream:
            return await super().send(request, stream=True, **options)
        request.headers["accept-encoding"] = "identity"
        seconds = request.extensions.get("timeout", {}).get("read")
        if "transfer-encoding" in request.headers:
            seconds = None  # a body of unknown length: its reads and writes have their time-outs
        if seconds is not None:
            size = request.headers.get("content-length", "")
            seconds = 2 * seconds + (int(size) / SLOWEST_UPLOAD if size.isdecimal() else 0)
        try:
            async with asyncio.timeout(seconds):
                response = await super().send(request, stream=True, **options)
                try:
                    content = await _read(response)
                finally:
                    await response.aclose()
        except TimeoutError as error:
            said = f"the exchange took longer than {seconds:g} s"
            raise httpx.ReadTimeout(said, request=request) from error
        headers = [
            (name, value)
            for name, value in response.headers.raw
            if name.lower() not in (b"content-encoding", b"content-length", b"transfer-encoding")
        ]
        answer = httpx.Response(
            response.status_code, headers=headers, content=content, request=response.request,
            extensions=response.extensions, history=response.history,
        )  # fmt: skip
        # Not what the answer claims: text of another encoding, or of one that is none, raises where
        # it is read, and an error of reading must not be taken for one of sending.
        answer.encoding = "utf-8"
        return answer

    @property
    def cookies(self) -> httpx.Cookies:
        """Nothing, whatever the answers set."""
        return _NO_COOKIES

    @cookies.setter
    def cookies(self, _: object) -> None:
        raise AttributeError("this client keeps no cookies; send a header instead")


@final
class PaidClient(HttpClient):
    """Sends a request once, each on a connection of its own, by httpx's own transport.

    A server that closes an idle connection just then looks as if the answer got lost. Only of
    this transport is it known which errors are raised before the first byte has left. Its reads
    have no time-out, which would cut off an answer that has come while this process stood still:
    the sender bounds the whole.
    """

    def __init__(self, *, connect: float, max_connections: int) -> None:
        super().__init__(
            verify=certificates(),
            http2=False,
            follow_redirects=False,
            timeout=httpx.Timeout(None, connect=connect, pool=connect),
            limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=0),
        )


async def _read(response: httpx.Response) -> bytes:
    """Read a body up to the limit, decompressed by no more than it takes to reach it."""
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    if coding in ("", "identity"):
        return await _joined(response, response.aiter_raw())
    if coding not in ("gzip", "x-gzip", "deflate"):
        said = f"the answer is encoded as {coding!r}, which was not asked for"
        raise httpx.DecodingError(said, request=response.request)
    packed = await _joined(response, response.aiter_raw())
    try:
        unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)  # both headers, gzip's and zlib's
        content = unpack.decompress(packed, LARGEST_ANSWER + 1)
    except zlib.error as error:
        said = f"the answer is no {coding}: {error}"
        raise httpx.DecodingError(said, request=response.request) from error
    if len(content) > LARGEST_ANSWER:
        raise _too_large(response)
    return content


async def _joined(response: httpx.Response, chunks: AsyncIterator[bytes]) -> bytes:
    content = bytearray()
    async for chunk in chunks:
        content += chunk
        if len(content) > LARGEST_ANSWER:
            raise _too_large(response)
    return bytes(content)


def _too_large(response: httpx.Response) -> httpx.DecodingError:
    said = f"the answer ({response.status_code}) is larger than {LARGEST_ANSWER} bytes"
    return httpx.DecodingError(said, request=response.request)


__all__ = ["LARGEST_ANSWER", "HttpClient", "PaidClient", "certificates"]
