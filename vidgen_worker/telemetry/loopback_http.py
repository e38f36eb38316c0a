"""A small HTTP server on a loopback port, in a thread of its own: GET and HEAD, one answer each.

The server answers even while the rest of the process hangs, and no client can block others: a
connection has a few seconds and a few kilobytes, and of too many connections the oldest is closed.
Each connection is closed after its answer. The caller decides what is answered.
"""

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Self

LOOPBACK = "127.0.0.1"
CONNECTION_SECONDS = 5.0
"""The longest time from a connection to the end of its answer, on this machine."""
MOST_CONNECTIONS = 64
"""The most connections at once; the process needs its file descriptors for other things."""
LONGEST_REQUEST = 8192
"""The most bytes of a request up to the end of its headers."""
STOP_SECONDS = 10.0


class PortError(Exception):
    """The port can't be used; the message names the setting and the remedy."""


def reason_of(error: OSError) -> str:
    """Why it can't be listened on. Python's own text repeats the address, in its own notation."""
    return os.strerror(error.errno) if error.errno else str(error)


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one request."""

    status: HTTPStatus
    content: bytes
    media_type: str = "text/plain; charset=utf-8"


class LoopbackServer:
    """Listens as soon as it is created, and answers inside its context.

    `answer` is called with a path and the header Accept, in the server's thread; it must not wait.
    Port 0 asks for a free one. Raises OSError where the port can't be had.
    """

    def __init__(self, port: int, answer: Callable[[str, str], Answer], *, name: str) -> None:
        self._socket = socket.create_server((LOOPBACK, port), backlog=MOST_CONNECTIONS)
        self.port: int = self._socket.getsockname()[1]
        self._answer = answer
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._open: dict[asyncio.Task[None], None] = {}
        """The open connections, the oldest first."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        """Start to answer."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the port and every connection."""
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(
            self._connected, sock=self._socket, limit=LONGEST_REQUEST
        )
        await self._ended.wait()
        server.close()
        waiting = list(self._open)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker: this is a coroutine
        if len(self._open) >= MOST_CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.cancel()
        self._open[task] = None
        try:
            async with asyncio.timeout(CONNECTION_SECONDS):
                await self._talk(reader, writer)
        except (TimeoutError, OSError, asyncio.CancelledError):
            # Too slow, gone, or one too many: the client may ask again.
            writer.transport.abort()
        finally:
            self._open.pop(task, None)
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read one request and answer it."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return
        except asyncio.LimitOverrunError:
            answer = _refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            is_head = False
        else:
            method, target, accept = _parts(head)
            is_head = method == "HEAD"
            answer = self._answered(method, target, accept)
        lines = [
            f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
            f"Content-Type: {answer.media_type}",
            f"Content-Length: {len(answer.content)}",
            "Connection: close",
            *(["Allow: GET, HEAD"] if answer.status == HTTPStatus.METHOD_NOT_ALLOWED else []),
        ]
        writer.write("\r\n".join([*lines, "", ""]).encode() + (b"" if is_head else answer.content))
        await writer.drain()
        writer.close()
        # Data after the request is not read, but the answer must arrive.
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    def _answered(self, method: str, target: str, accept: str) -> Answer:
        if not target.startswith("/"):
            return _refusal(HTTPStatus.BAD_REQUEST)
        if method not in ("GET", "HEAD"):
            return _refusal(HTTPStatus.METHOD_NOT_ALLOWED)
        return self._answer(target.partition("?")[0], accept)


def _refusal(status: HTTPStatus) -> Answer:
    return Answer(status, f"{status.phrase}: {status.description}\n".encode())


def _parts(head: bytes) -> tuple[str, str, str]:
    """Method, target and header Accept of a request; an invalid request has an empty target."""
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):  # noqa: PLR2004 - as HTTP says
        return "", "", ""
    headers = dict(line.lower().partition(":")[::2] for line in lines)
    return words[0], words[1], headers.get("accept", "").strip()
