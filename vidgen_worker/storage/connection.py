"""The connection to one project's file store: trouble that passes by itself is retried in place."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, TypeVar

import httpx
from supabase import AsyncClient, AsyncClientOptions, acreate_client
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential_jitter,
)

from vidgen_worker.domain.faults import Fault, First
from vidgen_worker.providers.free_client import FreeClient
from vidgen_worker.storage.answers import FOREIGN, checked, classify

TRIES = 4
"""How often a request is sent before `storage_unavailable` leaves this module."""
LONGEST_WAIT = timedelta(seconds=5)
"""A Retry-After beyond this is left to the pipeline, which waits without a slot."""
CONNECT_SECONDS = 10.0
"""How long it may take to connect, or to get a place in the pool."""
CONNECTIONS = 50
"""The most connections at once; uploads beyond it wait for a place."""
IDLE_CONNECTIONS = 10
"""Idle connections that httpx's own transport keeps; few, because it looks at each of them."""

T = TypeVar("T")


class Connection:
    """Opened at the first use. `timeout` is how long a request may stand still.

    `first_wait` is the pause before the second try; it doubles.
    """

    def __init__(self, url: str, key: str, *, timeout: timedelta, first_wait: timedelta) -> None:
        self.url = url.rstrip("/")
        self._key = key
        self._headers = {"apikey": key, "authorization": f"Bearer {key}"}
        seconds = timeout.total_seconds()
        # HTTP/1.1, because idle and long HTTP/2 connections of supabase-py drop requests
        # (supabase-py issue 1064); a client of ours, because the default one is deprecated.
        self._http = FreeClient(
            timeout=httpx.Timeout(seconds, connect=min(CONNECT_SECONDS, seconds)),
            limits=httpx.Limits(
                max_connections=CONNECTIONS, max_keepalive_connections=IDLE_CONNECTIONS
            ),
        )
        self._backoff = wait_exponential_jitter(
            multiplier=first_wait.total_seconds(),
            max=LONGEST_WAIT.total_seconds(),
            jitter=first_wait.total_seconds(),
        )
        self._client: AsyncClient | None = None
        self._opening = asyncio.Lock()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def get(self, path: str) -> Any:  # noqa: ANN401 - JSON
        """Return Storage's answer to a GET. Raises as storage3 does."""
        address = f"{self.url}/storage/v1/{path}"
        return checked(await self._http.get(address, headers=self._headers))

    async def post(self, path: str, **headers: str) -> Any:  # noqa: ANN401 - JSON
        """Return Storage's answer to an empty POST with these headers. Raises as storage3 does."""
        address = f"{self.url}/storage/v1/{path}"
        answer = await self._http.post(address, json={}, headers={**self._headers, **headers})
        return checked(answer)

    @asynccontextmanager
    async def stream(self, path: str) -> AsyncIterator[httpx.Response]:
        """Yield Storage's answer to a GET before its body has come. Raises httpx's errors."""
        address = f"{self.url}/storage/v1/{path}"
        headers = {**self._headers, "accept-encoding": "identity"}
        async with self._http.stream("GET", address, headers=headers) as response:
            yield response

    async def client(self) -> AsyncClient:
        """The library's client. Raises Fault."""
        async with self._opening:
            if self._client is None:
                options = AsyncClientOptions(
                    httpx_client=self._http, auto_refresh_token=False, persist_session=False
                )
                try:
                    self._client = await acreate_client(self.url, self._key, options)
                except FOREIGN as error:
                    raise classify(error, f"opening {self.url}") from error
            return self._client

    async def persist(self, what: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try `attempt` up to `TRIES` times. Raises Fault."""

        async def classified() -> T:
            try:
                return await attempt()
            except FOREIGN as error:
                raise classify(error, what) from error

        retrying = AsyncRetrying(
            retry=retry_if_exception(_passes_soon),
            stop=stop_after_attempt(TRIES),
            wait=self._wait,
            reraise=True,
        )
        return await retrying(classified)

    def _wait(self, state: RetryCallState) -> float:
        """Back off, and never for less than Storage asked for."""
        fault = state.outcome.exception() if state.outcome else None
        asked = fault.retry_after if isinstance(fault, Fault) else None
        return max(self._backoff(state), (asked or timedelta()).total_seconds())


def _passes_soon(error: BaseException) -> bool:
    return (
        isinstance(error, Fault)
        and error.rule.first is First.SEND_AGAIN
        and (error.retry_after or timedelta()) <= LONGEST_WAIT
    )
