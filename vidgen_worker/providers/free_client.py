"""The client for all that costs nothing: reads of the provider, downloads, the file store."""

from collections.abc import Collection, Mapping
from typing import Any
from urllib.request import getproxies

import httpx

from vidgen_worker.providers.aiohttp_transport import AiohttpTransport, Sockets
from vidgen_worker.providers.http_client import HttpClient, certificates


class FreeClient(HttpClient):
    """Sends what may be sent twice, by aiohttp; through a proxy by httpx, which knows them all.

    `methods` are those that it takes, all by default; `sockets` makes the connections, except those
    through a proxy.
    """

    def __init__(
        self,
        *,
        timeout: httpx.Timeout,
        limits: httpx.Limits,
        headers: Mapping[str, str] | None = None,
        methods: Collection[str] | None = None,
        sockets: Sockets | None = None,
    ) -> None:
        self._methods = methods
        super().__init__(
            verify=certificates(),
            http2=False,
            follow_redirects=False,
            timeout=timeout,
            limits=limits,
            headers=headers,
            transport=None if _proxied() else AiohttpTransport(certificates(), limits, sockets),
        )

    async def send(
        self,
        request: httpx.Request,
        *,
        stream: bool = False,
        **options: Any,  # noqa: ANN401 - httpx's
    ) -> httpx.Response:
        """Send a request. Raises ValueError, before anything is sent, for another method."""
        if self._methods is not None and request.method not in self._methods:
            said = f"{request.method} {request.url.path} is not for this client; use PaidClient"
            raise ValueError(said)
        return await super().send(request, stream=stream, **options)


def _proxied() -> bool:
    """Whether httpx would send anything through a proxy of the environment."""
    found = getproxies()
    return any(found.get(scheme) for scheme in ("http", "https", "all"))
