"""What supabase-js needs of Realtime to watch rows: Phoenix messages and `postgres_changes`.

No Realtime is to be had here, so this stands in for it as its protocol page describes it
(https://supabase.com/docs/guides/realtime/protocol, version 2.0.0). As the real one it reads a
logical slot that begins with the subscription, answers the join before changes flow, sends a change
only to whom row level security shows the row, and never sends what happened while nobody listened.
"""

import asyncio
import queue
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import jwt
import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from vidgen_worker.sandbox.supabase.keys import StorageKeys

COLUMN = re.compile(r"(\w+)\[[^\]]+\]:('(?:[^']|'')*'|\S+)")


POLL = 0.05
"""Seconds between two looks at the slot; Realtime's own default is 0.1."""
SERVICE_RESTART = 1012

Message = list[Any]
"""[join_ref, ref, topic, event, payload]"""


class _CutError(Exception):
    """The test has ended this connection."""


@dataclass(frozen=True)
class Channel:
    """One joined topic: who listens, and to what."""

    join_ref: str
    topic: str
    claims: dict[str, Any]
    changes: list[dict[str, Any]]


@dataclass
class Realtime:
    """A route to be served beside Storage's double and the REST API."""

    admin_url: str
    keys: StorageKeys
    subscribed: "queue.SimpleQueue[dict[str, Any]]" = field(default_factory=queue.SimpleQueue)
    """The claims of each subscription, once changes flow to it."""
    sent: list[dict[str, Any]] = field(default_factory=list)
    """Every change that was sent."""
    withheld: "queue.SimpleQueue[str]" = field(default_factory=queue.SimpleQueue)
    """Every change that was asked for by one who may not see the row."""
    _away: bool = False
    _cuts: dict[asyncio.Event, asyncio.AbstractEventLoop] = field(default_factory=dict)

    def routes(self) -> list[WebSocketRoute]:
        """`/realtime/v1/websocket`."""
        return [WebSocketRoute("/realtime/v1/websocket", self._serve)]

    def cut(self) -> None:
        """End every connection, and refuse new ones until `back`."""
        self._away = True
        for cut, loop in list(self._cuts.items()):
            loop.call_soon_threadsafe(cut.set)

    def back(self) -> None:
        """Accept connections again."""
        self._away = False

    async def _serve(self, socket: WebSocket) -> None:
        if self._away or socket.query_params.get("vsn") != "2.0.0":
            await socket.close()
            return
        await socket.accept()
        cut = asyncio.Event()
        self._cuts[cut] = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_raise_when(cut))
                async for message in _messages(socket):
                    channel = await self._answer(socket, message)
                    if channel is not None:
                        tasks.create_task(self._stream(socket, channel))
        except* _CutError:
            await socket.close(SERVICE_RESTART)
        except* WebSocketDisconnect:
            pass  # the client has gone
        finally:
            del self._cuts[cut]

    async def _answer(self, socket: WebSocket, message: Message) -> Channel | None:
        """Reply to one message; a channel if it has joined one."""
        join_ref, ref, topic, event, payload = message
        channel: Channel | None = None
        reply: dict[str, Any] = {"status": "ok", "response": {}}
        if event == "phx_join":
            token = payload.get("access_token") or socket.query_params["apikey"]
            asked = payload["config"].get("postgres_changes", [])
            try:
                claims = self._claims(token)
            except jwt.InvalidTokenError as error:
                reply = {"status": "error", "response": {"reason": f"MalformedJWT: {error}"}}
            else:
                changes = [{"id": number, **change} for number, change in enumerate(asked, 1)]
                reply["response"] = {"postgres_changes": changes}
                channel = Channel(join_ref, topic, claims, changes)
        await socket.send_json([join_ref, ref, topic, "phx_reply", reply])
        return channel

    def _claims(self, token: str) -> dict[str, Any]:
        if token == self.keys.anon:
            return {"role": "anon"}
        claims: dict[str, Any] = jwt.decode(
            token, self.keys.jwt_secret, ["HS256"], options={"verify_aud": False}
        )
        return claims

    async def _stream(self, socket: WebSocket, channel: Channel) -> None:
        """Send what happens from now on, until the connection ends."""
        slot = f"realtime_{uuid4().hex[:12]}"
        async with await psycopg.AsyncConnection.connect(
            self.admin_url, autocommit=True, row_factory=dict_row
        ) as conn:
            await conn.execute(
                "select pg_create_logical_replication_slot(%s, 'test_decoding', true)", (slot,)
            )
            told = {
                "message": "Subscribed to PostgreSQL", "status": "ok",
                "extension": "postgres_changes", "channel": channel.topic,
            }  # fmt: skip
            await socket.send_json([channel.join_ref, None, channel.topic, "system", told])
            self.subscribed.put(channel.claims)
            while True:
                cursor = await conn.execute(
                    "select data from pg_logical_slot_get_changes(%s, null, null)", (slot,)
                )
                for row in await cursor.fetchall():
                    await self._send(socket, conn, channel, row["data"])
                await asyncio.sleep(POLL)

    async def _send(
        self,
        socket: WebSocket,
        conn: psycopg.AsyncConnection[dict[str, Any]],
        channel: Channel,
        line: str,
    ) -> None:
        """Send one line of the slot to whoever asked for it and may see it."""
        for change in channel.changes:
            table, (column, _, value) = change["table"], change["filter"].partition("=eq.")
            head = f"table {change['schema']}.{table}: {change['event']}:"
            if not line.startswith(head):
                continue
            texts = {name: _value(text) for name, text in COLUMN.findall(line.removeprefix(head))}
            if texts.get(column) != value:
                continue
            if not await _may_see(conn, channel.claims, table, texts):
                self.withheld.put(line)
                continue
            data = {
                "schema": change["schema"], "table": table, "type": change["event"],
                "commit_timestamp": "2026-01-01T00:00:00.000Z", "errors": None,
                "columns": await _columns(conn, table), "old_record": {"id": texts["id"]},
                "record": await _record(conn, table, texts),
            }  # fmt: skip
            self.sent.append(data)
            payload = {"ids": [change["id"]], "data": data}
            await socket.send_json([None, None, channel.topic, "postgres_changes", payload])


