"""A receiver of webhooks: a real HTTP server that notes each request and answers as it is told."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

OK = b"HTTP/1.1 204 No Content\r\n\r\n"


def status(number: int, *headers: str) -> bytes:
    """An answer with a status and without a body."""
    lines = [f"HTTP/1.1 {number} Because", "content-length: 0", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


@dataclass
class Told:
    """One request. `connection` is the number of the connection that it came on."""

    path: str
    headers: dict[str, str]
    body: bytes
    connection: int


@dataclass
class Receiver:
    """What it was told, and what it will answer: the next of `answers`, then always 204.

    While `open` is not set, answers wait.
    """

    url: str = ""
    told: list[Told] = field(default_factory=list)
    answers: deque[bytes] = field(default_factory=deque)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    connections: int = 0
    most_waiting: int = 0
    _waiting: int = 0
    _came: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def until(self, count: int, patience: float = 60) -> list[Told]:
        """Wait for so many requests."""
        async with asyncio.timeout(patience), self._came:
            await self._came.wait_for(lambda: len(self.told) >= count)
        return self.told

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        number = self.connections
        try:
            while line := await reader.readline():
                headers = {}
                while (header := await reader.readline()).strip():
                    name, _, value = header.decode("latin-1").partition(":")
                    headers[name.strip().lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.told.append(Told(line.split()[1].decode(), headers, body, number))
                self._waiting += 1
                self.most_waiting = max(self.most_waiting, self._waiting)
                async with self._came:
                    self._came.notify_all()
                await self.open.wait()
                self._waiting -= 1
                writer.write(self.answers.popleft() if self.answers else OK)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            self._waiting = max(self._waiting - 1, 0)  # the client has hung up
        finally:
            writer.close()


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """A receiver on this machine, at `http://127.0.0.1:PORT/hook`."""
    receiver = Receiver()
    receiver.open.set()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    try:
        yield receiver
    finally:
        receiver.open.set()
        server.close()
