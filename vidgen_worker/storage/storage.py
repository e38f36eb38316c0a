"""Supabase Storage: buckets, uploads, signed URLs.

Uploads overwrite (the paths are deterministic) and stream from the file. `prove` finds out for
free whether a worker may store here at all. Never decides what follows, and never changes the
settings of a bucket that exists.
"""

import math
from collections.abc import Awaitable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Self
from urllib.parse import quote

from httpx import codes
from storage3.exceptions import StorageApiError
from storage3.types import CreateOrUpdateBucketOptions, FileOptions

from vidgen_worker.domain.clock import boot_time
from vidgen_worker.domain.faults import Fault, FaultName, First
from vidgen_worker.storage.answers import status_of
from vidgen_worker.storage.buckets import Bucket, Found, Misfit, misfits
from vidgen_worker.storage.connection import Connection
from vidgen_worker.storage.fetching import Fetched, fetch

CACHE_CONTROL = "31536000, immutable"
"""How browsers and the CDN keep an object, in seconds first: no place gets other bytes later."""
REMOVE_BATCH = 1000
"""Objects per removal: the most that Storage takes in one request."""

PROBE = "vidgen-worker/probe"
"""A worker asks for permission to upload this object, as a proof; it is never uploaded."""
GLOBAL_BYTES = 50_000_000
"""The size that every project accepts: no plan has a lower limit."""


