"""What the examples need of the REST API, on the real database as the real roles.

No PostgREST is to be had here, so this stands in for it: tables and functions by name, equality
filters, the role and claims of the token, statuses and error bodies as its manual gives them.
Nothing here decides who may do what: the database does.
"""

import asyncio
import threading
from dataclasses import dataclass, field
from typing import Any

import jwt
import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vidgen_worker.sandbox.supabase.keys import StorageKeys

ONE = "application/vnd.pgrst.object+json"
STATUSES = {"42501": 403, "23505": 409, "23503": 409, "22P02": 400}


@dataclass(frozen=True)
class Rest:
    """Routes to be served beside Storage's double."""

    admin_url: str
    keys: StorageKeys
    read: threading.Event = field(default_factory=threading.Event)
    """Set once a table was read: a program that watches a row has begun to."""

    def routes(self) -> list[Route]:
        """`/rest/v1/…`."""
        return [
            Route("/rest/v1/rpc/{name}", self._call, methods=["POST"]),
            Route("/rest/v1/{name}", self._table, methods=["GET", "POST"]),
        ]

    async def _call(self, request: Request) -> Response:
        arguments = await request.json()
        named = sql.SQL(", ").join(
            sql.SQL("{} => {}").format(sql.Identifier(k), sql.Literal(v))
            for k, v in arguments.items()
        )
        function = sql.Identifier("public", request.path_params["name"])
        query = sql.SQL("select * from {}({})").format(function, named)
        return await self._answer(request, as_json(query), one=True)

    async def _table(self, request: Request) -> Response:
        table = sql.Identifier("public", request.path_params["name"])
        one = ONE in request.headers.get("accept", "")
        if request.method == "GET":
            where = [
                sql.SQL("{} = {}").format(sql.Identifier(k), sql.Literal(v.removeprefix("eq.")))
                for k, v in request.query_params.items()
                if v.startswith("eq.")
            ]
            query = sql.SQL("select * from {} where {} order by created_at desc").format(
                table, sql.SQL(" and ").join([sql.SQL("true"), *where])
            )
            answer = await self._answer(request, as_json(query), one=one)
            self.read.set()
            return answer
        body = await request.json()
        row = body[0] if isinstance(body, list) else body
        prefer = request.headers.get("prefer", "")
        query = sql.SQL("insert into {} ({}) values ({}) {} {}").format(
            table,
            sql.SQL(", ").join(map(sql.Identifier, row)),
            sql.SQL(", ").join(map(sql.Literal, row.values())),
            sql.SQL("on conflict do nothing" if "ignore-duplicates" in prefer else ""),
            sql.SQL("returning *" if "representation" in prefer else ""),
        )
        returns = "representation" in prefer
        return await self._answer(
            request, as_json(query) if returns else query, one=one, status=201
        )

    async def _answer(
        self, request: Request, query: sql.Composed, *, one: bool, status: int = 200
    ) -> Response:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token == self.keys.secret:
            claims: dict[str, Any] = {"role": "service_role"}
        else:
            claims = jwt.decode(
                token, self.keys.jwt_secret, ["HS256"], options={"verify_aud": False}
            )
        try:
            rows = await asyncio.to_thread(self._run, claims, query)
        except psycopg.Error as error:
            diag = error.diag
            state = diag.sqlstate or ""
            code = int(state[2:]) if state.startswith("PT") else STATUSES.get(state, 400)
            body = {
                "code": state, "message": diag.message_primary,
                "details": diag.message_detail, "hint": diag.message_hint,
            }  # fmt: skip
            return JSONResponse(body, code)
        if one and len(rows) != 1:
            body = {"code": "PGRST116", "message": "not one row", "details": None, "hint": None}
            return JSONResponse(body, 406)
        return JSONResponse(rows[0] if one else rows, status)

    def _run(self, claims: dict[str, Any], query: sql.Composed) -> list[dict[str, Any]]:
        with psycopg.connect(self.admin_url, row_factory=dict_row) as conn, conn.transaction():
            conn.execute("select set_config('request.jwt.claims', %s::text, true)", [Jsonb(claims)])
            conn.execute(sql.SQL("set local role {}").format(sql.Identifier(claims["role"])))
            cursor = conn.execute(query)
            return [row["row"] for row in cursor.fetchall()] if cursor.description else []


def as_json(query: sql.Composable) -> sql.Composed:
    """The query with each row as PostgreSQL's own JSON: that is what clients get, and compare."""
    return sql.SQL("with r as ({}) select to_jsonb(r) as row from r").format(query)
