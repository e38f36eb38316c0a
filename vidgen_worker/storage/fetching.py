"""Downloads of our own objects, with the project's key: streamed into a file, within a bound."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import httpx
from httpx import codes
from storage3.exceptions import StorageApiError

from vidgen_worker.storage.answers import checked, status_of
from vidgen_worker.storage.connection import Connection

LONGEST = timedelta(minutes=10)
"""How long one try of a download may take."""


class AbsentError(Exception):
    """There is no such object."""


class TooLargeError(Exception):
    """An object has more bytes than were asked for."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A downloaded object: its bytes, and their hex sha256."""

    size: int
    sha256: str


async def fetch(
    connection: Connection, bucket: str, path: str, target: Path, *, most: int
) -> Fetched:
    """Download an object of `most` bytes at most into `target`, over what is there.

    Raises Fault, AbsentError, TooLargeError, and OSError for what the file meets.
    """

    async def attempt() -> Fetched:
        async with (
            asyncio.timeout(LONGEST.total_seconds()),
            _answer(connection, bucket, path) as (response),
        ):
            return await _written(response, target, most)

    async def timed() -> Fetched:
        try:
            return await attempt()
        except TimeoutError as error:
            raise httpx.ReadTimeout(f"not finished within {LONGEST}") from error

    return await connection.persist(f"downloading {bucket}/{path}", timed)


@asynccontextmanager
async def _answer(connection: Connection, bucket: str, path: str) -> AsyncIterator[httpx.Response]:
    place = f"object/authenticated/{quote(bucket)}/{quote(path)}"
    async with connection.stream(place) as response:
        if response.status_code == codes.OK:
            yield response
            return
        await response.aread()
        try:
            checked(response)
        except StorageApiError as error:
            # A gateway, a paused project and a missing bucket say 404, too: no verdict on the file.
            said = str(error.message)
            of_file = error.code != "InternalError" and not said.startswith(("Route ", "Bucket "))
            if status_of(error) == codes.NOT_FOUND and of_file:
                raise AbsentError(f"{bucket}/{path}") from error
            raise
        raise ValueError(f"answered {response.status_code} in place of a file")


async def _written(response: httpx.Response, target: Path, most: int) -> Fetched:
    digest, size = hashlib.sha256(), 0
    # As in media.downloads: pieces of some 100 KB, written and hashed in less than a millisecond.
    with target.open("wb", buffering=0) as file:
        async for piece in response.aiter_bytes():
            size += len(piece)
            if size > most:
                raise TooLargeError(f"more than {most} bytes")
            digest.update(piece)
            view = memoryview(piece)
            while view:
                view = view[file.write(view) :]
    return Fetched(size, digest.hexdigest())