class Storage:
    """One project's file store. Opens its connections at the first use.

    `timeout` is how long a request may stand still, `first_wait` the pause before the second try;
    it doubles.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        buckets: Sequence[Bucket],
        timeout: timedelta = timedelta(seconds=60),
        first_wait: timedelta = timedelta(milliseconds=200),
    ) -> None:
        self._connection = Connection(url, key, timeout=timeout, first_wait=first_wait)
        self._buckets: Mapping[str, Bucket] = {bucket.name: bucket for bucket in buckets}
        self._unfit: dict[str, list[Misfit]] = {}
        """The misfits of each bucket at its last check."""

    @classmethod
    async def open(
        cls,
        url: str,
        key: str,
        *,
        buckets: Sequence[Bucket],
        timeout: timedelta = timedelta(seconds=60),  # noqa: ASYNC109 - of each request
    ) -> Self:
        """Return a storage whose buckets exist. Raises Fault."""
        storage = cls(url, key, buckets=buckets, timeout=timeout)
        try:
            await storage.ensure_buckets()
        except BaseException:
            await storage.aclose()
            raise
        return storage

    async def aclose(self) -> None:
        """Close the connections."""
        await self._connection.aclose()

    async def look(self, bucket: Bucket) -> tuple[Found | None, list[Misfit]]:
        """Read a bucket and compare it with the settings; None when it is missing. Raises Fault."""
        try:
            found = await self._connection.persist(
                f"reading bucket {bucket.name}", lambda: self._describe(bucket.name)
            )
        except Fault as fault:
            if not fault.rule.absent:
                raise
            return None, []
        wrong = misfits(bucket, found)
        self._unfit[bucket.name] = [one for one in wrong if one.fatal]
        return found, wrong

    async def may_store(self, bucket: str) -> None:
        """Ask for permission to upload, which writes nothing that stays. Raises Fault.

        Storage writes the object's row under the key's own role and rolls it back: this finds a key
        that row level security refuses, and a database that is read-only.
        """

        async def ask() -> None:
            # storage3's own verb for it asks without upsert, which needs another right.
            path = f"object/upload/sign/{quote(bucket)}/{PROBE}"
            await self._connection.post(path, **{"x-upsert": "true"})

        await self._connection.persist(f"asking for permission to upload to {bucket}", ask)

    async def prove(self) -> list[Misfit | Fault]:
        """Prove, for free, that outputs can be stored here: the buckets exist, fit, and take them.

        Returns what does not fit and may be lived with, also a fault of a bucket that nothing paid
        needs. Raises Fault `storage_misconfigured`, `storage_denied`, `storage_unavailable` or
        `storage_refused`.
        """
        wrong: list[Misfit] = []
        vital = [bucket for bucket in self._buckets.values() if bucket.vital]
        for bucket in vital:
            wrong += await self._made_and_looked_at(bucket)
        _raise_if_unfit(wrong)
        for bucket in vital:
            await self.may_store(bucket.name)
        noted: list[Misfit | Fault] = [*wrong]
        for bucket in self._buckets.values():
            if not bucket.vital:
                try:
                    noted += await self._made_and_looked_at(bucket)
                except Fault as fault:
                    noted.append(fault)
        return noted

    async def _made_and_looked_at(self, bucket: Bucket) -> list[Misfit]:
        found, wrong = await self.look(bucket)
        if found is None:
            await self._create(bucket)
            _, wrong = await self.look(bucket)
        return wrong

    async def _describe(self, bucket: str) -> Found:
        answer = await self._connection.get(f"bucket/{quote(bucket)}")
        if not isinstance(answer, dict) or not isinstance(answer.get("public"), bool):
            raise TypeError("the answer does not describe a bucket")
        limit, types = answer.get("file_size_limit"), answer.get("allowed_mime_types")
        return Found(
            answer["public"],
            int(limit) if limit else None,  # 0 is none, to Storage too
            None if types is None else tuple(str(type_) for type_ in types),
        )

    async def ensure_buckets(self) -> None:
        """Create every missing bucket of the settings. Raises Fault."""
        for bucket in self._buckets.values():
            await self._create(bucket)

    async def _create(self, bucket: Bucket) -> None:
        await self.ensure_bucket(
            bucket.name, public=bucket.public, max_bytes=bucket.max_bytes,
            media_types=bucket.media_types + bucket.further_types,
        )  # fmt: skip

    async def ensure_bucket(
        self, name: str, *, public: bool, max_bytes: int, media_types: Sequence[str]
    ) -> bool:
        """Create a bucket unless it exists; return whether it was created here.

        An existing bucket keeps its settings, and a race with another creator is fine. Raises
        Fault.
        """
        client = await self._connection.client()

        async def create(options: CreateOrUpdateBucketOptions) -> None:
            await client.storage.create_bucket(name, options=options)

        try:
            await self._connection.persist(f"reading bucket {name}", lambda: self._describe(name))
        except Fault as fault:
            if not fault.rule.absent:
                raise
        else:
            return False
        options: CreateOrUpdateBucketOptions = {
            "public": public,
            "file_size_limit": max_bytes,
            "allowed_mime_types": list(media_types),
        }
        what = f"creating bucket {name}"
        try:
            return await self._connection.persist(what, lambda: _created(create(options)))
        except Fault as fault:
            if status_of(fault.__cause__) != codes.REQUEST_ENTITY_TOO_LARGE:
                raise
            # The project's own limit is lower than ours (50 MB on the free plan): it then holds.
            del options["file_size_limit"]
            return await self._connection.persist(what, lambda: _created(create(options)))

    async def put(
        self, bucket: str, path: str, file: Path, media_type: str, *, until: float = math.inf
    ) -> None:
        """Upload `file`, over whatever is there; a missing bucket is created once.

        No try begins after `until`, by `boot_time`. Raises Fault `storage_unavailable`,
        `storage_denied`, `storage_misconfigured`, `upload_refused`, or `storage_refused` where
        this one file is at fault.
        """
        what = f"uploading {bucket}/{path}"
        size = file.stat().st_size  # noqa: ASYNC240 - a few microseconds, less than a thread's hop
        if size == 0:
            raise Fault(
                FaultName.STORAGE_REFUSED, details=f"{what}: the file is empty, nothing was sent"
            )
        if self._unfit.get(bucket):
            # The bucket may be public, say. Its settings may have been corrected since.
            await self.look(self._buckets[bucket])
            _raise_if_unfit(self._unfit[bucket])
        client = await self._connection.client()
        options: FileOptions = {
            "content-type": media_type,  # the default is text/plain, whatever the bytes are
            "cache-control": CACHE_CONTROL,
            "upsert": "true",  # the string: storage3 puts it into a header as it is
        }

        async def upload() -> None:
            if boot_time() > until:
                details = f"{what}: not sent, because this process stood still for too long"
                raise Fault(FaultName.STORAGE_UNAVAILABLE, details=details)
            await client.storage.from_(bucket).upload(path, file, options)

        try:
            await self._connection.persist(what, upload)
        except Fault as fault:
            if fault.rule.first is First.LOOK_AT_BUCKET:
                raise await self._verdict(bucket, size, fault) from fault
            if fault.rule.first is not First.CREATE_BUCKET:
                raise
            await self._create_again(bucket, fault)
            try:
                await self._connection.persist(what, upload)
            except Fault as again:
                if again.rule.first is not First.LOOK_AT_BUCKET:
                    raise
                raise await self._verdict(bucket, size, again) from again

    async def _verdict(self, bucket: str, size: int, refused: Fault) -> Fault:
        """Decide what caused a refused upload: the bucket's settings, this file, or the store."""
        known = self._buckets.get(bucket)
        if known is None:
            return refused
        try:
            found, wrong = await self.look(known)
        except Fault as fault:
            details = f"{refused.details}; {fault.details}"
            return Fault(FaultName.UPLOAD_REFUSED, details=details)
        fatal = [one for one in wrong if one.fatal]
        if fatal:
            return _unfit(fatal)
        too_large = status_of(refused.__cause__) == codes.REQUEST_ENTITY_TOO_LARGE
        limit = GLOBAL_BYTES if found is None or found.max_bytes is None else found.max_bytes
        if too_large and size > min(limit, GLOBAL_BYTES):
            return refused
        return Fault(FaultName.UPLOAD_REFUSED, details=refused.details)

    async def _create_again(self, bucket: str, fault: Fault) -> None:
        known = self._buckets.get(bucket)
        if known is None:
            details = f"{fault.details}; {bucket} is not in the settings, so it is not created"
            raise Fault(FaultName.STORAGE_REFUSED, details=details) from fault
        await self._create(known)

    async def fetch(self, bucket: str, path: str, target: Path, *, most: int) -> Fetched:
        """Download an object of `most` bytes at most (see `fetching.fetch`)."""
        return await fetch(self._connection, bucket, path, target, most=most)

    def public_url(self, bucket: str, path: str) -> str:
        """Return the URL by which anybody may read an object of a public bucket."""
        return f"{self._connection.url}/storage/v1/object/public/{quote(bucket)}/{quote(path)}"

    async def sign(self, bucket: str, path: str, lifetime: timedelta) -> str:
        """Return an absolute URL that reads the object for `lifetime`, in whole seconds.

        Raises Fault; `storage_refused` where there is no such object.
        """
        client = await self._connection.client()
        seconds = max(1, round(lifetime.total_seconds()))

        async def sign() -> str:
            answer = await client.storage.from_(bucket).create_signed_url(path, seconds)
            url = answer["signedURL"]
            if url is None:
                raise ValueError("the answer holds no signed URL")
            return url

        return await self._connection.persist(f"signing {bucket}/{path}", sign)

    async def exists(self, bucket: str, path: str) -> bool:
        """Whether there is such an object. Raises Fault when that can't be found out."""
        client = await self._connection.client()

        async def exists() -> bool:
            return await client.storage.from_(bucket).exists(path)

        try:
            return await self._connection.persist(f"reading {bucket}/{path}", exists)
        except Fault as fault:
            if fault.rule.absent:
                return False
            raise

    async def remove(self, bucket: str, paths: Sequence[str]) -> None:
        """Remove objects; absent ones are fine. Raises Fault."""
        client = await self._connection.client()
        for start in range(0, len(paths), REMOVE_BATCH):
            batch = list(paths[start : start + REMOVE_BATCH])

            async def remove(batch: list[str] = batch) -> None:
                await client.storage.from_(bucket).remove(batch)

            what = f"removing {len(batch)} objects of {bucket}, from {batch[0]}"
            await self._connection.persist(what, remove)


def _unfit(wrong: Sequence[Misfit]) -> Fault:
    return Fault(FaultName.STORAGE_MISCONFIGURED, details="; ".join(str(one) for one in wrong))


def _raise_if_unfit(wrong: Sequence[Misfit]) -> None:
    fatal = [one for one in wrong if one.fatal]
    if fatal:
        raise _unfit(fatal)


async def _created(creating: Awaitable[None]) -> bool:
    """Await the creation of a bucket; False if somebody else was faster."""
    try:
        await creating
    except StorageApiError as error:
        if error.code == "Duplicate":
            return False
        raise
    return True
