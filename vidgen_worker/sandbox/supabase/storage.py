"""Supabase Storage's double over HTTP: what storage3 and a browser ask of `/storage/v1`.

Statuses and error bodies are those observed of the real server: most errors travel as HTTP 400 with
the meant status as text in the body. `/sandbox/storage/...` makes it fail and shows what it holds.
It has no image transformation, no resumable uploads, and no REST API beside it.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import jwt
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from vidgen_worker.sandbox.serving import ConnectionDropped, drop_connection
from vidgen_worker.sandbox.supabase.callers import Caller
from vidgen_worker.sandbox.supabase.keys import StorageKeys
from vidgen_worker.sandbox.supabase.objects import (
    INTERNAL,
    NO_BUCKET,
    NO_OBJECT,
    SUPERUSER,
    TIMED_OUT,
    TOO_LARGE,
    Incoming,
    ObjectStore,
    StorageRefusalError,
)

__all__ = ["StorageDouble", "StorageFault"]

MEBIBYTE = 1024 * 1024
LARGEST_BYTES = 50 * MEBIBYTE
DATABASE_SECONDS = 30.0
SIGNED_UPLOAD_SECONDS = 2 * 3600
CONNECT_SECONDS = 5.0
ROLES = frozenset({"anon", "authenticated", "service_role"})
PAGE = "<html><head><title>502 Bad Gateway</title></head><body>cloudflare</body></html>"

Kind = Literal[
    "upload", "leave", "download", "sign", "bucket", "list", "info", "remove", "copy", "move"
]
Handler = Callable[[Request, Caller], Awaitable[Response]]

UNAUTHORIZED = StorageRefusalError(403, "Unauthorized", "Invalid Compact JWS")
FAULTS: Mapping[int, StorageRefusalError] = {
    403: UNAUTHORIZED,
    404: NO_BUCKET,
    413: TOO_LARGE,
    415: StorageRefusalError(415, "invalid_mime_type", "mime type is not supported"),
    429: StorageRefusalError(429, "too_many_connections", "Too many connections", http=429),
    500: INTERNAL,
    544: TIMED_OUT,
}


@dataclass(slots=True)
class StorageFault:
    """What goes wrong with the next `times` requests of a kind (`any`: of every kind)."""

    kind: str = "any"
    times: int = 1
    status: int | None = None
    """An error; 502, 503 and 504 come as a gateway's page of HTML."""
    hang: float | None = None
    """Seconds without an answer, once the request is received whole; what comes then is right, and
    is done even if the client has left."""
    begin_after: float | None = None
    """Seconds before the request is looked at, its body included."""
    hang_after: float | None = None
    """Seconds between what was asked, which is done at once, and the answer."""
    drop: Literal["before", "during", "after"] | None = None
    """The connection is cut: at once, amid an upload, or in place of the answer."""


