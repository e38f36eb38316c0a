"""Runway through its official SDK: submit, poll, cancel, and the account.

A submit is one POST, however it ends; reads are repeated in place, because they are free. Every
foreign exception and every answer becomes a value or a `Fault` here. What Runway's API calls a
task is a generation. Never used: `wait_for_task_output`, and the SDK's own retries, which would
pay again for an answer that got lost (it sends no idempotency key).
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar
from uuid import UUID

import httpx
from runwayml import APIConnectionError, APIError, APIStatusError, AsyncRunwayML
from tenacity import (
    AsyncRetrying,
    retry_if_exception,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

from vidgen_worker.domain.clock import boot_time
from vidgen_worker.domain.faults import Fault, FaultName
from vidgen_worker.domain.keys import fingerprint
from vidgen_worker.domain.resolution import image_models, video_models
from vidgen_worker.providers.http_client import HttpClient
from vidgen_worker.providers.protocol import Accepted, Account, Generation, Request
from vidgen_worker.providers.runway import answers as runway_answers
from vidgen_worker.providers.runway.inputs import (
    body_of,
    check_asset_url,
    check_duration,
    check_prompt,
    image_request,
    video_request,
)

__all__ = [
    "Runway",
    "check_asset_url",
    "check_duration",
    "check_prompt",
    "image_request",
    "video_request",
]

CONNECT_SECONDS = 5.0
"""How long a connection, or a place in the pool, may take to come about."""
TRIES = 3
"""How often a read, or a submit that provably never left, is tried in place."""
KEEPALIVE_SECONDS = 30.0
"""How long a connection for reads is kept: several polls of one generation."""
WAKING_SECONDS = 1.0
"""Beyond the submit time-out, for an answer that lies in a buffer of this machine already."""
IDLE_CONNECTIONS = 20
"""Kept open between polls; httpcore looks at each of them at every request."""

# Raised before the first byte of a request has left.
_NEVER_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)
# Answers to a read that may well be another one a moment later.
_TRANSIENT_ANSWERS = (408, 409, 425)

T = TypeVar("T")


class _NeverSentError(Exception):
    """A submit that provably never left this machine."""


class Runway:
    """One key at Runway. `key_fingerprint` tells keys apart without telling the key."""

    name = "runway"

    def __init__(  # noqa: PLR0913 - one value each, all by keyword
        self,
        api_secret: str,
        *,
        base_url: str,
        submit_timeout: timedelta,
        poll_timeout: timedelta = timedelta(seconds=20),
        max_connections: int = 100,
        allow_loopback_assets: bool = False,
    ) -> None:
        if not api_secret or not api_secret.isascii() or not api_secret.isprintable():
            raise ValueError(
                "RUNWAYML_API_SECRET is empty or holds characters that no key has. "
                "Copy the key again, without line breaks."
            )
        self.key_fingerprint = fingerprint(api_secret)
        self._allow_loopback_assets = allow_loopback_assets
        self._submit_seconds = submit_timeout.total_seconds()
        self._poll_seconds = poll_timeout.total_seconds()

        def client(seconds: float, keepalive: int | None, *, read: float | None) -> AsyncRunwayML:
            connect = min(CONNECT_SECONDS, seconds / 4)
            http = HttpClient(
                http2=False,
                follow_redirects=False,
                timeout=httpx.Timeout(read, connect=connect, pool=connect),
                limits=httpx.Limits(
                    max_connections=max_connections,
                    max_keepalive_connections=keepalive,
                    keepalive_expiry=KEEPALIVE_SECONDS,
                ),
            )
            return AsyncRunwayML(
                api_key=api_secret, base_url=base_url, max_retries=0, http_client=http
            )

        # Two pools, so that slow submits can't hold up polls. A paid POST never rides on a used
        # connection: a server that closes an idle one just then looks as if the answer got lost.
        # Its reads have no time-out of their own, which would cut off an answer that has come while
        # this process stood still; `submit` bounds the whole.
        self._paid = client(self._submit_seconds, keepalive=0, read=None)
        self._free = client(self._poll_seconds, keepalive=IDLE_CONNECTIONS, read=self._poll_seconds)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._paid.close()
        await self._free.close()

    def still(self, model: str, prompt: str | None, ratio: str, reference: str | None) -> Request:
        """Declare a still of the model's size nearest to `ratio`. Raises Fault `scene_invalid`."""
        if reference is not None:
            check_asset_url(
                "product_reference_image_url", reference,
                allow_loopback=self._allow_loopback_assets,
            )  # fmt: skip
        known = image_models()[model]
        return image_request(known, prompt, known.nearest(ratio), reference)

    def clip(self, model: str, prompt: str | None, ratio: str, seconds: int) -> Request:
        """Declare a clip of the model's size nearest to `ratio`. Raises Fault `scene_invalid`."""
        known = video_models()[model]
        return video_request(known, prompt, known.nearest(ratio), seconds)

    async def submit(self, request: Request) -> Accepted:
        """Send the paid POST once. Raises Fault; `submission_unknown` where it may be paid.

        Only a request that never left is tried again in place. All of it ends with the submit
        time-out: a successor counts an unanswered submission as unknown soon after it. A process
        that was frozen finds time-out and answer at once when it wakes: the answer counts.
        """
        path = request.endpoint
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_NeverSentError),
            stop=stop_after_attempt(TRIES) | stop_after_delay(self._submit_seconds / 2),
            wait=wait_random_exponential(multiplier=0.1, max=1.0),
            reraise=True,
        )
        until = boot_time() + self._submit_seconds
        posting: asyncio.Task[httpx.Response] = asyncio.create_task(
            retrying(self._post_once, path, request, until)
        )
        try:
            for seconds in (self._submit_seconds, WAKING_SECONDS):
                await asyncio.wait({posting}, timeout=seconds)
            if not posting.done():
                posting.cancel()
                await asyncio.wait({posting})
        except asyncio.CancelledError:
            posting.cancel()
            raise
        try:
            response = posting.result()
        except asyncio.CancelledError as error:
            details = f"POST {path} was not answered within {self._submit_seconds:g} s"
            raise Fault(FaultName.SUBMISSION_UNKNOWN, details=details) from error
        except _NeverSentError as error:
            details = f"POST {path} was not sent: {error}"
            raise Fault(FaultName.PROVIDER_UNREACHABLE, details=details) from error
        return runway_answers.accepted(path, response)

    async def _post_once(self, path: str, request: Request, until: float) -> httpx.Response:
        """Send one POST. Raises `_NeverSentError` when it surely never left, else Fault."""
        if boot_time() > until:
            raise _NeverSentError("this process stood still until the time-out was over")
        if self._paid.is_closed():
            raise _NeverSentError("the connections are closed, because this worker stops")
        try:
            return await self._paid.post(path, body=body_of(request), cast_to=httpx.Response)
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

    async def poll(self, generation_id: UUID) -> Generation:
        """Read a generation. Raises Fault `poll_failed`, `poll_denied` or `generation_gone`.

        Asked once: whoever follows it asks again, and Runway wants five seconds in between.
        """
        path = _generation_path(generation_id)

        async def read() -> Generation:
            try:
                response = await self._free.get(path, cast_to=httpx.Response)
            except APIStatusError as error:
                if error.status_code == httpx.codes.NOT_FOUND:
                    said = runway_answers.said(error.response)
                    details = f"GET {path}: Runway knows no such generation; it says {said}"
                    raise Fault(FaultName.GENERATION_GONE, details=details) from error
                raise runway_answers.read_failed(f"GET {path}", error) from error
            except APIError as error:
                raise runway_answers.read_failed(f"GET {path}", error) from error
            return runway_answers.generation(generation_id, response)

        return await self._read(f"GET {path}", read, tries=1)

    async def cancel(self, generation_id: UUID) -> None:
        """Cancel what still runs. An absent generation is fine.

        The caller polls first: on a finished generation the same verb destroys its output.
        Raises Fault `poll_failed` or `poll_denied`.
        """
        path = _generation_path(generation_id)

        async def delete() -> None:
            try:
                await self._free.delete(path, cast_to=httpx.Response)
            except APIStatusError as error:
                if error.status_code != httpx.codes.NOT_FOUND:
                    raise runway_answers.read_failed(f"DELETE {path}", error) from error
            except APIError as error:
                raise runway_answers.read_failed(f"DELETE {path}", error) from error

        await self._read(f"DELETE {path}", delete)

    async def account(self) -> Account:
        """Read the account; free. Raises Fault `poll_failed` or `poll_denied`."""
        path = "/v1/organization"

        async def read() -> Account:
            try:
                response = await self._free.get(path, cast_to=httpx.Response)
            except APIError as error:
                raise runway_answers.read_failed(f"GET {path}", error) from error
            return runway_answers.account(response)

        return await self._read(f"GET {path}", read)

    async def _read(self, what: str, read: Callable[[], Awaitable[T]], *, tries: int = TRIES) -> T:
        """Repeat a free request in place, a few times and within the poll time-out."""

        async def timed() -> T:
            try:
                async with asyncio.timeout(self._poll_seconds):
                    return await read()
            except TimeoutError as error:
                details = f"{what} was not answered within {self._poll_seconds:g} s"
                raise Fault(FaultName.POLL_FAILED, details=details) from error

        retrying = AsyncRetrying(
            retry=retry_if_exception(_passes_soon),
            stop=stop_after_attempt(tries) | stop_after_delay(self._poll_seconds / 2),
            wait=wait_random_exponential(multiplier=0.1, max=1.0),
            reraise=True,
        )
        return await retrying(timed)


def _generation_path(generation_id: UUID) -> str:
    # The SDK puts ids into paths as they are: "../organization" would be another endpoint.
    return f"/v1/tasks/{UUID(str(generation_id))}"


def _passes_soon(error: BaseException) -> bool:
    """Whether a failed read is worth another try in place: never after a refusal or a 429."""
    if not isinstance(error, Fault) or error.name != "poll_failed":
        return False
    cause = error.__cause__
    if isinstance(cause, APIStatusError):
        return cause.status_code in _TRANSIENT_ANSWERS or cause.status_code >= 500  # noqa: PLR2004
    return True
