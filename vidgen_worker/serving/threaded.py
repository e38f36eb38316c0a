"""uvicorn in a thread of this process, from `start` until `stop`. It handles no signals."""

import contextlib
import logging
import socket
import threading
from typing import Any, Self

import uvicorn
from starlette.types import ASGIApp

from vidgen_worker.serving.stoppable import ServingError, Stoppable

START_SECONDS = 20.0
STOP_SECONDS = 10.0


class ReadyServer(uvicorn.Server):
    """A server that tells another thread when it answers, or that it never will."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        await super().startup(sockets)
        self.ready.set()

    def ask_to_end(self) -> None:
        """Ask the server to end; any thread may call this."""
        self.should_exit = True


class ThreadedServer(Stoppable):
    """Serves `app` on a socket that listens already. `options` are uvicorn's."""

    def __init__(
        self,
        app: ASGIApp,
        listening: socket.socket,
        *,
        server: type[ReadyServer] = ReadyServer,
        **options: Any,  # noqa: ANN401 - uvicorn's own
    ) -> None:
        self._socket = listening
        host, self.port = listening.getsockname()
        self.url = f"http://{host}:{self.port}"
        """The address of the server, without a slash at the end."""
        self._server = server(uvicorn.Config(
            app, lifespan="on", log_config=None, log_level=logging.ERROR,
            access_log=False,  # an address may hold a token
            server_header=False, **options,
        ))  # fmt: skip
        self._thread = threading.Thread(target=self._run, name=f"http-{self.port}", daemon=True)

    def start(self) -> Self:
        """Start to serve; return once requests are answered. Raises ServingError."""
        self._thread.start()
        try:
            self._server.ready.wait(START_SECONDS)
        except BaseException:  # Ctrl-C
            self.stop()
            raise
        if not self._server.started:
            self.stop()
            raise ServingError(
                f"The server at {self.url} did not start: its application failed to begin. "
                "The log of uvicorn.error says why."
            )
        return self

    def stop(self) -> None:
        """Stop serving. Any number of calls is fine."""
        self._server.ask_to_end()
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)
        self._socket.close()

    def __enter__(self) -> Self:
        """Start to serve."""
        return self.start()

    def _run(self) -> None:
        try:
            # uvicorn ends its process when the application can't begin: here only the thread ends.
            with contextlib.suppress(SystemExit):
                self._server.run(sockets=[self._socket])
        finally:
            self._server.ready.set()