class StorageDouble:
    """The application and its state. Serve `app`; clients take the server's URL and `keys`."""

    def __init__(  # noqa: PLR0913 - each has a default and is given by name
        self,
        folder: Path,
        admin_url: str,
        *,
        keys: StorageKeys | None = None,
        largest_bytes: int = LARGEST_BYTES,
        database_seconds: float = DATABASE_SECONDS,
        connect_seconds: float = CONNECT_SECONDS,
    ) -> None:
        """Keep bytes below `folder`, rows in the database of `admin_url`, a superuser's URL."""
        self.keys = keys or StorageKeys.generate()
        self.faults: list[StorageFault] = []
        self.requests: list[dict[str, Any]] = []
        self._store = ObjectStore(
            folder,
            admin_url,
            largest_bytes=largest_bytes,
            timeout_seconds=database_seconds,
            connect_seconds=connect_seconds,
        )
        self._url_secret = self.keys.url_secret
        self.app = Starlette(routes=self._routes(), lifespan=self.lifespan)

    def _routes(self) -> list[Route]:
        buckets, objects = "/storage/v1/bucket", "/storage/v1/object"
        bucket, one = f"{buckets}/{{bucket}}", "{bucket}/{name:path}"
        route = self._route
        return [
            route("bucket", buckets, self._create_bucket, "POST"),
            route("bucket", buckets, self._list_buckets, "GET"),
            route("bucket", bucket, self._get_bucket, "GET"),
            route("bucket", bucket, self._update_bucket, "PUT"),
            route("bucket", bucket, self._delete_bucket, "DELETE"),
            route("bucket", f"{bucket}/empty", self._empty_bucket, "POST"),
            route("leave", f"{objects}/upload/sign/{one}", self._sign_upload, "POST"),
            route("sign", f"{objects}/sign/{{bucket}}", self._sign_many, "POST"),
            route("sign", f"{objects}/sign/{one}", self._sign, "POST"),
            route("download", f"{objects}/sign/{one}", self._signed, "GET", is_open=True),
            route("download", f"{objects}/public/{one}", self._public, "GET", is_open=True),
            route("download", f"{objects}/authenticated/{one}", self._download, "GET"),
            route("info", f"{objects}/info/public/{one}", self._info_public, "GET", is_open=True),
            route("info", f"{objects}/info/authenticated/{one}", self._info, "GET"),
            route("info", f"{objects}/info/{one}", self._info, "GET"),
            route("copy", f"{objects}/copy", self._copy, "POST"),
            route("move", f"{objects}/move", self._move, "POST"),
            route("list", f"{objects}/list/{{bucket}}", self._list, "POST"),
            route("download", f"{objects}/{one}", self._download, "GET"),
            route("upload", f"{objects}/{one}", self._upload, "POST"),
            route("upload", f"{objects}/{one}", self._upload, "PUT"),
            route("remove", f"{objects}/{one}", self._remove_one, "DELETE"),
            route("remove", f"{objects}/{{bucket}}", self._remove, "DELETE"),
            Route("/storage/v1/{path:path}", _no_route),
            Route("/sandbox/storage/faults", self._add_fault, methods=["PATCH"]),
            Route("/sandbox/storage/faults", self._clear_faults, methods=["DELETE"]),
            Route("/sandbox/storage/objects", self._show_objects, methods=["GET"]),
            Route("/sandbox/storage/requests", self._show_requests, methods=["GET"]),
            Route("/sandbox/storage/buckets/{bucket}", self._drop_bucket, methods=["DELETE"]),
        ]

    @asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """Run what the application needs while it serves."""
        await self._store.open()
        yield
        await self._store.close()

    def _route(
        self, kind: Kind, path: str, handler: Handler, method: str, *, is_open: bool = False
    ) -> Route:
        """Return a route whose requests are logged, may fail on demand, and need a key."""

        async def endpoint(request: Request) -> Response:
            record: dict[str, Any] = {
                "kind": kind,
                "method": method,
                "path": request.url.path,
                "status": None,
            }
            self.requests.append(record)
            fault = self._next_fault(kind)
            try:
                if fault is not None and (refusal := await _fail(fault, request)) is not None:
                    response = refusal
                else:
                    caller = SUPERUSER if is_open else self._caller(request)
                    response = await handler(request, caller)
                if fault is not None and fault.hang_after is not None:
                    await asyncio.sleep(fault.hang_after)
                if fault is not None and fault.drop == "after":
                    await drop_connection(request)
            except StorageRefusalError as error:
                response = JSONResponse(error.body, error.http)
                record["error"] = error.code
            record["status"] = response.status_code
            return response

        return Route(path, endpoint, methods=[method])

    def _next_fault(self, kind: Kind) -> StorageFault | None:
        for fault in self.faults:
            if fault.kind in ("any", kind):
                fault.times -= 1
                if not fault.times:
                    self.faults.remove(fault)
                return fault
        return None

    def _caller(self, request: Request) -> Caller:
        """Return who asks, by the token. Raises `StorageRefusalError`."""
        api_key = request.headers.get("apikey", "")
        token = request.headers.get("authorization", "").removeprefix("Bearer ") or api_key
        if token.startswith("sb_"):
            # The gateway turns new keys into tokens, when they stand in both headers.
            roles = {self.keys.secret: "service_role", self.keys.publishable: "anon"}
            if token not in roles or token != api_key:
                raise UNAUTHORIZED
            return Caller(roles[token], {"role": roles[token]})
        try:
            claims = jwt.decode(
                token, self.keys.jwt_secret, ["HS256"], options={"verify_aud": False}
            )
        except jwt.ExpiredSignatureError as error:
            text = '"exp" claim timestamp check failed'
            raise StorageRefusalError(403, "Unauthorized", text) from error
        except jwt.InvalidSignatureError as error:
            text = "signature verification failed"
            raise StorageRefusalError(403, "Unauthorized", text) from error
        except jwt.InvalidTokenError as error:
            raise UNAUTHORIZED from error
        if claims.get("role") not in ROLES:
            raise UNAUTHORIZED
        return Caller(claims["role"], claims)

    # Buckets --------------------------------------------------------------------------------

    async def _create_bucket(self, request: Request, caller: Caller) -> Response:
        body = await request.json()
        if not body.get("id") and body.get("name"):
            body["id"] = body["name"]
        await self._store.create_bucket(caller, body)
        return JSONResponse({"name": body["id"]})

    async def _list_buckets(self, _request: Request, caller: Caller) -> Response:
        return JSONResponse(await self._store.buckets(caller))

    async def _get_bucket(self, request: Request, caller: Caller) -> Response:
        return JSONResponse(await self._store.bucket(caller, _bucket(request)))

    async def _update_bucket(self, request: Request, caller: Caller) -> Response:
        await self._store.update_bucket(caller, _bucket(request), await request.json())
        return JSONResponse({"message": "Successfully updated"})

    async def _delete_bucket(self, request: Request, caller: Caller) -> Response:
        await self._store.delete_bucket(caller, _bucket(request))
        return JSONResponse({"message": "Successfully deleted"})

    async def _empty_bucket(self, request: Request, caller: Caller) -> Response:
        await self._empty(caller, _bucket(request))
        return JSONResponse({"message": "Successfully emptied"})

    async def _empty(self, caller: Caller, bucket: str) -> None:
        await self._store.bucket(caller, bucket)
        names = [row["name"] for row in await self._store.below(caller, bucket, "")]
        await self._store.remove(caller, bucket, names)

    # Uploads --------------------------------------------------------------------------------

    async def _upload(self, request: Request, caller: Caller) -> Response:
        """Take an object, as a form (storage3) or as a bare body (curl, a stream)."""
        bucket, name = _bucket(request), _name(request)
        upsert = request.method == "PUT" or request.headers.get("x-upsert") == "true"
        media_type = request.headers.get("content-type", "application/octet-stream")
        temporary = self._store.incoming / secrets.token_hex(16)
        try:
            if media_type.startswith("multipart/form-data"):
                incoming, limit = await self._receive_form(
                    request, caller, bucket, name, temporary, upsert=upsert
                )
            else:
                limit = await self._store.check_upload(
                    caller, bucket, name, media_type, upsert=upsert
                )
                await _receive(request.stream(), temporary, limit)
                cache_control = request.headers.get("cache-control", "no-cache")
                incoming = Incoming(temporary, media_type, cache_control)
            if incoming.file.stat().st_size > limit:
                raise TOO_LARGE
            object_id = await self._store.put(caller, bucket, name, incoming)
        finally:
            temporary.unlink(missing_ok=True)
        return JSONResponse({"Key": f"{bucket}/{name}", "Id": object_id})

    async def _sign_upload(self, request: Request, caller: Caller) -> Response:
        """Give leave to upload, once the caller's role has written the row and taken it back."""
        bucket, name = _bucket(request), _name(request)
        upsert = request.headers.get("x-upsert") == "true"
        await self._store.check_permission(caller, bucket, name, upsert=upsert)
        claims = {
            "url": f"{bucket}/{name}",
            "scope": "upload",
            "upsert": upsert,
            "exp": int(time.time()) + SIGNED_UPLOAD_SECONDS,
        }
        token = jwt.encode(claims, self._url_secret, "HS256")
        url = f"/object/upload/sign/{quote(bucket)}/{quote(name)}?token={token}"
        return JSONResponse({"url": url, "token": token})

    async def _receive_form(  # noqa: PLR0913 - what an upload is
        self, request: Request, caller: Caller, bucket: str, name: str, file: Path, *, upsert: bool
    ) -> tuple[Incoming, int]:
        async with request.form() as form:
            part = next((value for value in form.values() if isinstance(value, UploadFile)), None)
            if part is None:
                raise StorageRefusalError(400, "Error", "The form has no file")
            media_type = part.content_type or "application/octet-stream"
            limit = await self._store.check_upload(caller, bucket, name, media_type, upsert=upsert)

            async def chunks() -> AsyncIterator[bytes]:
                while chunk := await part.read(MEBIBYTE):
                    yield chunk

            await _receive(chunks(), file, limit)
            seconds = form.get("cacheControl", "3600")
            metadata = form.get("metadata")
            user_metadata = json.loads(metadata) if isinstance(metadata, str) else None
        return Incoming(file, media_type, f"max-age={seconds}", user_metadata), limit

    # Downloads ------------------------------------------------------------------------------

    async def _download(self, request: Request, caller: Caller) -> Response:
        return self._file(request, await self._store.find(caller, _bucket(request), _name(request)))

    async def _public(self, request: Request, caller: Caller) -> Response:
        bucket = await self._store.bucket(caller, _bucket(request))
        if not bucket["public"]:
            raise NO_BUCKET
        return await self._download(request, caller)

    async def _signed(self, request: Request, caller: Caller) -> Response:
        try:
            claims = jwt.decode(request.query_params.get("token", ""), self._url_secret, ["HS256"])
        except jwt.ExpiredSignatureError as error:
            text = '"exp" claim timestamp check failed'
            raise StorageRefusalError(400, "InvalidJWT", text) from error
        except jwt.InvalidTokenError as error:
            raise StorageRefusalError(400, "InvalidJWT", "Invalid Compact JWS") from error
        if claims.get("url") != f"{_bucket(request)}/{_name(request)}":
            text = "The signature does not belong to this object"
            raise StorageRefusalError(400, "InvalidSignature", text)
        return await self._download(request, caller)

    def _file(self, request: Request, row: Mapping[str, Any]) -> Response:
        metadata = row["metadata"]
        headers = {"cache-control": metadata["cacheControl"], "etag": metadata["eTag"]}
        if "download" in request.query_params:
            name = request.query_params["download"] or row["name"].rpartition("/")[2]
            headers["content-disposition"] = f"attachment; filename*=UTF-8''{quote(name)}"
        file = self._store.file_of(row)
        if not file.exists():
            raise NO_OBJECT
        return FileResponse(file, headers=headers, media_type=metadata["mimetype"])

    # Signing, looking, removing -----------------------------------------------------------------

    async def _sign(self, request: Request, caller: Caller) -> Response:
        bucket, name = _bucket(request), _name(request)
        seconds = _expiry(await request.json())
        await self._store.find(caller, bucket, name)
        return JSONResponse({"signedURL": self._signed_url(bucket, name, seconds)})

    async def _sign_many(self, request: Request, caller: Caller) -> Response:
        bucket, body = _bucket(request), await request.json()
        seconds, names = _expiry(body), list(body["paths"])
        visible = await self._store.visible(caller, bucket, names)
        refused = "Either the object does not exist or you do not have access to it"
        return JSONResponse(
            [
                {
                    "path": name,
                    "error": None if name in visible else refused,
                    "signedURL": self._signed_url(bucket, name, seconds)
                    if name in visible
                    else None,
                }
                for name in names
            ]
        )

    def _signed_url(self, bucket: str, name: str, seconds: int) -> str:
        now = int(time.time())
        claims = {"url": f"{bucket}/{name}", "scope": "download", "iat": now, "exp": now + seconds}
        token = jwt.encode(claims, self._url_secret, "HS256")
        return f"/object/sign/{quote(bucket)}/{quote(name)}?token={token}"

    async def _info(self, request: Request, caller: Caller) -> Response:
        await self._store.bucket(SUPERUSER, _bucket(request))
        row = await self._store.find(caller, _bucket(request), _name(request))
        metadata = row["metadata"]
        return JSONResponse(
            {
                "id": str(row["id"]),
                "name": row["name"],
                "version": row["version"],
                "bucket_id": row["bucket_id"],
                "size": metadata["size"],
                "content_type": metadata["mimetype"],
                "cache_control": metadata["cacheControl"],
                "etag": metadata["eTag"],
                "metadata": row["user_metadata"] or {},
                "last_modified": row["updated_at"].isoformat(),
                "created_at": row["created_at"].isoformat(),
            }
        )

    async def _info_public(self, request: Request, _caller: Caller) -> Response:
        bucket = await self._store.bucket(SUPERUSER, _bucket(request))
        if not bucket["public"]:
            raise NO_BUCKET
        return await self._info(request, SUPERUSER)

    async def _copy(self, request: Request, caller: Caller) -> Response:
        source, target = _source_and_target(await request.json())
        made = await self._store.copy(caller, source, target)
        return JSONResponse({"Key": "/".join(target), "Id": made})

    async def _move(self, request: Request, caller: Caller) -> Response:
        source, target = _source_and_target(await request.json())
        moved = await self._store.move(caller, source, target)
        return JSONResponse({"message": "Successfully moved", "Id": moved})

    async def _list(self, request: Request, caller: Caller) -> Response:
        body = await request.json()
        prefix = str(body.get("prefix") or "").strip("/")
        folder = f"{prefix}/" if prefix else ""
        search = str(body.get("search") or "")
        entries: dict[str, dict[str, Any]] = {}
        for row in await self._store.below(caller, _bucket(request), folder):
            head, _, rest = row["name"].removeprefix(folder).partition("/")
            if search in head:
                entries.setdefault(head, _folder_json(head) if rest else _object_json(row, head))
        sort_by = body.get("sortBy") or {}
        found = sorted(
            entries.values(),
            key=lambda entry: str(entry.get(sort_by.get("column", "name")) or ""),
            reverse=sort_by.get("order") == "desc",
        )
        offset, limit = int(body.get("offset") or 0), int(body.get("limit") or 100)
        return JSONResponse(found[offset : offset + limit])

    async def _remove(self, request: Request, caller: Caller) -> Response:
        names = (await request.json()).get("prefixes") or []
        if not names:
            text = "body/prefixes must NOT have fewer than 1 items"
            raise StorageRefusalError(400, "Error", text)
        removed = await self._store.remove(caller, _bucket(request), names)
        return JSONResponse([_object_json(row, row["name"]) for row in removed])

    async def _remove_one(self, request: Request, caller: Caller) -> Response:
        removed = await self._store.remove(caller, _bucket(request), [_name(request)])
        if not removed:
            raise NO_OBJECT
        return JSONResponse({"message": "Successfully deleted"})

    # What tests and the command line ask for --------------------------------------------------

    async def _add_fault(self, request: Request) -> Response:
        wanted = await request.json()
        known = [field.name for field in fields(StorageFault)]
        if unknown := [name for name in wanted if name not in known]:
            text = f"A storage fault has no {unknown[0]!r}. It has: {', '.join(known)}."
            return JSONResponse({"error": text}, 400)
        self.faults.append(StorageFault(**wanted))
        return Response(status_code=204)

    async def _clear_faults(self, _request: Request) -> Response:
        self.faults.clear()
        return Response(status_code=204)

    async def _show_objects(self, _request: Request) -> Response:
        return JSONResponse(await self._store.everything())

    async def _show_requests(self, _request: Request) -> Response:
        return JSONResponse(self.requests)

    async def _drop_bucket(self, request: Request) -> Response:
        await self._empty(SUPERUSER, _bucket(request))
        await self._store.delete_bucket(SUPERUSER, _bucket(request))
        return Response(status_code=204)


