"""Downloads, and the addresses that are good for one: public, signed, or with a token.

It never decides who may see an object: the database does, under the caller's role.
"""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any
from urllib.parse import quote

import jwt
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from vidgen_worker.sandbox.supabase.callers import Caller
from vidgen_worker.sandbox.supabase.storage import refusals
from vidgen_worker.sandbox.supabase.storage.bodies import (
    body_of,
    bucket_in,
    expiry_in,
    name_in,
    names_in,
)
from vidgen_worker.sandbox.supabase.storage.buckets import BucketStore
from vidgen_worker.sandbox.supabase.storage.connections import SUPERUSER
from vidgen_worker.sandbox.supabase.storage.objects import ObjectStore
from vidgen_worker.sandbox.supabase.storage.refusals import StorageRefusalError

NOBODY = Caller("anon", {})
"""The caller at an address that needs no token, where no valid one is sent."""
NOT_STORED = StorageRefusalError(404, "Not found", "The resource was not found", code="NoSuchKey")
UNQUOTED = "!'()*-._~"
"""The characters that JavaScript's encodeURIComponent does not encode."""


class Downloads:
    """The handlers."""

    def __init__(self, store: ObjectStore, buckets: BucketStore, url_secret: str) -> None:
        self._store = store
        self._buckets = buckets
        self._url_secret = url_secret

    async def download(self, request: Request, caller: Caller) -> Response:
        """Answer with an object that the caller may see; one of a public bucket anybody may."""
        return self._file(request, await self.visible(request, caller))

    async def visible(self, request: Request, caller: Caller) -> dict[str, Any]:
        """Return the row of an object that the caller may see. Raises `StorageRefusalError`."""
        bucket = await self._buckets.find(SUPERUSER, bucket_in(request))
        if caller is NOBODY and not bucket["public"]:
            raise refusals.NO_BUCKET
        seer = SUPERUSER if bucket["public"] else caller
        return await self._store.find(seer, bucket_in(request), name_in(request))

    async def public(self, request: Request, _caller: Caller) -> Response:
        """Answer with an object of a public bucket."""
        return self._file(request, await self.open_to_all(request))

    async def open_to_all(self, request: Request) -> dict[str, Any]:
        """Return the row of an object of a public bucket. Raises `StorageRefusalError`."""
        try:
            bucket = await self._buckets.find(SUPERUSER, bucket_in(request))
        except StorageRefusalError as error:
            if error is refusals.NO_BUCKET:
                raise refusals.NO_OBJECT from error
            raise
        if not bucket["public"]:
            raise refusals.NO_BUCKET
        return await self._store.find(SUPERUSER, bucket_in(request), name_in(request))

    async def signed(self, request: Request, _caller: Caller) -> Response:
        """Answer with the object that an address was signed for."""
        claims = claims_of_url(request, self._url_secret, "download")
        row = await self._store.find(SUPERUSER, bucket_in(request), name_in(request))
        return self._file(request, row, datetime.fromtimestamp(claims["exp"], UTC))

    async def sign(self, request: Request, caller: Caller) -> Response:
        """Sign the address of an object that the caller may see."""
        bucket, name = bucket_in(request), name_in(request)
        seconds = expiry_in(await body_of(request, "expiresIn"))
        await self._store.find(caller, bucket, name)
        return JSONResponse({"signedURL": self._signed_url(bucket, name, seconds)})

    async def sign_many(self, request: Request, caller: Caller) -> Response:
        """Sign the addresses of those objects that the caller may see."""
        bucket, body = bucket_in(request), await body_of(request, "expiresIn", "paths")
        seconds, names = expiry_in(body), names_in(body, "paths")
        visible = await self._store.visible(caller, bucket, names)
        refused = "Either the object does not exist or you do not have access to it"
        answers = [
            {"path": name, "error": None, "signedURL": self._signed_url(bucket, name, seconds)}
            if name in visible
            else {"path": name, "error": refused, "signedURL": None}
            for name in names
        ]
        return JSONResponse(answers)

    def _signed_url(self, bucket: str, name: str, seconds: int) -> str:
        now = int(time.time())
        claims = {"url": f"{bucket}/{name}", "scope": "download", "iat": now, "exp": now + seconds}
        token = jwt.encode(claims, self._url_secret, "HS256")
        return f"/object/sign/{quote(bucket)}/{quote(name)}?token={token}"

    def _file(
        self, request: Request, row: Mapping[str, Any], expires: datetime | None = None
    ) -> Response:
        metadata = row["metadata"]
        headers = {"etag": metadata["eTag"], "x-robots-tag": "none"}
        known = request.headers.get("if-none-match")
        if known == metadata["eTag"]:
            return Response(status_code=304)
        if expires is not None:
            headers["expires"] = format_datetime(expires, usegmt=True)
        else:
            stale = ", stale-while-revalidate=30" if known else ""
            headers["cache-control"] = metadata["cacheControl"] + stale
        if "download" in request.query_params:
            wanted = quote(request.query_params["download"], safe=UNQUOTED)
            names = f" filename={wanted}; filename*=UTF-8''{wanted}" if wanted else ""
            headers["content-disposition"] = f"attachment;{names}"
        file = self._store.file_of(row)
        if not file.exists():
            raise NOT_STORED
        return FileResponse(file, headers=headers, media_type=metadata["mimetype"])


def claims_of_url(request: Request, secret: str, scope: str) -> dict[str, Any]:
    """Return what a signed address claims, if it is this one's. Raises `StorageRefusalError`."""
    if "token" not in request.query_params:
        raise refusals.NO_TOKEN
    try:
        claims: dict[str, Any] = jwt.decode(request.query_params["token"], secret, ["HS256"])
    except jwt.ExpiredSignatureError as error:
        raise refusals.bad_token('"exp" claim timestamp check failed') from error
    except jwt.InvalidSignatureError as error:
        raise refusals.bad_token("signature verification failed") from error
    except jwt.InvalidTokenError as error:
        raise refusals.bad_token("Invalid Compact JWS") from error
    if claims.get("scope") != scope:
        text = f"Token is not scoped for {scope}"
        raise StorageRefusalError(400, "InvalidSignature", text, code="InvalidSignature")
    if claims.get("url") != f"{bucket_in(request)}/{name_in(request)}":
        raise refusals.BAD_SIGNATURE
    return claims
