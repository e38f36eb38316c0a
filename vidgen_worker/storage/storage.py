"""Supabase Storage: buckets, uploads, signed URLs.

Uploads overwrite (the paths are deterministic) and stream from the file. What passes by itself is
tried again in place; every other failure is a `Fault` from `classify`, the one place that knows how
Storage and its gateway answer. `prove` finds out for free whether a worker may store here at all.
Never decides what follows, and never changes the settings of a bucket that exists.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from httpx import codes
from storage3.exceptions import StorageApiError
from storage3.types import CreateOrUpdateBucketOptions, FileOptions
from storage3.utils import StorageException
from supabase import AsyncClient, AsyncClientOptions, AsyncSupabaseException, acreate_client
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential_jitter,
)

from vidgen_worker.domain.clock import boot_time
from vidgen_worker.domain.faults import Fault, FaultName, First
from vidgen_worker.providers.free_client import FreeClient

TRIES = 4
"""How often a request is sent before `storage_unavailable` leaves this module."""
LONGEST_WAIT = timedelta(seconds=5)
"""A Retry-After beyond this is the pipeline's to wait for: it does so without a slot."""
LONGEST_RETRY_AFTER = timedelta(hours=1)
"""A Retry-After beyond this is not believed."""
CONNECT_SECONDS = 10.0
"""How long a connection, or a place in the pool, may take to come about."""
CONNECTIONS = 50
"""The most connections at once; uploads beyond it wait for a place."""
IDLE_CONNECTIONS = 10
"""Kept open between requests where httpx's own transport is used, which looks at each of them."""
CACHE_CONTROL = "3600"
"""Seconds that browsers and the CDN keep an object: a generation's output never changes."""
REMOVE_BATCH = 1000
"""Objects per removal: the most that Storage takes in one request."""

PROBE = "vidgen-worker/probe"
"""The object that a worker asks leave to upload, to prove that it may; it is never uploaded."""
GLOBAL_BYTES = 50_000_000
"""What every project takes: no plan's own limit is lower."""

T = TypeVar("T")

