"""A Supabase project at one origin: REST, Realtime, Auth and Storage, as its gateway routes them.

Pages of any origin may ask, as on a hosted project: what guards the project are its keys.
`/sandbox/token` makes the token of a user, for whoever has a service key. It never runs our
migrations.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psycopg
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from vidgen_worker.sandbox.serving import failed
from vidgen_worker.sandbox.supabase.auth.refusals import AuthRefusalError
from vidgen_worker.sandbox.supabase.auth.server import AuthDouble
from vidgen_worker.sandbox.supabase.callers import TokenError, caller_of
from vidgen_worker.sandbox.supabase.keys import StorageKeys
from vidgen_worker.sandbox.supabase.realtime.server import RealtimeDouble, Tell
from vidgen_worker.sandbox.supabase.rest.server import RestDouble
from vidgen_worker.sandbox.supabase.storage import StorageDouble
from vidgen_worker.sandbox.supabase.texts import json_of

PATHS = ("/rest/", "/realtime/", "/auth/", "/storage/", "/sandbox/storage/", "/sandbox/token")
OPEN_TO_PAGES = ("/rest/", "/realtime/", "/auth/", "/storage/")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
EXPOSED = (
    "Content-Encoding", "Content-Location", "Content-Range", "Content-Type", "Date", "Location",
    "Server", "Transfer-Encoding", "Range-Unit", "Preference-Applied", "X-Supabase-Api-Version",
    "X-Sb-Error-Code",
)  # fmt: skip
PREFLIGHT_SECONDS = 3600
LONGEST_SECONDS = 7 * 86_400
"""A hosted project lets no access token live longer."""


class SupabaseProject:
    """The application and its parts. Serve `app`; clients take the server's URL and `keys`."""

    def __init__(
        self,
        folder: Path,
        admin_url: str,
        *,
        keys: StorageKeys | None = None,
        tell: Tell | None = None,
    ) -> None:
        """Keep Storage's bytes below `folder`, all else in the database of `admin_url`.

        `tell` hears what tests wait for: a table `read`; a change `sent` or `withheld`; a channel
        `subscribed`.
        """
        self.keys = keys or StorageKeys.generate()
        self.storage = StorageDouble(folder, admin_url, keys=self.keys)
        self.rest = RestDouble(admin_url, self.keys, tell)
        self.realtime = RealtimeDouble(admin_url, self.keys, tell)
        self.auth = AuthDouble(admin_url, self.keys)
        inner = Starlette(
            routes=[
                *self.rest.routes(),
                *self.realtime.routes(),
                *self.auth.routes(),
                Route("/sandbox/token", self._token, methods=["POST"]),
                *self.storage.app.routes,
            ],
            lifespan=self.lifespan,
            exception_handlers={HTTPException: _refused, Exception: failed},
        )
        self.app = _open_to_pages(inner)

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Run what the parts need while the application serves."""
        async with AsyncExitStack() as stack:
            for part in (self.storage, self.rest, self.realtime, self.auth):
                await stack.enter_async_context(part.lifespan(app))
            yield

    async def _token(self, request: Request) -> Response:
        """Make an access token of a user, named by id or address."""
        key, said = request.headers.get("apikey", ""), request.headers.get("authorization", "")
        try:
            if caller_of(self.keys, key, said).role != "service_role":
                raise TokenError("PGRST301", "the key is not the service's")  # noqa: TRY301
        except TokenError as error:
            return JSONResponse({"error": f"No token for this key: {error.message}."}, 401)
        try:
            wanted = str(json_of(await request.body())["user"])
        except (ValueError, TypeError, KeyError):
            return JSONResponse({"error": 'The body must be {"user": an id or an address}.'}, 400)
        try:
            user = await self.auth.users.named(wanted)
        except (AuthRefusalError, psycopg.DataError):
            return JSONResponse({"error": f"There is no user {wanted[:100]!r}."}, 404)
        claims = {"email": user["email"], "is_anonymous": False}
        token = self.keys.user_token(user["id"], seconds=LONGEST_SECONDS, claims=claims)
        return JSONResponse({"access_token": token, "expires_in": LONGEST_SECONDS})


def _open_to_pages(app: ASGIApp) -> ASGIApp:
    """Let pages of any origin use the project's own paths, and no others."""
    opened = CORSMiddleware(
        app,
        allow_origins=["*"],
        allow_methods=METHODS,
        allow_headers=["*"],
        expose_headers=EXPOSED,
        max_age=PREFLIGHT_SECONDS,
    )

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        is_open = scope["type"] == "http" and scope["path"].startswith(OPEN_TO_PAGES)
        await (opened if is_open else app)(scope, receive, send)

    return application


async def _refused(_request: Request, error: Exception) -> Response:
    """Say in JSON, which is all that clients read, what the routes refuse."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    said = str(error.detail) if isinstance(error, HTTPException) else "Internal Server Error"
    return JSONResponse({"statusCode": str(status), "error": said, "message": said}, status)
