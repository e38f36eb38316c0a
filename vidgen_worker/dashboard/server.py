"""The dashboard on a loopback port, in a thread: from `start` until `stop`.

It knows no setting of the worker's, and speaks to this machine only.
"""

import socket

from vidgen_worker.client.database import ClientSettings
from vidgen_worker.dashboard.access import TOKEN, Keys
from vidgen_worker.dashboard.app import Dashboard
from vidgen_worker.serving.threaded import ThreadedServer
from vidgen_worker.telemetry.loopback_http import LOOPBACK, PortError, reason_of

ENDING_SECONDS = 2
"""How long an answer that is under way may take when the dashboard is stopped."""


class DashboardServer(ThreadedServer):
    """Serves one dashboard. Port 0 asks for a free one. Raises PortError where it can't be had."""

    def __init__(self, settings: ClientSettings, port: int = 0, *, read_only: bool = False) -> None:
        try:
            listening = socket.create_server((LOOPBACK, port), backlog=64)
        except OSError as error:
            raise PortError(
                f"The dashboard can't listen on port {port} ({reason_of(error)}). Choose another "
                "with --port, or stop what uses it; --port 0 takes a free one."
            ) from error
        self._keys = Keys(listening.getsockname()[1])
        dashboard = Dashboard(settings, self._keys, read_only=read_only)
        self.has_read_ahead = dashboard.has_read_ahead
        """Set once what is over has been read (`ahead.py`)."""
        super().__init__(
            dashboard.app, listening,
            http="h11", ws="none", timeout_graceful_shutdown=ENDING_SECONDS,
        )  # fmt: skip

    @property
    def link(self) -> str:
        """The address that opens it in a browser. Its reader may do all that the dashboard can."""
        return f"{self.url}/?{TOKEN}={self._keys.link}"

    @property
    def link_for_once(self) -> str:
        """The same for one use: a browser is started with it."""
        return f"{self.url}/?{TOKEN}={self._keys.once}"
