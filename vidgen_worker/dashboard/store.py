"""Pictures and clips on the pages: an address at the file store that is good for an hour.

The page asks this server, which sends the browser on to the store: the key that signs never leaves
this process. Without the two settings there are no pictures, and the pages say so.
"""

import asyncio
import time
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from vidgen_worker.client.database import ClientSettings

if TYPE_CHECKING:
    from vidgen_worker.storage.storage import Storage

SIGNED_FOR = timedelta(hours=1)
KEPT_SECONDS = 1800.0
"""Half of that: after a page is opened, a clip can be started for half an hour."""
MOST_KEPT = 2000
TIMEOUT = timedelta(seconds=10)


class Store:
    """The file store as the pages see it. Used by one event loop."""

    def __init__(self, settings: ClientSettings) -> None:
        key = settings.supabase_service_role_key
        self._url = settings.supabase_url
        self._key = key.get_secret_value() if key else None
        self.buckets = {
            "still": settings.storage_bucket_images, "clip": settings.storage_bucket_videos,
        }  # fmt: skip
        self._storage: Storage | None = None
        self._opening = asyncio.Lock()
        self._signed: dict[tuple[str, str], tuple[float, str]] = {}

    @property
    def origin(self) -> str | None:
        """The origin of its files for a Content-Security-Policy; None: it is not set."""
        if not self._url or not self._key:
            return None
        parts = urlsplit(self._url)
        return f"{parts.scheme}://{parts.netloc}"

    async def sign(self, bucket: str, path: str) -> str | None:
        """Return an address for a file; None without the settings. Raises Fault."""
        if self._url is None or self._key is None:
            return None
        place = (bucket, path)
        signed_at, address = self._signed.get(place, (0.0, ""))
        if address and time.monotonic() - signed_at < KEPT_SECONDS:
            return address
        storage = await self._opened(self._url, self._key)
        address = await storage.sign(*place, SIGNED_FOR)
        if len(self._signed) >= MOST_KEPT:
            self._signed.clear()
        self._signed[place] = (time.monotonic(), address)
        return address

    async def _opened(self, url: str, key: str) -> "Storage":
        async with self._opening:
            if self._storage is None:
                # Half a second of imports that a dashboard without pictures need not wait for.
                from vidgen_worker.storage.storage import Storage  # noqa: PLC0415

                self._storage = Storage(url, key, buckets=(), timeout=TIMEOUT)
            return self._storage

    async def aclose(self) -> None:
        """Close the connections."""
        if self._storage is not None:
            await self._storage.aclose()
            self._storage = None
