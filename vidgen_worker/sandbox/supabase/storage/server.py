"""Supabase Storage's double over HTTP: what clients and browsers ask of `/storage/v1`.

Statuses and error bodies are those observed of the real server. `/sandbox/storage/...` makes it
fail and shows what it holds.
"""

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vidgen_worker.sandbox.supabase.callers import (
    Caller,
    TokenError,
    bearer,
    caller_of,
    is_api_key,
)
from vidgen_worker.sandbox.supabase.keys import StorageKeys
from vidgen_worker.sandbox.supabase.storage import faults, refusals
from vidgen_worker.sandbox.supabase.storage.bodies import body_of, bucket_in
from vidgen_worker.sandbox.supabase.storage.buckets import BucketStore, as_json
from vidgen_worker.sandbox.supabase.storage.connections import SUPERUSER, Connections
from vidgen_worker.sandbox.supabase.storage.downloads import NOBODY, Downloads
from vidgen_worker.sandbox.supabase.storage.faults import Kind, StorageFault
from vidgen_worker.sandbox.supabase.storage.managing import Managing
from vidgen_worker.sandbox.supabase.storage.objects import ObjectStore
from vidgen_worker.sandbox.supabase.storage.refusals import StorageRefusalError
from vidgen_worker.sandbox.supabase.storage.uploads import Uploads

LARGEST_BYTES = 50 * 1024 * 1024
DATABASE_SECONDS = 30.0
CONNECT_SECONDS = 5.0
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
MOST_REMEMBERED = 10_000
"""Requests, for tests and the command line; older ones are forgotten."""
TOKEN_ERRORS = {
    "JWT expired": '"exp" claim timestamp check failed',
    "No suitable key or wrong key type": "signature verification failed",
}
"""The messages of Storage's library that differ from PostgREST's; others: no compact JWS."""

