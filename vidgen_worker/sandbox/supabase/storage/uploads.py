"""Uploads: as a form (storage3), as a bare body (curl, a stream), and by a signed address.

A body of megabytes that is refused is not read to its end: as with the real server, its client sees
the connection break in place of the answer.
"""

import base64
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jwt
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vidgen_worker.sandbox.serving import drop_connection
from vidgen_worker.sandbox.supabase.callers import Caller
from vidgen_worker.sandbox.supabase.storage import refusals
from vidgen_worker.sandbox.supabase.storage.bodies import bucket_in, name_in
from vidgen_worker.sandbox.supabase.storage.connections import SUPERUSER
from vidgen_worker.sandbox.supabase.storage.downloads import claims_of_url
from vidgen_worker.sandbox.supabase.storage.objects import Incoming, ObjectStore
from vidgen_worker.sandbox.supabase.storage.refusals import StorageRefusalError
from vidgen_worker.sandbox.supabase.texts import json_of

MEBIBYTE = 1024 * 1024
READ_TO_THE_END_BYTES = 4 * MEBIBYTE
SIGNED_UPLOAD_SECONDS = 2 * 3600


class Uploads:
    """The handlers."""

    def __init__(self, store: ObjectStore, url_secret: str) -> None:
        self._store = store
        self._url_secret = url_secret

    async def upload(self, request: Request, caller: Caller) -> Response:
        """Take an object."""
        upsert = request.method == "PUT" or request.headers.get("x-upsert") == "true"
        bucket, name = bucket_in(request), name_in(request)
        made = await self._take(request, caller, upsert=upsert)
        return JSONResponse({"Key": f"{bucket}/{name}", "Id": made})

    async def sign(self, request: Request, caller: Caller) -> Response:
        """Give permission to upload, once the caller's role could write the row (rolled back)."""
        bucket, name = bucket_in(request), name_in(request)
        upsert = request.headers.get("x-upsert") == "true"
        await self._store.check_permission(caller, bucket, name, upsert=upsert)
        claims = {
            "owner": caller.user_id,
            "url": f"{bucket}/{name}",
            "scope": "upload",
            "upsert": upsert,
            "exp": int(time.time()) + SIGNED_UPLOAD_SECONDS,
        }
        token = jwt.encode(claims, self._url_secret, "HS256")
        url = f"/object/upload/sign/{quote(bucket)}/{quote(name)}?token={token}"
        return JSONResponse({"url": url, "token": token})

    async def upload_signed(self, request: Request, _caller: Caller) -> Response:
        """Take an object from whoever has the permission."""
        claims = claims_of_url(request, self._url_secret, "upload")
        owner = claims.get("owner")
        caller = SUPERUSER if owner is None else Caller(SUPERUSER.role, {"sub": owner})
        await self._take(request, caller, upsert=bool(claims.get("upsert")))
        return JSONResponse({"Key": f"{bucket_in(request)}/{name_in(request)}"})

    async def _take(self, request: Request, caller: Caller, *, upsert: bool) -> str:
        temporary = self._store.incoming / secrets.token_hex(16)
        try:
            incoming = await self._received(request, caller, temporary, upsert=upsert)
            return await self._store.put(caller, bucket_in(request), name_in(request), incoming)
        except StorageRefusalError:
            if int(request.headers.get("content-length", 0)) >= READ_TO_THE_END_BYTES:
                await drop_connection(request)
            raise
        finally:
            temporary.unlink(missing_ok=True)

    async def _received(
        self, request: Request, caller: Caller, file: Path, *, upsert: bool
    ) -> Incoming:
        bucket, name = bucket_in(request), name_in(request)
        media_type = request.headers.get("content-type", "application/octet-stream")
        if media_type.startswith("multipart/form-data"):
            return await self._received_form(request, caller, file, upsert=upsert)
        limit = await self._store.check_upload(caller, bucket, name, media_type, upsert=upsert)
        await _write(request.stream(), file, limit)
        metadata = _metadata(request.headers.get("x-metadata", ""))
        cache_control = request.headers.get("cache-control", "no-cache")
        return Incoming(file, media_type, cache_control, metadata)

    async def _received_form(
        self, request: Request, caller: Caller, file: Path, *, upsert: bool
    ) -> Incoming:
        bucket, name = bucket_in(request), name_in(request)
        async with _form_of(request) as form:
            part = next((value for value in form.values() if isinstance(value, UploadFile)), None)
            if part is None:
                raise refusals.NO_CONTENT
            # A form's reader takes the parameters off the type and makes it small.
            given = part.content_type or "application/octet-stream"
            media_type = given.partition(";")[0].strip().lower()
            limit = await self._store.check_upload(caller, bucket, name, media_type, upsert=upsert)

            async def chunks() -> AsyncIterator[bytes]:
                while chunk := await part.read(MEBIBYTE):
                    yield chunk

            await _write(chunks(), file, limit)
            seconds, metadata = form.get("cacheControl"), form.get("metadata")
            user_metadata = _object(metadata.encode()) if isinstance(metadata, str) else None
        cache_control = f"max-age={seconds}" if seconds else "no-cache"
        return Incoming(file, media_type, cache_control, user_metadata)


@asynccontextmanager
async def _form_of(request: Request) -> AsyncIterator[FormData]:
    """Read a form. Raises `StorageRefusalError` where it is none."""
    try:
        form = await request.form()
    except HTTPException as error:
        raise refusals.NO_CONTENT from error
    try:
        yield form
    finally:
        await form.close()


def _metadata(header: str) -> dict[str, Any] | None:
    """Return what a client says of its object in `x-metadata`, JSON in base64."""
    try:
        return _object(base64.b64decode(header, validate=True))
    except ValueError:
        return None


def _object(content: bytes) -> dict[str, Any] | None:
    """Return a JSON object; the real server takes it or leaves it, too."""
    try:
        found = json_of(content)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


async def _write(chunks: AsyncIterator[bytes], file: Path, limit: int) -> None:
    """Write a stream to a file. Raises `StorageRefusalError` when it grows beyond the limit."""
    size = 0
    with file.open("wb") as out:
        async for chunk in chunks:
            size += len(chunk)
            if size > limit:
                raise refusals.TOO_LARGE
            out.write(chunk)