def _no_route(request: Request) -> Response:
    path = request.url.path.removeprefix("/storage/v1")
    message = f"Route {request.method}:{path} not found"
    return JSONResponse({"message": message, "error": "Not Found", "statusCode": 404}, 404)


async def _fail(fault: StorageFault, request: Request) -> Response | None:
    """Do what a fault says before the request is looked at; return an answer, if that is it."""
    if fault.begin_after is not None:
        await asyncio.sleep(fault.begin_after)
    if fault.hang is not None:
        await _take_whole(request)
        await asyncio.sleep(fault.hang)
    if fault.drop == "during":
        async for chunk in request.stream():
            if chunk:
                break
    if fault.drop in ("before", "during"):
        await drop_connection(request)
    if fault.status is None:
        return None
    known = FAULTS.get(fault.status)
    if known is not None:
        return JSONResponse(known.body, known.http)
    return HTMLResponse(PAGE, fault.status)


async def _take_whole(request: Request) -> None:
    """Receive the body, for the handler to find; one that its client cuts off is no request."""
    try:
        await request.body()
    except ClientDisconnect:
        raise ConnectionDropped from None


async def _receive(chunks: AsyncIterator[bytes], file: Path, limit: int) -> None:
    """Write a stream to a file. Raises `StorageRefusalError` when it grows beyond the limit."""
    size = 0
    with await asyncio.to_thread(file.open, "wb") as out:
        async for chunk in chunks:
            size += len(chunk)
            if size > limit:
                raise TOO_LARGE
            out.write(chunk)


