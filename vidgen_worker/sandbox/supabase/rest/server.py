"""The REST API's double over HTTP: `/rest/v1`, on the real database as the real roles.

As PostgREST it logs in as `authenticator` and takes the role and the claims of the token for one
transaction, with the settings of that role. `Prefer: tx=rollback` is honoured. Nothing here decides
who may do what: the database does.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import AsyncConnection, Rollback
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vidgen_worker.sandbox.supabase.callers import Caller, TokenError, caller_of, is_api_key
from vidgen_worker.sandbox.supabase.keys import StorageKeys
from vidgen_worker.sandbox.supabase.rest import functions, tables
from vidgen_worker.sandbox.supabase.rest.exchange import (
    Answer,
    Preferences,
    accepted,
    check_schema,
)
from vidgen_worker.sandbox.supabase.rest.refusals import (
    RestRefusalError,
    of_database,
    of_token,
)

Connection = AsyncConnection[dict[str, Any]]
Verb = Callable[[Connection, Request, Preferences], Awaitable[Answer]]
Tell = Callable[[str, object], None]

LOGIN = "authenticator"
CONNECT_SECONDS = 10.0
LEEWAY_SECONDS = 30
"""PostgREST lets a token live this long after its end."""
VERBS: dict[str, Verb] = {
    "GET": tables.read,
    "HEAD": tables.read,
    "POST": tables.insert,
    "PATCH": tables.update,
    "DELETE": tables.delete,
}

_LOGIN_SETTINGS = """
select set_config(split_part(s, '=', 1), substr(s, strpos(s, '=') + 1), false)
  from pg_catalog.pg_roles as r
  join pg_catalog.pg_db_role_setting as d on d.setrole = r.oid and d.setdatabase = 0
 cross join unnest(d.setconfig) as s
 where r.rolname = %s
"""

_CALLER_SETTINGS = """
select set_config(split_part(s, '=', 1), substr(s, strpos(s, '=') + 1), true)
  from pg_catalog.pg_roles as r
  join pg_catalog.pg_db_role_setting as d on d.setrole = r.oid and d.setdatabase = 0
 cross join unnest(d.setconfig) as s
 where r.rolname = %s
"""

_CALLER = """
select set_config('search_path', '"public", "extensions"', true),
       set_config('request.jwt.claims', %s, true),
       set_config('request.method', %s, true),
       set_config('request.path', %s, true),
       set_config('request.headers', %s, true),
       set_config('role', %s, true)
"""

_WISHES = """
select nullif(current_setting('response.status', true), '') as status,
       nullif(current_setting('response.headers', true), '') as headers
"""


class RestDouble:
    """Routes and their connections. `tell` hears of each table that was read."""

    def __init__(self, admin_url: str, keys: StorageKeys, tell: Tell | None = None) -> None:
        """Ask the database of `admin_url`, a superuser's URL."""
        self._keys = keys
        self._tell = tell
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            admin_url,
            connection_class=AsyncConnection[dict[str, Any]],
            min_size=0,
            max_size=10,
            timeout=CONNECT_SECONDS,
            check=AsyncConnectionPool.check_connection,
            configure=_log_in,
            open=False,
            kwargs={"row_factory": dict_row, "application_name": "postgrest"},
        )

    def routes(self) -> list[Route]:
        """`/rest/v1/…`."""
        return [
            Route(
                "/rest/v1/rpc/{name}",
                self._endpoint(lambda _: functions.call),
                methods=["GET", "HEAD", "POST"],
            ),
            Route(
                "/rest/v1/{name}",
                self._endpoint(lambda request: VERBS[request.method]),
                methods=list(VERBS),
            ),
            Route("/rest/v1/{path:path}", _no_path),
        ]

    @asynccontextmanager
    async def lifespan(self, _app: object) -> AsyncIterator[None]:
        """Keep connections while the application serves."""
        await self._pool.open(wait=False)
        yield
        await self._pool.close(timeout=1)

    def _endpoint(
        self, verb_of: Callable[[Request], Verb]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                return await self._answer(request, verb_of(request))
            except RestRefusalError as error:
                return error.response
            except RecursionError:
                text = "What was sent is nested too deeply"
                return RestRefusalError(400, "PGRST100", text).response

        return endpoint

    async def _answer(self, request: Request, verb: Verb) -> Response:
        key = request.headers.get("apikey") or request.query_params.get("apikey", "")
        if (refused := refused_key(self._keys, key)) is not None:
            return refused
        try:
            said = request.headers.get("authorization", "")
            caller = caller_of(self._keys, key, said, leeway=LEEWAY_SECONDS)
        except TokenError as error:
            raise of_token(error) from error
        check_schema(request)
        media, preferences = accepted(request), Preferences.of(request)
        try:
            answer = await self._run(request, verb, caller, preferences)
        except (psycopg.Error, PoolTimeout) as error:
            raise of_database(error, is_known=caller.role != "anon") from error
        if self._tell is not None and request.method == "GET":
            self._tell("read", request.path_params["name"])
        return answer.response(preferences, media)

    async def _run(
        self, request: Request, verb: Verb, caller: Caller, preferences: Preferences
    ) -> Answer:
        """Run a verb in a transaction of the caller's."""
        answer = Answer(500)
        async with self._pool.connection() as connection, connection.transaction() as transaction:
            if request.method in ("GET", "HEAD"):
                await connection.execute("set transaction read only")
            await connection.execute(_CALLER_SETTINGS, [caller.role])
            headers = {name: value for name, value in request.headers.items() if name != "cookie"}
            await connection.execute(
                _CALLER,
                [
                    json.dumps(caller.claims), request.method, request.url.path,
                    json.dumps(headers), caller.role,
                ],
            )  # fmt: skip
            answer = await verb(connection, request, preferences)
            answer = _as_wished(answer, await (await connection.execute(_WISHES)).fetchone())
            if preferences.values.get("tx") == "rollback":
                raise Rollback(transaction)
        return answer


def refused_key(keys: StorageKeys, key: str) -> Response | None:
    """Return the gateway's answer to a request without a key of this project."""
    if is_api_key(keys, key):
        return None
    said = {
        "message": "Invalid API key" if key else "No API key found in request",
        "hint": "Double check your Supabase `anon` or `service_role` API key."
        if key
        else "No `apikey` request header or url param was found.",
    }
    return Response(json.dumps(said), 401, media_type="application/json")


async def _log_in(connection: Connection) -> None:
    """Become the login that PostgREST has, with the settings that it begins with."""
    await connection.execute("set session authorization authenticator")
    await connection.execute(_LOGIN_SETTINGS, [LOGIN])
    await connection.commit()


def _as_wished(answer: Answer, wishes: dict[str, Any] | None) -> Answer:
    """Return the answer with the status and the headers that a function has set."""
    if wishes is None or (wishes["status"] is None and wishes["headers"] is None):
        return answer
    given = [next(iter(one.items())) for one in json.loads(wishes["headers"] or "[]")]
    headers = (*answer.headers, *((str(name), str(value)) for name, value in given))
    return Answer(int(wishes["status"] or answer.status), answer.body, headers)


async def _no_path(_request: Request) -> Response:
    return RestRefusalError(404, "PGRST125", "Invalid path specified in request URL").response
