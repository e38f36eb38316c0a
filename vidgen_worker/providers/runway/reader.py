"""What is free at Runway: reading a generation or the account, and cancelling a generation.

Plain GETs and DELETEs: the SDK would only make them slower, and it takes longer to import than all
else that `reconcile` does. They are repeated in place, because they cost nothing. Every foreign
exception and every answer becomes a value or a `Fault`. It can't send what is paid.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Literal, TypeVar
from uuid import UUID

import httpx
from tenacity import (
    AsyncRetrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

from vidgen_worker import __version__
from vidgen_worker.domain.faults import Fault, FaultName, First
from vidgen_worker.providers.protocol import Account, Generation
from vidgen_worker.providers.runway import answers as runway_answers

API_VERSION = "2024-11-06"
"""What Runway wants in each request's X-Runway-Version; the SDK sends the same."""
TRIES = 3
"""How often a read is tried in place."""
# Statuses of a read that may differ a moment later.
_TRANSIENT_ANSWERS = (408, 409, 425)

T = TypeVar("T")


class _RefusedError(Exception):
    """Runway, or what stands before it, answered something else than a success."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        super().__init__(str(response.status_code))


class Reader:
    """One key's free requests by one client, which it closes; a read ends within `timeout`.

    Raises ValueError for what can't be a key.
    """

    def __init__(
        self, client: httpx.AsyncClient, *, api_secret: str, base_url: str, timeout: timedelta
    ) -> None:
        check_key(api_secret)
        self._client = client
        self._base_url = base_url.rstrip("/")
        self._seconds = timeout.total_seconds()
        self._headers = {
            "accept": "application/json",
            "authorization": f"Bearer {api_secret}",
            "user-agent": f"vidgen-worker/{__version__}",
            "x-runway-version": API_VERSION,
        }

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def poll(self, generation_id: UUID) -> Generation:
        """Read a generation. Raises Fault `poll_failed`, `poll_denied` or `generation_gone`.

        Asked once: whoever follows it asks again, and Runway wants five seconds in between.
        """
        path = _generation_path(generation_id)

        async def read() -> Generation:
            try:
                response = await self._answer("GET", path)
            except _RefusedError as error:
                if error.response.status_code != httpx.codes.NOT_FOUND:
                    raise
                said = runway_answers.said(error.response)
                details = f"GET {path}: Runway knows no such generation; it says {said}"
                raise Fault(FaultName.GENERATION_GONE, details=details) from error
            return runway_answers.generation(generation_id, response)

        return await self._timed(f"GET {path}", read)

    async def cancel(self, generation_id: UUID) -> None:
        """Cancel what still runs. An absent generation is fine.

        The caller polls first: on a finished generation the same verb destroys its output.
        Raises Fault `poll_failed` or `poll_denied`.
        """
        path = _generation_path(generation_id)

        async def delete() -> None:
            try:
                await self._answer("DELETE", path)
            except _RefusedError as error:
                if error.response.status_code != httpx.codes.NOT_FOUND:
                    raise

        await self._repeated(f"DELETE {path}", delete)

    async def account(self) -> Account:
        """Read the account; free. Raises Fault `poll_failed` or `poll_denied`."""
        path = "/v1/organization"

        async def read() -> Account:
            return runway_answers.account(await self._answer("GET", path))

        return await self._repeated(f"GET {path}", read)

    async def _answer(self, method: Literal["GET", "DELETE"], path: str) -> httpx.Response:
        """Send one request. Raises Fault `poll_failed`, and `_RefusedError`."""
        try:
            response = await self._client.request(
                method, f"{self._base_url}{path}", headers=self._headers
            )
        except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as error:
            # httpx says by RuntimeError that the client is closed, because this worker stops.
            raise runway_answers.read_failed(f"{method} {path}", error) from error
        if not response.is_success:
            raise _RefusedError(response)
        return response

    async def _timed(self, what: str, read: Callable[[], Awaitable[T]]) -> T:
        """Read within the time-out. Raises Fault."""
        try:
            async with asyncio.timeout(self._seconds):
                return await read()
        except TimeoutError as error:
            details = f"{what} was not answered within {self._seconds:g} s"
            raise Fault(FaultName.POLL_FAILED, details=details) from error
        except _RefusedError as error:
            raise runway_answers.read_refused(what, error.response) from error

    async def _repeated(self, what: str, read: Callable[[], Awaitable[T]]) -> T:
        """Repeat a read in place, a few times and within the time-out. Raises Fault."""
        retrying = AsyncRetrying(
            retry=retry_if_exception(_passes_soon),
            stop=stop_after_attempt(TRIES) | stop_after_delay(self._seconds / 2),
            wait=wait_random_exponential(multiplier=0.1, max=1.0),
            reraise=True,
        )
        return await retrying(self._timed, what, read)


def check_key(api_secret: str) -> None:
    """Raise ValueError for what can't be a key."""
    if not api_secret or not api_secret.isascii() or not api_secret.isprintable():
        raise ValueError(
            "RUNWAYML_API_SECRET is empty or holds characters that no key has. "
            "Copy the key again, without line breaks."
        )


def _generation_path(generation_id: UUID) -> str:
    # Whatever is no id would be another endpoint: "../organization".
    return f"/v1/tasks/{UUID(str(generation_id))}"


def _passes_soon(error: BaseException) -> bool:
    """Whether a failed read is worth another try in place: never after a refusal or a 429."""
    if not isinstance(error, Fault) or error.rule.first is not First.POLL_AGAIN:
        return False
    cause = error.__cause__
    if isinstance(cause, _RefusedError):
        status = cause.response.status_code
        return status in _TRANSIENT_ANSWERS or status >= httpx.codes.INTERNAL_SERVER_ERROR
    return True
