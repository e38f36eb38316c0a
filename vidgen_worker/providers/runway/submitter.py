"""The paid POST to Runway: sent once, however it ends.

The only module that can send one: it takes a `PaidClient`, whose errors tell what has never left
this machine. The SDK's own retries are off: they would pay again for an answer that got lost (it
sends no idempotency key).
"""

import asyncio
from datetime import timedelta

import httpx
from runwayml import APIConnectionError, APIStatusError, AsyncRunwayML
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

from vidgen_worker.domain.clock import boot_time
from vidgen_worker.domain.faults import Fault, FaultName
from vidgen_worker.providers.http_client import PaidClient
from vidgen_worker.providers.protocol import Accepted, Request
from vidgen_worker.providers.runway import answers as runway_answers
from vidgen_worker.providers.runway.inputs import body_of

CONNECT_SECONDS = 5.0
"""How long it may take to connect, or to get a place in the pool."""
TRIES = 3
"""How often a submit that provably never left is tried in place."""
WAKING_SECONDS = 1.0
"""Added to the submit time-out, for an answer that is in a buffer of this machine already."""

# Raised before the first byte of a request has left.
_NEVER_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)


class _NeverSentError(Exception):
    """A submit that provably never left this machine."""


class Submitter:
    """One key's paid requests; all of one ends with `timeout`."""

    def __init__(
        self, client: PaidClient, *, api_secret: str, base_url: str, timeout: timedelta
    ) -> None:
        self._submit_seconds = timeout.total_seconds()
        self._paid = AsyncRunwayML(
            api_key=api_secret, base_url=base_url, max_retries=0, http_client=client
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._paid.close()

    async def submit(self, request: Request) -> Accepted:
        """Send the paid POST once. Raises Fault; `submission_unknown` where it may be paid.

        Only a request that never left is tried again in place. All of it ends with the submit
        time-out: a successor counts an unanswered submission as unknown soon after it. A process
        that was frozen finds time-out and answer at once when it wakes: the answer counts.
        """
        path, until = request.endpoint, boot_time() + self._submit_seconds
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_NeverSentError),
            stop=stop_after_attempt(TRIES) | stop_after_delay(self._submit_seconds / 2),
            wait=wait_random_exponential(multiplier=0.1, max=1.0),
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    self._raise_if_over(until)
                    posting = asyncio.create_task(
                        self._paid.post(path, body=body_of(request), cast_to=httpx.Response)
                    )
                    response = await self._answer(path, request, posting, until)
        except _NeverSentError as error:
            details = f"POST {path} was not sent: {error}"
            raise Fault(FaultName.PROVIDER_UNREACHABLE, details=details) from error
        return runway_answers.accepted(path, response)

    def _raise_if_over(self, until: float) -> None:
        if boot_time() > until:
            raise _NeverSentError("this process stood still until the time-out was over")
        if self._paid.is_closed():
            raise _NeverSentError("the connections are closed, because this worker stops")

    async def _answer(
        self, path: str, request: Request, posting: "asyncio.Task[httpx.Response]", until: float
    ) -> httpx.Response:
        """Wait for the answer. Raises `_NeverSentError` when it surely never left, else Fault."""
        try:
            for seconds in (max(until - boot_time(), 0.0), WAKING_SECONDS):
                await asyncio.wait({posting}, timeout=seconds)
            if not posting.done():
                posting.cancel()
                await asyncio.wait({posting})
        except asyncio.CancelledError:
            posting.cancel()
            raise
        try:
            return posting.result()
        except asyncio.CancelledError as error:
            details = f"POST {path} was not answered within {self._submit_seconds:g} s"
            raise Fault(FaultName.SUBMISSION_UNKNOWN, details=details) from error
        except APIStatusError as error:
            raise runway_answers.submit_refused(path, request, error.response) from error
        except APIConnectionError as error:
            cause = error.__cause__
            if isinstance(cause, _NEVER_SENT):
                raise _NeverSentError(runway_answers.described(cause)) from error
            details = f"POST {path} got no answer: {runway_answers.described(cause or error)}"
            raise Fault(FaultName.SUBMISSION_UNKNOWN, details=details) from error
        except (TypeError, ValueError) as error:
            # Only building the request raises these: what happens on the wire is wrapped above.
            details = f"POST {path} was not sent, its body can't be written as JSON: {error}"
            raise Fault(FaultName.REQUEST_REFUSED, details=details) from error


def connect_seconds(timeout: timedelta) -> float:
    """How long a connection may take for a request of this time-out."""
    return min(CONNECT_SECONDS, timeout.total_seconds() / 4)
