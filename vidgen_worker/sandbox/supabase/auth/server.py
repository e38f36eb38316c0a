"""Auth's double over HTTP: `/auth/v1`, what supabase-js and supabase-py ask of it.

Sign-up, sign-in with a password, renewal, the user, sign-out, and the administrator's verbs on
users. Access tokens are HS256, as on a project with a legacy JWT secret: its JWKS is empty.
"""

import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import psycopg
from psycopg_pool import PoolTimeout
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vidgen_worker.sandbox.supabase.auth import refusals
from vidgen_worker.sandbox.supabase.auth.passwords import LONGEST_BYTES
from vidgen_worker.sandbox.supabase.auth.refusals import AuthRefusalError
from vidgen_worker.sandbox.supabase.auth.users import Session, Users, as_json
from vidgen_worker.sandbox.supabase.callers import (
    Caller,
    TokenError,
    bearer,
    caller_of,
    is_api_key,
)
from vidgen_worker.sandbox.supabase.keys import HOUR, StorageKeys
from vidgen_worker.sandbox.supabase.texts import json_of

Handler = Callable[[Request], Awaitable[Response]]

EMAIL = re.compile(r"(?=.{3,255}$)[^@\s\x00-\x1f]+@[^@\s\x00-\x1f]+\.[^@\s\x00-\x1f]+")
SHORTEST_PASSWORD = 6
PAGE_ROWS = 50
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
PROVIDERS = ("anonymous_users", "apple", "azure", "github", "google", "phone")


