"""Runway: submit, poll, cancel, and the account.

A submit is one POST through the official SDK, however it ends; all else is free and goes without
it. Every foreign exception and every answer becomes a value or a `Fault`. What Runway's API calls a
task is a generation. Never used: `wait_for_task_output`, and the SDK's own retries, which would
pay again for an answer that got lost (it sends no idempotency key).
"""

from datetime import timedelta
from uuid import UUID

import httpx

from vidgen_worker.domain.keys import fingerprint
from vidgen_worker.domain.resolution import image_models, video_models
from vidgen_worker.providers.free_client import FreeClient
from vidgen_worker.providers.http_client import PaidClient
from vidgen_worker.providers.protocol import Account, Generation, Request
from vidgen_worker.providers.runway.inputs import (
    check_asset_url,
    check_duration,
    check_prompt,
    image_request,
    video_request,
)
from vidgen_worker.providers.runway.reader import Reader, check_key
from vidgen_worker.providers.runway.submitter import Submitter, connect_seconds

__all__ = [
    "Runway",
    "check_asset_url",
    "check_duration",
    "check_prompt",
    "image_request",
    "video_request",
]

KEEPALIVE_SECONDS = 30.0
"""How long a connection for reads is kept: several polls of one generation."""
IDLE_CONNECTIONS = 20
"""Idle connections that httpx's own transport keeps; few, because it looks at each of them."""


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
        check_key(api_secret)
        self.key_fingerprint = fingerprint(api_secret)
        self._allow_loopback_assets = allow_loopback_assets

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
            timeout=httpx.Timeout(poll_timeout.total_seconds(), connect=connect, pool=connect),
            limits=httpx.Limits(
                max_connections=max_connections,
                max_keepalive_connections=IDLE_CONNECTIONS,
                keepalive_expiry=KEEPALIVE_SECONDS,
            ),
        )
        self._reader = Reader(free, api_secret=api_secret, base_url=base_url, timeout=poll_timeout)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._submitter.aclose()
        await self._reader.aclose()

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
        return await self._reader.poll(generation_id)

    async def cancel(self, generation_id: UUID) -> None:
        """Cancel what still runs. An absent generation is fine.

        The caller polls first: on a finished generation the same verb destroys its output.
        Raises Fault `poll_failed` or `poll_denied`.
        """
        await self._reader.cancel(generation_id)

    async def account(self) -> Account:
        """Read the account; free. Raises Fault `poll_failed` or `poll_denied`."""
        return await self._reader.account()