def _expiry(body: Mapping[str, Any]) -> int:
    seconds = int(body.get("expiresIn", 0))
    if seconds < 1:
        raise StorageRefusalError(400, "Error", "body/expiresIn must be >= 1")
    return seconds


def _source_and_target(body: Mapping[str, Any]) -> tuple[tuple[str, str], tuple[str, str]]:
    bucket = str(body.get("bucketId") or "")
    source, target = str(body.get("sourceKey") or ""), str(body.get("destinationKey") or "")
    if not (bucket and source and target):
        text = "body must have required property 'bucketId', 'sourceKey' and 'destinationKey'"
        raise StorageRefusalError(400, "Error", text)
    return (bucket, source), (str(body.get("destinationBucket") or bucket), target)


def _bucket(request: Request) -> str:
    return str(request.path_params["bucket"])


def _name(request: Request) -> str:
    return str(request.path_params["name"])


def _folder_json(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "id": None,
        "updated_at": None,
        "created_at": None,
        "last_accessed_at": None,
        "metadata": None,
    }


def _object_json(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {
        "name": name,
        "id": str(row["id"]),
        "bucket_id": row["bucket_id"],
        "owner_id": row["owner_id"],
        "version": row["version"],
        "created_at": row["created_at"].isoformat(),
        "updated_at": row["updated_at"].isoformat(),
        "last_accessed_at": row["last_accessed_at"].isoformat(),
        "metadata": row["metadata"],
    }