class AuthDouble:
    """Routes and their users."""

    def __init__(self, admin_url: str, keys: StorageKeys) -> None:
        """Keep users in the database of `admin_url`, a superuser's URL."""
        self._keys = keys
        self.users = Users(admin_url)

    def routes(self) -> list[Route]:
        """`/auth/v1/…`."""
        route = self._route
        return [
            route("signup", self._sign_up, "POST"),
            route("token", self._token, "POST"),
            route("user", self._user, "GET"),
            route("user", self._change_user, "PUT"),
            route("logout", self._sign_out, "POST"),
            route("settings", self._settings, "GET"),
            route("health", self._health, "GET"),
            route("admin/users", self._list_users, "GET"),
            route("admin/users", self._create_user, "POST"),
            route("admin/users/{id}", self._one_user, "GET"),
            route("admin/users/{id}", self._change_one_user, "PUT"),
            route("admin/users/{id}", self._delete_user, "DELETE"),
            Route("/auth/v1/.well-known/jwks.json", _jwks, methods=["GET"]),
            Route("/auth/v1/{path:path}", _no_path, methods=METHODS),
        ]

    @asynccontextmanager
    async def lifespan(self, _app: object) -> AsyncIterator[None]:
        """Keep connections while the application serves."""
        async with self.users.lifespan():
            yield

    def _route(self, path: str, handler: Handler, method: str) -> Route:
        async def endpoint(request: Request) -> Response:
            key = request.headers.get("apikey") or request.query_params.get("apikey", "")
            if not is_api_key(self._keys, key):
                said = "Invalid API key" if key else "No API key found in request"
                return JSONResponse({"message": said, "hint": "Send it as `apikey`."}, 401)
            try:
                return await handler(request)
            except AuthRefusalError as error:
                return error.response(request)
            except (psycopg.Error, PoolTimeout):
                return refusals.DATABASE.response(request)

        return Route(f"/auth/v1/{path}", endpoint, methods=[method])

    # Sessions ----------------------------------------------------------------------------------

    async def _sign_up(self, request: Request) -> Response:
        body = await _body(request)
        if not body.get("email"):
            raise refusals.NO_ANONYMOUS if not body.get("phone") else refusals.NO_EMAIL
        email, password = _credentials(body)
        user = await self.users.create(email, password, body.get("data") or {})
        return self._session(await self.users.begin(str(user["id"])), "password")

    async def _token(self, request: Request) -> Response:
        body = await _body(request)
        match request.query_params.get("grant_type"):
            case "password":
                if not body.get("email"):
                    raise refusals.NO_EMAIL
                found = await self.users.sign_in(str(body["email"]), str(body.get("password", "")))
            case "refresh_token":
                found = await self.users.refresh(str(body.get("refresh_token", "")))
            case _:
                raise refusals.NO_GRANT
        return self._session(found, "password")

    async def _sign_out(self, request: Request) -> Response:
        caller = await self._caller(request)
        scope = request.query_params.get("scope", "global")
        await self.users.sign_out(caller.user_id or "", str(caller.claims.get("session_id")), scope)
        return Response(status_code=204)

    def _session(self, session: Session, method: str) -> Response:
        """Answer with tokens."""
        now, user = int(time.time()), session.user
        claims = {
            "email": user["email"],
            "phone": user["phone"] or "",
            "app_metadata": user["raw_app_meta_data"] or {},
            "user_metadata": user["raw_user_meta_data"] or {},
            "aal": "aal1",
            "amr": [{"method": method, "timestamp": now}],
            "session_id": str(session.id),
            "is_anonymous": user["is_anonymous"],
        }
        token = self._keys.user_token(user["id"], claims=claims)
        answer = {
            "access_token": token,
            "token_type": "bearer",
            "expires_in": HOUR,
            "expires_at": now + HOUR,
            "refresh_token": session.refresh_token,
            "user": as_json(user),
        }
        return JSONResponse(answer)

    # The user ----------------------------------------------------------------------------------

    async def _user(self, request: Request) -> Response:
        caller = await self._caller(request)
        return JSONResponse(as_json(await self.users.by_id(caller.user_id or "")))

    async def _change_user(self, request: Request) -> Response:
        caller = await self._caller(request)
        body = await _body(request)
        _check_change(body)
        own: dict[str, Any] = {
            name: body[name] for name in ("email", "password", "data") if name in body
        }
        session = str(caller.claims.get("session_id"))
        return JSONResponse(as_json(await self.users.change(caller.user_id or "", own, session)))

    # The administrator's -----------------------------------------------------------------------

    async def _list_users(self, request: Request) -> Response:
        self._check_admin(request)
        page, rows = _page(request)
        users, total = await self.users.page(page, rows)
        url = f"{request.url.path}?per_page={rows}&page="
        last = max(1, -(-total // rows))
        links = [f'<{url}{last}>; rel="last"']
        if page < last:
            links.insert(0, f'<{url}{page + 1}>; rel="next"')
        headers = {"x-total-count": str(total), "link": ", ".join(links)}
        answer = {"users": [as_json(user) for user in users], "aud": "authenticated"}
        return JSONResponse(answer, headers=headers)

    async def _create_user(self, request: Request) -> Response:
        self._check_admin(request)
        body = await _body(request)
        email, password = _credentials(body, need_password=False)
        wanted = body.get("id")
        try:
            user_id = UUID(str(wanted)) if wanted else None
        except ValueError as error:
            text = "ID must conform to the uuid v4 format"
            raise AuthRefusalError(400, "validation_failed", text) from error
        try:
            user = await self.users.create(
                email, password, body.get("user_metadata") or {}, user_id,
                is_confirmed=bool(body.get("email_confirm")),
            )  # fmt: skip
        except AuthRefusalError as error:
            raise refusals.ADDRESS_TAKEN if error is refusals.ALREADY_THERE else error from error
        rest: dict[str, Any] = {
            name: body[name] for name in ("app_metadata", "ban_duration") if name in body
        }
        return JSONResponse(as_json(await self.users.change(str(user["id"]), rest)))

    async def _one_user(self, request: Request) -> Response:
        self._check_admin(request)
        return JSONResponse(as_json(await self.users.by_id(request.path_params["id"])))

    async def _change_one_user(self, request: Request) -> Response:
        self._check_admin(request)
        body = await _body(request)
        _check_change(body)
        changes = {**body, "data": body.get("user_metadata") or {}}
        user = await self.users.change(request.path_params["id"], changes)
        return JSONResponse(as_json(user))

    async def _delete_user(self, request: Request) -> Response:
        self._check_admin(request)
        await self.users.delete(request.path_params["id"])
        return JSONResponse({})

    # What it says of itself --------------------------------------------------------------------

    async def _settings(self, _request: Request) -> Response:
        return JSONResponse(
            {
                "external": {**dict.fromkeys(PROVIDERS, False), "email": True},
                "disable_signup": False,
                "mailer_autoconfirm": True,
                "phone_autoconfirm": False,
                "sms_provider": "",
                "saml_enabled": False,
            }
        )

    async def _health(self, _request: Request) -> Response:
        return JSONResponse(
            {"version": "sandbox", "name": "GoTrue", "description": "Auth's double"}
        )

    # Who asks ----------------------------------------------------------------------------------

    async def _caller(self, request: Request) -> Caller:
        """Return the signed-in user. Raises `AuthRefusalError`."""
        caller = self._token_of(request)
        session = caller.claims.get("session_id")
        if session is not None and not await self.users.has_session(str(session)):
            raise refusals.NO_SESSION
        if caller.user_id is None:
            raise AuthRefusalError(403, "bad_jwt", "invalid claim: missing sub claim")
        return caller

    def _check_admin(self, request: Request) -> None:
        if self._token_of(request).role not in ("service_role", "supabase_admin"):
            raise refusals.NOT_ALLOWED

    def _token_of(self, request: Request) -> Caller:
        key, said = request.headers.get("apikey", ""), request.headers.get("authorization", "")
        if not bearer(said):
            raise refusals.NO_TOKEN
        try:
            return caller_of(self._keys, key, said)
        except TokenError as error:
            text = f"invalid JWT: unable to parse or verify signature, {error.message}"
            raise AuthRefusalError(403, "bad_jwt", text) from error


def _credentials(body: Mapping[str, Any], *, need_password: bool = True) -> tuple[str, str]:
    """Return address and password of a new user. Raises `AuthRefusalError`."""
    email, password = str(body.get("email") or ""), str(body.get("password") or "")
    if not EMAIL.fullmatch(email):
        raise refusals.BAD_EMAIL
    if need_password and not password:
        raise refusals.NO_PASSWORD
    if password:
        _check_password(password)
    return email, password


def _check_password(password: str) -> None:
    if len(password.encode()) > LONGEST_BYTES:
        raise refusals.LONG_PASSWORD
    if len(password) < SHORTEST_PASSWORD:
        raise refusals.WEAK_PASSWORD


def _check_change(body: Mapping[str, Any]) -> None:
    if body.get("email") and not EMAIL.fullmatch(str(body["email"])):
        raise refusals.BAD_EMAIL
    if body.get("password"):
        _check_password(str(body["password"]))
    if body.get("phone"):
        raise refusals.NO_PHONE


def _page(request: Request) -> tuple[int, int]:
    """Return which page of users is asked for, and how many are on one."""
    said = [request.query_params.get(name) or "0" for name in ("page", "per_page")]
    if not all(re.fullmatch(r"\d{1,9}", one) for one in said):
        raise refusals.BAD_PAGE
    page, rows = map(int, said)
    return page or 1, rows or PAGE_ROWS


async def _body(request: Request) -> dict[str, Any]:
    """Return the request's JSON object. Raises `AuthRefusalError`."""
    try:
        body = json_of(await request.body() or b"{}")
    except ValueError as error:
        raise refusals.BAD_JSON from error
    if not isinstance(body, dict):
        raise refusals.BAD_JSON
    for name in ("data", "user_metadata", "app_metadata"):
        if not isinstance(body.get(name) or {}, dict):
            raise refusals.BAD_JSON
    return body


async def _jwks(_request: Request) -> Response:
    return JSONResponse({"keys": []}, headers={"cache-control": "public, max-age=600"})


async def _no_path(request: Request) -> Response:
    path = request.url.path.removeprefix("/auth/v1")
    return refusals.not_here(request.method, path).response(request)
