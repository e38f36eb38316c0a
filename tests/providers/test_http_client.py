"""The client below our adapters: cookies are neither kept nor sent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from vidgen_worker.providers.free_client import FreeClient
from vidgen_worker.providers.http_client import HttpClient

ANSWER = b"HTTP/1.1 200 OK\r\nset-cookie: a=b\r\ncontent-length: 2\r\n\r\nok"


@asynccontextmanager
async def baker(heads: list[bytes]) -> AsyncIterator[str]:
    """A server that sets a cookie in every answer, and notes what it was asked."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.read(65_536):
            heads.append(head)
            writer.write(ANSWER)
        writer.close()
        await writer.wait_closed()
        ended.set()

    ended = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        # The client has hung up.
        await ended.wait()


@pytest.mark.usefixtures("transport")
async def test_a_cookie_is_neither_kept_nor_sent_back() -> None:
    heads: list[bytes] = []
    free = FreeClient(timeout=httpx.Timeout(5), limits=httpx.Limits())
    async with baker(heads) as url, free as client:
        for _ in range(2):
            answer = await client.get(url)
            assert answer.headers["set-cookie"] == "a=b"
        assert not client.cookies
    assert len(heads) == 2
    assert b"cookie" not in heads[1].lower()


def test_a_cookie_that_is_put_in_is_refused() -> None:
    with pytest.raises(AttributeError, match="send a header"):
        HttpClient().cookies = {"a": "b"}
