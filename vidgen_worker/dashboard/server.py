"""The dashboard on a loopback port, in a thread: from `start` until `stop`.

It knows no setting of the worker's, and speaks to this machine only.
"""

import asyncio
import logging
import socket
import threading
from types import TracebackType
from typing import Self

import uvicorn

from vidgen_worker.client.database import ClientSettings
from vidgen_worker.dashboard.access import TOKEN, Keys
from vidgen_worker.dashboard.app import Dashboard
from vidgen_worker.telemetry.loopback_http import LOOPBACK, PortError, reason_of

START_SECONDS = 20.0
STOP_SECONDS = 10.0
ENDING_SECONDS = 2
"""How long an answer that is under way may take when the dashboard is stopped."""


class _Server(uvicorn.Server):
    """Says when it answers, or that it never will."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        await super().startup(sockets)
        self.ready.set()


class DashboardServer:
    """Serves one dashboard. Port 0 asks for a free one. Raises PortError where it can't be had."""

    def __init__(self, settings: ClientSettings, port: int = 0, *, read_only: bool = False) -> None:
        try:
            self._socket = socket.create_server((LOOPBACK, port), backlog=64)
        except OSError as error:
            raise PortError(
                f"The dashboard can't listen on port {port} ({reason_of(error)}). Choose another "
                "with --port, or stop what uses it; --port 0 takes a free one."
            ) from error
        self.port: int = self._socket.getsockname()[1]
        self._keys = Keys(self.port)
        config = uvicorn.Config(
            Dashboard(settings, self._keys, read_only=read_only).app,
            http="h11",
            ws="none",
            lifespan="on",
            log_config=None,
            log_level=logging.ERROR,
            access_log=False,  # the first address holds the token
            server_header=False,
            timeout_graceful_shutdown=ENDING_SECONDS,
        )
        self._server = _Server(config)
        self._thread = threading.Thread(target=self._run, name="dashboard", daemon=True)

    @property
    def link(self) -> str:
        """What opens it in a browser. Whoever has it may do what the dashboard can."""
        return self._link(self._keys.link)

    @property
    def link_for_once(self) -> str:
        """The same for one use: what a browser is started with."""
        return self._link(self._keys.once)

    def _link(self, token: str) -> str:
        return f"http://{LOOPBACK}:{self.port}/?{TOKEN}={token}"

    def start(self) -> Self:
        """Start to serve; returns once requests are answered."""
        self._thread.start()
        try:
            self._server.ready.wait(START_SECONDS)
        except BaseException:  # Ctrl-C
            self.stop()
            raise
        if not self._server.started:
            self.stop()
            message = "The dashboard did not start: uvicorn.error of the log says why. Report it."
            raise PortError(message)
        return self

    def stop(self) -> None:
        """Stop serving. Any number of calls is fine."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)
        self._socket.close()

    def __enter__(self) -> Self:
        """Start to serve."""
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop serving."""
        self.stop()

    def _run(self) -> None:
        try:
            # Whoever runs in this thread has no signals: they are the main thread's.
            asyncio.run(self._server.serve(sockets=[self._socket]))
        finally:
            self._server.ready.set()
