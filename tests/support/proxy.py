"""A TCP proxy between a worker and PostgreSQL that can be cut, frozen, slowed, or lose an answer.

It lives in the test's event loop. It knows nothing of the protocol but bytes.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

CHUNK = 65_536


class Proxy:
    """Passes bytes on, until told otherwise."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 5432)
        self._parts = parts
        self._server: asyncio.Server | None = None
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._marker = b""
        self._refusing = False
        self.delay = 0.0
        """Seconds before each piece of an answer is passed on."""
        self.lost = asyncio.Event()
        """Set when the answer that was to be lost is lost."""

    @property
    def url(self) -> str:
        """The database's URL, by way of the proxy."""
        if self._server is None:
            raise RuntimeError("The proxy does not listen. Use it inside `async with proxy(url)`.")
        port = self._server.sockets[0].getsockname()[1]
        login = self._parts.netloc.rpartition("@")[0]
        return self._parts._replace(netloc=f"{login}@127.0.0.1:{port}").geturl()

    def cut(self) -> None:
        """Reset every connection and refuse new ones, as a server that is down."""
        self._refusing = True
        self.reset()

    def reset(self) -> None:
        """Reset every connection; new ones are welcome."""
        for pair in tuple(self._pairs):
            for writer in pair:
                writer.transport.abort()

    def freeze(self) -> None:
        """Pass nothing on any more, and say nothing: no answer, no reset."""
        self._flowing.clear()

    def mend(self) -> None:
        """Be a good proxy again."""
        self._refusing = False
        self._flowing.set()

    def lose_the_answer_to(self, marker: bytes) -> None:
        """Pass the next request with these bytes on, and reset its connection at the answer."""
        self._marker = marker
        self.lost.clear()

    async def listen(self) -> None:
        """Begin."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def close(self) -> None:
        """End, with every connection."""
        if self._server is not None:
            self._server.close()
        self._flowing.set()
        self.reset()
        while self._pairs:  # noqa: ASYNC110 - the handlers end by themselves
            await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        try:
            upstream = await asyncio.open_connection(*self._upstream)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, upstream[1])
        self._pairs.add(pair)
        losing = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forth(reader, upstream[1], losing))
                group.create_task(self._back(upstream[0], writer, losing))
        except* OSError:
            pass  # reset by either side: both ends are closed below
        finally:
            for end in pair:
                end.transport.abort()
            self._pairs.discard(pair)

    async def _forth(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event
    ) -> None:
        marker = b""
        while data := await reader.read(CHUNK):
            await self._flowing.wait()
            if marker and marker in data:
                losing.set()
            elif self._marker and self._marker in data:
                # Where it is only prepared, the request that counts comes later, by its name; in a
                # pipeline both come at once.
                prepared = re.search(rb"(_pg3_\d+)\x00[^\x00]*" + re.escape(self._marker), data)
                self._marker = b""
                if prepared:
                    marker = b"\x00" + prepared[1] + b"\x00"
                if not prepared or marker in data[prepared.end() :]:
                    losing.set()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError

    async def _back(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event
    ) -> None:
        while data := await reader.read(CHUNK):
            await self._flowing.wait()
            if losing.is_set():
                self.lost.set()
                break
            if self.delay:
                await asyncio.sleep(self.delay)
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError


@asynccontextmanager
async def proxy(url: str) -> AsyncIterator[Proxy]:
    """A proxy to the database at `url`."""
    between = Proxy(url)
    await between.listen()
    try:
        yield between
    finally:
        await between.close()
