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
from runwayml import APIError, APIStatusError, AsyncRunwayML
from tenacity import (
    AsyncRetrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

from vidgen_worker.domain.faults import Fault, FaultName
from vidgen_worker.domain.keys import fingerprint
from vidgen_worker.domain.resolution import image_models, video_models
from vidgen_worker.providers.free_client import FreeClient
from vidgen_worker.providers.http_client import PaidClient
from vidgen_worker.providers.protocol import Account, Generation, Request
from vidgen_worker.providers.runway import answers as runway_answers
from vidgen_worker.providers.runway.inputs import (
    check_asset_url,
    check_duration,
    check_prompt,
    image_request,
    video_request,
)
from vidgen_worker.providers.runway.submitter import Submitter, connect_seconds

__all__ = [
    "Runway",
    "check_asset_url",
    "check_duration",
    "check_prompt",
    "image_request",
    "video_request",
]

TRIES = 3
"""How often a read is tried in place."""
KEEPALIVE_SECONDS = 30.0
"""How long a connection for reads is kept: several polls of one generation."""
IDLE_CONNECTIONS = 20
"""Idle connections that httpx's own transport keeps; few, because it looks at each of them."""

# Statuses of a read that may differ a moment later.
_TRANSIENT_ANSWERS = (408, 409, 425)

T = TypeVar("T")


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
        self._poll_seconds = poll_timeout.total_seconds()

        # Two pools, so that slow submissions can't delay polls, and two kinds of client: FreeClient
        # tells less about a lost connection than a paid POST must know.
        connect = connect_seconds(submit_timeout)
        paid = PaidClient(connect=connect, max_connections=max_connections)
        self._submitter = Submitter(
            paid, api_secret=api_secret, base_url=base_url, timeout=submit_timeout
        )
        self.submit = self._submitter.submit
        """The protocol's paid verb: nothing stands between the pipeline and its one module."""
        connect = connect_seconds(poll_timeout)
        free = FreeClient(
            methods=("GET", "DELETE"),
            timeout=httpx.Timeout(self._poll_seconds, connect=connect, pool=connect),
            limits=httpx.Limits(
                max_connections=max_connections,
                max_keepalive_connections=IDLE_CONNECTIONS,
                keepalive_expiry=KEEPALIVE_SECONDS,
            ),
        )
        self._free = AsyncRunwayML(
            api_key=api_secret, base_url=base_url, max_retries=0, http_client=free
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._submitter.aclose()
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