Handler = Callable[[Request, Caller], Awaitable[Response]]
Entry = Callable[[Request], Caller]


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
        self.requests: deque[dict[str, Any]] = deque(maxlen=MOST_REMEMBERED)
        self._connections = Connections(
            admin_url, timeout_seconds=database_seconds, connect_seconds=connect_seconds
        )
        self._buckets = BucketStore(self._connections, largest_bytes)
        self._store = ObjectStore(folder, self._connections, largest_bytes=largest_bytes)
        self.app = Starlette(routes=self._routes(), lifespan=self.lifespan)

    def _routes(self) -> list[Route]:
        buckets, bucket = "/storage/v1/bucket", "/storage/v1/bucket/{bucket}"
        route = self._route
        return [
            route("bucket", buckets, self._create_bucket, "POST"),
            route("bucket", buckets, self._list_buckets, "GET"),
            route("bucket", bucket, self._get_bucket, "GET"),
            route("bucket", bucket, self._update_bucket, "PUT"),
            route("bucket", bucket, self._delete_bucket, "DELETE"),
            route("bucket", f"{bucket}/empty", self._empty_bucket, "POST"),
            *self._object_routes("/storage/v1/object", "{bucket}/{name:path}"),
            Route("/storage/v1/{path:path}", _no_route, methods=METHODS),
            Route("/sandbox/storage/faults", self._add_fault, methods=["PATCH"]),
            Route("/sandbox/storage/faults", self._clear_faults, methods=["DELETE"]),
            Route("/sandbox/storage/objects", self._show_objects, methods=["GET"]),
            Route("/sandbox/storage/requests", self._show_requests, methods=["GET"]),
            Route("/sandbox/storage/buckets/{bucket}", self._drop_bucket, methods=["DELETE"]),
        ]

    def _object_routes(self, objects: str, one: str) -> list[Route]:
        """Return the routes of objects; which come first matters, as names may hold slashes."""
        route, secret = self._route, self.keys.url_secret
        down = Downloads(self._store, self._buckets, secret)
        up, manage = Uploads(self._store, secret), Managing(self._store, down)
        anyone, maybe = _anyone, self._maybe
        return [
            route("leave", f"{objects}/upload/sign/{one}", up.sign, "POST"),
            route("upload", f"{objects}/upload/sign/{one}", up.upload_signed, "PUT", anyone),
            route("sign", f"{objects}/sign/{{bucket}}", down.sign_many, "POST"),
            route("sign", f"{objects}/sign/{one}", down.sign, "POST"),
            route("download", f"{objects}/sign/{one}", down.signed, "GET", anyone),
            route("download", f"{objects}/public/{one}", down.public, "GET", anyone),
            route("download", f"{objects}/authenticated/{one}", down.download, "GET"),
            route("info", f"{objects}/info/public/{one}", manage.info_public, "GET", anyone),
            route("info", f"{objects}/info/authenticated/{one}", manage.info, "GET"),
            route("info", f"{objects}/info/{one}", manage.info, "GET", maybe),
            route("copy", f"{objects}/copy", manage.copy, "POST"),
            route("move", f"{objects}/move", manage.move, "POST"),
            route("list", f"{objects}/list/{{bucket}}", manage.list, "POST"),
            Route(f"{objects}/list-v2/{{bucket}}", _no_route, methods=["POST"]),
            route("download", f"{objects}/{one}", down.download, "GET", maybe),
            route("upload", f"{objects}/{one}", up.upload, "POST"),
            route("upload", f"{objects}/{one}", up.upload, "PUT"),
            route("remove", f"{objects}/{one}", manage.remove_one, "DELETE"),
            route("remove", f"{objects}/{{bucket}}", manage.remove, "DELETE"),
        ]

    @asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """Run what the application needs while it serves."""
        self._store.open()
        yield
        await self._connections.close()

    def _route(
        self, kind: Kind, path: str, handler: Handler, method: str, entry: Entry | None = None
    ) -> Route:
        """Return a route whose requests are logged, may fail on demand, and need a token."""
        enter = entry or self._caller

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
                refusal = None if fault is None else await faults.begin(fault, request)
                response = refusal or await handler(request, enter(request))
                if fault is not None:
                    await faults.end(fault, request)
            except StorageRefusalError as error:
                response = error.response
                record["error"] = error.error
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

    # Who asks -----------------------------------------------------------------------------------

    def _caller(self, request: Request) -> Caller:
        """Return who asks, by the token. Raises `StorageRefusalError`."""
        key = request.headers.get("apikey", "")
        said = request.headers.get("authorization", "")
        token = bearer(said)
        for one in (key, token):
            if one.startswith("sb_") and not is_api_key(self.keys, one):
                raise refusals.UNKNOWN_KEY
        if not said and not key.startswith("sb_"):
            raise refusals.NO_AUTHORIZATION
        try:
            return caller_of(self.keys, key, f"Bearer {token or key}")
        except TokenError as error:
            text = TOKEN_ERRORS.get(error.message, "Invalid Compact JWS")
            raise refusals.denied(text) from error

    def _maybe(self, request: Request) -> Caller:
        """Return who asks, NOBODY where no good token says it."""
        try:
            return self._caller(request)
        except StorageRefusalError as error:
            if error is refusals.UNKNOWN_KEY:
                raise
            return NOBODY

    # Buckets --------------------------------------------------------------------------------

    async def _create_bucket(self, request: Request, caller: Caller) -> Response:
        return JSONResponse({"name": await self._buckets.create(caller, await body_of(request))})

    async def _list_buckets(self, request: Request, caller: Caller) -> Response:
        return JSONResponse(await self._buckets.all(caller, request.query_params))

    async def _get_bucket(self, request: Request, caller: Caller) -> Response:
        return JSONResponse(as_json(await self._buckets.find(caller, bucket_in(request))))

    async def _update_bucket(self, request: Request, caller: Caller) -> Response:
        await self._buckets.update(caller, bucket_in(request), await body_of(request))
        return JSONResponse({"message": "Successfully updated"})

    async def _delete_bucket(self, request: Request, caller: Caller) -> Response:
        await self._buckets.delete(caller, bucket_in(request))
        return JSONResponse({"message": "Successfully deleted"})

    async def _empty_bucket(self, request: Request, caller: Caller) -> Response:
        await self._buckets.find(caller, bucket_in(request))
        text = "Empty bucket has been queued. Completion may take up to an hour."
        task = BackgroundTask(self._empty, caller, bucket_in(request))
        return JSONResponse({"message": text}, background=task)

    async def _empty(self, caller: Caller, bucket: str) -> None:
        names = [row["name"] for row in await self._store.below(caller, bucket, "")]
        await self._store.remove(caller, bucket, names)

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
        return JSONResponse(list(self.requests))

    async def _drop_bucket(self, request: Request) -> Response:
        await self._empty(SUPERUSER, bucket_in(request))
        await self._buckets.delete(SUPERUSER, bucket_in(request))
        return Response(status_code=204)


def _anyone(_request: Request) -> Caller:
    """Ask for no token: the address itself is the right."""
    return SUPERUSER


def _no_route(request: Request) -> Response:
    path = request.url.path.removeprefix("/storage/v1")
    message = f"Route {request.method}:{path} not found"
    return JSONResponse({"message": message, "error": "Not Found", "statusCode": 404}, 404)
