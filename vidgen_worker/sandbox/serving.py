"""A server for the doubles: it ends at once, and its applications can cut a connection.

Nothing waits for a request that a prompt word holds open when the server ends. ASGI has no way to
cut a connection without an answer, so that `drop_connection` does it. Nothing here knows a double.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from vidgen_worker.sandbox.visitors import only_from_here
from vidgen_worker.serving.threaded import ReadyServer, ThreadedServer

_log = logging.getLogger(__name__)

CONNECTION = "vidgen.connection"


class ConnectionDropped(Exception):  # noqa: N818 - an event of a handler, not an error of ours
    """Raised in a handler after its connection is gone, so that it answers nothing."""


class BackgroundServer(ThreadedServer):
    """Serves `app` on 127.0.0.1 to this machine; `stop` cuts every connection."""

    def __init__(self, app: ASGIApp, port: int = 0, *, websockets: bool = False) -> None:
        super().__init__(
            only_from_here(_silent_when_dropped(app)),
            socket.create_server(("127.0.0.1", port), backlog=2048),
            server=_Server,
            http=_Connection,
            ws="websockets-sansio" if websockets else "none",
        )


async def drop_connection(request: Request) -> NoReturn:
    """Cut the request's TCP connection; the client gets no further byte.

    Raises `ConnectionDropped`, for the handler to end with.
    """
    connection: _Connection = request.scope[CONNECTION]
    connection.transport.close()
    while (await request.receive())["type"] != "http.disconnect":
        continue
    raise ConnectionDropped


async def hold(request: Request, seconds: float) -> bool:
    """Keep a request waiting; return False when its client left before the time was over."""

    async def client_leaves() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            continue

    try:
        await asyncio.wait_for(client_leaves(), timeout=seconds)
    except TimeoutError:
        return True
    return False


def truncated(request: Request, content: bytes, media_type: str) -> Response:
    """Return an answer that promises all of `content` and ends, with the connection, half-way."""

    async def half() -> AsyncIterator[bytes]:
        yield content[: len(content) // 2]
        await drop_connection(request)

    length = {"content-length": str(len(content))}
    return StreamingResponse(half(), headers=length, media_type=media_type)


async def failed(request: Request, error: Exception) -> Response:
    """Answer in JSON for a handler that failed, which is a defect of ours: no traceback."""
    said = f"The sandbox failed at {request.method} {request.url.path}: {type(error).__name__}"
    return JSONResponse({"statusCode": "500", "error": "Internal", "message": said}, 500)


def _silent_when_dropped(app: ASGIApp) -> ASGIApp:
    """Let a handler that dropped its connection, or failed, end without a traceback in the log."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except ConnectionDropped:
            return
        except Exception as error:
            if scope["type"] == "lifespan":
                raise
            _log.error(
                "The sandbox failed at %s %s: %r. Report it.",
                scope.get("method", scope["type"]),
                scope.get("path", ""),
                error,
                exc_info=_log.isEnabledFor(logging.DEBUG),
            )

    return application


class _Connection(H11Protocol):
    """Tells the application which connection its request came by."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        application: ASGIApp = self.app

        async def with_connection(scope: Scope, receive: Receive, send: Send) -> None:
            await application({**scope, CONNECTION: self}, receive, send)

        self.app = with_connection


class _Server(ReadyServer):
    """Ends at once when it is asked to."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end = asyncio.Event()

    def ask_to_end(self) -> None:
        super().ask_to_end()
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end.set)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    async def main_loop(self) -> None:
        seconds = 0
        while not await self.on_tick(seconds * 10):
            seconds += 1
            try:
                await asyncio.wait_for(self._end.wait(), timeout=1)
            except TimeoutError:
                continue

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            transport = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()
        requests = list(self.server_state.tasks)
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
        await self.lifespan.shutdown()