async def _raise_when(cut: asyncio.Event) -> None:
    await cut.wait()
    raise _CutError


async def _messages(socket: WebSocket) -> AsyncIterator[Message]:
    while True:
        yield await socket.receive_json()


def _value(text: str) -> str | None:
    """A column as test_decoding writes it: null, 'quoted' or bare."""
    if text == "null":
        return None
    return text[1:-1].replace("''", "'") if text.startswith("'") else text


async def _may_see(
    conn: psycopg.AsyncConnection[dict[str, Any]],
    claims: dict[str, Any],
    table: str,
    texts: dict[str, str | None],
) -> bool:
    """Whether this user's own SELECT finds the row; a role without the right sees nothing."""
    row = sql.SQL("select id from {} where id = %s").format(sql.Identifier("public", table))
    try:
        async with conn.transaction():
            await conn.execute(
                "select set_config('request.jwt.claims', %s::text, true)", (Jsonb(claims),)
            )
            await conn.execute(
                sql.SQL("set local role {}").format(sql.Identifier(str(claims["role"])))
            )
            cursor = await conn.execute(row, (texts["id"],))
            return await cursor.fetchone() is not None
    except psycopg.errors.InsufficientPrivilege:
        return False


async def _columns(
    conn: psycopg.AsyncConnection[dict[str, Any]], table: str
) -> list[dict[str, Any]]:
    cursor = await conn.execute(
        "select a.attname as name, t.typname as type from pg_attribute as a"
        "  join pg_type as t on t.oid = a.atttypid"
        " where a.attrelid = %s::regclass and a.attnum > 0 order by a.attnum",
        (f"public.{table}",),
    )
    return await cursor.fetchall()


async def _record(
    conn: psycopg.AsyncConnection[dict[str, Any]], table: str, texts: dict[str, str | None]
) -> dict[str, Any]:
    """The row as JSON, as PostgreSQL writes it."""
    cursor = await conn.execute(
        sql.SQL("select to_jsonb(jsonb_populate_record(null::{}, %s)) as record").format(
            sql.Identifier("public", table)
        ),
        (Jsonb(texts),),
    )
    row = await cursor.fetchone()
    assert row is not None
    record: dict[str, Any] = row["record"]
    return record