# What supabase-py lets through: its own errors, httpx's, and those of reading a broken answer.
_FOREIGN = (
    StorageException,
    AsyncSupabaseException,
    httpx.HTTPError,
    httpx.InvalidURL,
    ValueError,
    KeyError,
    TypeError,
)
# Statuses below 500 that pass by themselves; 409 is two uploads of one object that met.
_PASSING = (
    codes.REQUEST_TIMEOUT,
    codes.CONFLICT,
    codes.LOCKED,
    codes.TOO_EARLY,
    codes.TOO_MANY_REQUESTS,
)


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket as it is created when missing. `max_bytes` limits each object."""

    name: str
    public: bool
    max_bytes: int
    media_types: tuple[str, ...]
    least_bytes: int = 0
    """An existing bucket that takes less would refuse outputs that are nothing out of the way."""


@dataclass(frozen=True, slots=True)
class Found:
    """A bucket as it is. None: no limit of its own, any media type."""

    public: bool
    max_bytes: int | None
    media_types: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Misfit:
    """A setting of a bucket that does not fit; a `fatal` one loses outputs, or shows them."""

    bucket: str
    setting: str
    value: str
    wanted: str
    fatal: bool = True

    @property
    def remedy(self) -> str:
        """What an operator does about it."""
        return f"Dashboard → Storage → {self.bucket} → Edit bucket: {self.wanted}"

    def __str__(self) -> str:
        """What is wrong, and what to do."""
        return f"bucket {self.bucket}: {self.setting} is {self.value}. {self.remedy}"


def misfits(wanted: Bucket, found: Found) -> list[Misfit]:
    """Compare a bucket with what the settings ask of it."""
    wrong = []
    if found.public != wanted.public:
        is_, should = ("public", "private") if found.public else ("private", "public")
        wrong.append(Misfit(wanted.name, "visibility", is_, f"make it {should}"))
    limit, least = found.max_bytes, min(wanted.least_bytes or wanted.max_bytes, wanted.max_bytes)
    if limit is not None and limit < wanted.max_bytes:
        said = f"raise file_size_limit to {wanted.max_bytes} bytes"
        fatal = limit < least
        wrong.append(Misfit(wanted.name, "file_size_limit", f"{limit} bytes", said, fatal=fatal))
    refused = [type_ for type_ in wanted.media_types if not _takes(found.media_types, type_)]
    if refused:
        value = ", ".join(found.media_types or ())
        said = f"add {', '.join(refused)} to allowed_mime_types, or allow any"
        wrong.append(Misfit(wanted.name, "allowed_mime_types", value, said))
    return wrong


def _takes(patterns: tuple[str, ...] | None, media_type: str) -> bool:
    """Whether allowed media types include this one; as Storage does it: image/* is a wildcard."""
    return not patterns or bool({media_type, f"{media_type.partition('/')[0]}/*"} & {*patterns})


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
        self._url = url.rstrip("/")
        self._key = key
        self._headers = {"apikey": key, "authorization": f"Bearer {key}"}
        self._buckets: Mapping[str, Bucket] = {bucket.name: bucket for bucket in buckets}
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
        self._unfit: dict[str, list[Misfit]] = {}
        """What did not fit, by bucket, when a bucket was looked at last."""
        self._client: AsyncClient | None = None
        self._opening = asyncio.Lock()

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
        await self._http.aclose()

    async def look(self, bucket: Bucket) -> tuple[Found | None, list[Misfit]]:
        """Read a bucket and compare it with the settings; None when it is missing. Raises Fault."""
        try:
            found = await self._persist(
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
        """Ask leave to upload, which writes nothing that stays. Raises Fault.

        Storage tries the object's row under the key's own role, and takes it back: a key that row
        level security holds back, and a database that is read-only, are refused here.
        """

        async def ask() -> None:
            # storage3's own verb for it asks without upsert, which needs another right.
            address = f"{self._url}/storage/v1/object/upload/sign/{quote(bucket)}/{PROBE}"
            headers = {**self._headers, "x-upsert": "true"}
            _checked(await self._http.post(address, json={}, headers=headers))

        await self._persist(f"asking leave to upload to {bucket}", ask)

    async def prove(self) -> list[Misfit]:
        """Prove, for free, that outputs can be stored here: the buckets exist, fit, and take them.

        Returns what does not fit and may be lived with. Raises Fault `storage_misconfigured`,
        `storage_denied`, `storage_unavailable` or `storage_refused`.
        """
        noted: list[Misfit] = []
        for bucket in self._buckets.values():
            found, wrong = await self.look(bucket)
            if found is None:
                await self._create(bucket)
                _, wrong = await self.look(bucket)
            noted += wrong
        _raise_if_unfit(noted)
        for bucket in self._buckets.values():
            await self.may_store(bucket.name)
        return noted

    async def _describe(self, bucket: str) -> Found:
        address = f"{self._url}/storage/v1/bucket/{quote(bucket)}"
        answer = _checked(await self._http.get(address, headers=self._headers))
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
            media_types=bucket.media_types,
        )  # fmt: skip

    async def ensure_bucket(
        self, name: str, *, public: bool, max_bytes: int, media_types: Sequence[str]
    ) -> bool:
        """Create a bucket unless it exists; return whether it was created here.

        An existing bucket keeps its settings, and a race with another creator is fine. Raises
        Fault.
        """
        client = await self._open()

        async def create(options: CreateOrUpdateBucketOptions) -> None:
            await client.storage.create_bucket(name, options=options)

        try:
            await self._persist(f"reading bucket {name}", lambda: self._describe(name))
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
            return await self._persist(what, lambda: _created(create(options)))
        except Fault as fault:
            if _status(fault.__cause__) != codes.REQUEST_ENTITY_TOO_LARGE:
                raise
            # The project's own limit is lower than ours (50 MB on the free plan): it then holds.
            del options["file_size_limit"]
            return await self._persist(what, lambda: _created(create(options)))

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
            # Not into a bucket that shows it to everybody, say; it may be put right by now.
            await self.look(self._buckets[bucket])
            _raise_if_unfit(self._unfit[bucket])
        client = await self._open()
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
            await self._persist(what, upload)
        except Fault as fault:
            if fault.rule.first is First.LOOK_AT_BUCKET:
                raise await self._verdict(bucket, size, fault) from fault
            if fault.rule.first is not First.CREATE_BUCKET:
                raise
            await self._create_again(bucket, fault)
            try:
                await self._persist(what, upload)
            except Fault as again:
                if again.rule.first is not First.LOOK_AT_BUCKET:
                    raise
                raise await self._verdict(bucket, size, again) from again

    async def _verdict(self, bucket: str, size: int, refused: Fault) -> Fault:
        """Whose fault a refused upload is: the bucket's settings', this file's, or the store's."""
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
        too_large = _status(refused.__cause__) == codes.REQUEST_ENTITY_TOO_LARGE
        limit = GLOBAL_BYTES if found is None or found.max_bytes is None else found.max_bytes
        if too_large and size > min(limit, GLOBAL_BYTES):
            return refused
        return Fault(FaultName.UPLOAD_REFUSED, details=refused.details)

    async def _create_again(self, bucket: str, fault: Fault) -> None:
        known = self._buckets.get(bucket)
        if known is None:
            details = f"{fault.details}; {bucket} is not a bucket of the settings, so it stays so"
            raise Fault(FaultName.STORAGE_REFUSED, details=details) from fault
        await self._create(known)

    def public_url(self, bucket: str, path: str) -> str:
        """Return the URL by which anybody may read an object of a public bucket."""
        return f"{self._url}/storage/v1/object/public/{quote(bucket)}/{quote(path)}"

    async def sign(self, bucket: str, path: str, lifetime: timedelta) -> str:
        """Return an absolute URL that reads the object for `lifetime`, in whole seconds.

        Raises Fault; `storage_refused` where there is no such object.
        """
        client = await self._open()
        seconds = max(1, round(lifetime.total_seconds()))

        async def sign() -> str:
            answer = await client.storage.from_(bucket).create_signed_url(path, seconds)
            url = answer["signedURL"]
            if url is None:
                raise ValueError("the answer holds no signed URL")
            return url

        return await self._persist(f"signing {bucket}/{path}", sign)

    async def exists(self, bucket: str, path: str) -> bool:
        """Whether there is such an object. Raises Fault when that can't be found out."""
        client = await self._open()

        async def exists() -> bool:
            return await client.storage.from_(bucket).exists(path)

        try:
            return await self._persist(f"reading {bucket}/{path}", exists)
        except Fault as fault:
            if fault.rule.absent:
                return False
            raise

    async def remove(self, bucket: str, paths: Sequence[str]) -> None:
        """Remove objects; absent ones are fine. Raises Fault."""
        client = await self._open()
        for start in range(0, len(paths), REMOVE_BATCH):
            batch = list(paths[start : start + REMOVE_BATCH])

            async def remove(batch: list[str] = batch) -> None:
                await client.storage.from_(bucket).remove(batch)

            what = f"removing {len(batch)} objects of {bucket}, from {batch[0]}"
            await self._persist(what, remove)

    async def _open(self) -> AsyncClient:
        async with self._opening:
            if self._client is None:
                options = AsyncClientOptions(
                    httpx_client=self._http, auto_refresh_token=False, persist_session=False
                )
                try:
                    self._client = await acreate_client(self._url, self._key, options)
                except _FOREIGN as error:
                    raise classify(error, f"opening {self._url}") from error
            return self._client

    async def _persist(self, what: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try `attempt` up to `TRIES` times. Raises Fault."""

        async def classified() -> T:
            try:
                return await attempt()
            except _FOREIGN as error:
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


def _unfit(wrong: Sequence[Misfit]) -> Fault:
    return Fault(FaultName.STORAGE_MISCONFIGURED, details="; ".join(str(one) for one in wrong))


def _raise_if_unfit(wrong: Sequence[Misfit]) -> None:
    fatal = [one for one in wrong if one.fatal]
    if fatal:
        raise _unfit(fatal)


def _checked(response: httpx.Response) -> Any:  # noqa: ANN401 - JSON
    """Return what Storage answered. Raises as storage3 does, for `classify`."""
    try:
        response.raise_for_status()
    except httpx.HTTPStatusError as error:
        try:
            body = response.json()
            refusal = StorageApiError(body["message"], body["error"], body["statusCode"])
        except (KeyError, TypeError, ValueError) as odd:
            message = f"Unable to parse error message: {response.text[:500]}"
            raise StorageApiError(message, "InternalError", response.status_code) from odd
        raise refusal from error
    return response.json()


async def _created(creating: Awaitable[None]) -> bool:
    """Await the creation of a bucket; False if somebody else was faster."""
    try:
        await creating
    except StorageApiError as error:
        if error.code == "Duplicate":
            return False
        raise
    return True


def classify(error: BaseException, what: str) -> Fault:
    """Turn whatever supabase-py raised into a fault; `what` says what was being done.

    Storage wraps its status in a 400 and in a string; a gateway before it answers for itself, with
    or without JSON; transport errors come raw from httpx (facts observed with storage3 2.34).
    """
    return Fault(
        _fault_name(error, _status(error)),
        details=f"{what}: {type(error).__name__}: {error}",
        retry_after=_retry_after(error),
    )


def _fault_name(error: BaseException, status: int | None) -> FaultName:  # noqa: PLR0911 - a table
    match error, status:
        case AsyncSupabaseException() | httpx.InvalidURL() | httpx.UnsupportedProtocol(), _:
            return FaultName.STORAGE_DENIED  # an address or a key that can't be right
        case _, codes.UNAUTHORIZED | codes.FORBIDDEN:
            return FaultName.STORAGE_DENIED
        case StorageApiError(message="Bucket not found"), _:
            return FaultName.BUCKET_MISSING
        case StorageApiError(message=str(message)), codes.NOT_FOUND if message.startswith("Route "):
            return FaultName.STORAGE_DENIED  # no Storage at this address, whatever else is
        case StorageApiError(code=code), int(status):
            if status in _PASSING or status >= codes.INTERNAL_SERVER_ERROR:
                return FaultName.STORAGE_UNAVAILABLE
            # Not Storage's own words (a paused project, a proxy's page) are no verdict on the
            # file, unless they are about its size.
            foreign = code == "InternalError" and status != codes.REQUEST_ENTITY_TOO_LARGE
            return FaultName.STORAGE_UNAVAILABLE if foreign else FaultName.STORAGE_REFUSED
        case _:
            return FaultName.STORAGE_UNAVAILABLE


def _status(error: BaseException | None) -> int | None:
    """Storage's own status: a string in its JSON, a number where a gateway spoke; None if none."""
    if not isinstance(error, StorageApiError):
        return None
    try:
        return int(str(error.status))
    except ValueError:
        return None


def _retry_after(error: BaseException) -> timedelta | None:
    """Read Retry-After off the answer, which lies deeper where its body could not be parsed."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, httpx.HTTPStatusError):
        cause = cause.__cause__ or cause.__context__
    header = cause.response.headers.get("retry-after", "") if cause else ""
    # Only seconds: a date would depend on two clocks.
    wait = timedelta(seconds=int(header[:9])) if header.isdecimal() else timedelta()
    return wait if timedelta() < wait <= LONGEST_RETRY_AFTER else None


def _passes_soon(error: BaseException) -> bool:
    return (
        isinstance(error, Fault)
        and error.rule.first is First.SEND_AGAIN
        and (error.retry_after or timedelta()) <= LONGEST_WAIT
    )
