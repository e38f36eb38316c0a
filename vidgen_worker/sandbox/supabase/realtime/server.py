"""Realtime's double over WebSocket: `/realtime/v1/websocket`.

As the real one it answers a join before changes flow, says so with a `system` message, sends a
change to whom it is visible only, and never sends what happened while nobody listened.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from vidgen_worker.sandbox.supabase.callers import (
    Caller,
    TokenError,
    caller_of,
    claims_of,
    is_api_key,
)
from vidgen_worker.sandbox.supabase.keys import StorageKeys
from vidgen_worker.sandbox.supabase.realtime import phoenix, visibility
from vidgen_worker.sandbox.supabase.realtime.channels import Channel, Socket
from vidgen_worker.sandbox.supabase.realtime.pgoutput import Change
from vidgen_worker.sandbox.supabase.realtime.phoenix import Message, MessageError
from vidgen_worker.sandbox.supabase.realtime.reader import Connection, SlotReader, opened
from vidgen_worker.sandbox.supabase.realtime.subscriptions import (
    Subscription,
    SubscriptionError,
    check,
)
from vidgen_worker.sandbox.supabase.realtime.visibility import Catalog

SERVICE_RESTART = 1012
CLOSE_SECONDS = 1.0
Tell = Callable[[str, object], None]


class _CutError(Exception):
    """The connection is to end."""


class RealtimeDouble:
    """The route and its state. `tell` hears what is `subscribed`, `sent` and `withheld`."""

    def __init__(self, admin_url: str, keys: StorageKeys, tell: Tell | None = None) -> None:
        """Read the database of `admin_url`, a superuser's URL."""
        self._admin_url = admin_url
        self._keys = keys
        self._tell: Tell = tell or (lambda _what, _of: None)
        self._reader = SlotReader(admin_url, self._deliver, self._database_ended)
        self._sockets: set[Socket] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._away = False

    def routes(self) -> list[WebSocketRoute]:
        """`/realtime/v1/websocket`."""
        return [WebSocketRoute("/realtime/v1/websocket", self._serve)]

    @asynccontextmanager
    async def lifespan(self, _app: object) -> AsyncIterator[None]:
        """End the slot with the application."""
        self._loop = asyncio.get_running_loop()
        yield
        await self._reader.stop()

    def cut(self) -> None:
        """End every connection, and refuse new ones until `back`. For any thread."""
        self._away = True
        for socket in list(self._sockets):
            if self._loop is not None:
                self._loop.call_soon_threadsafe(socket.cut.set)

    def back(self) -> None:
        """Accept connections again."""
        self._away = False

    # A connection ------------------------------------------------------------------------------

    async def _serve(self, websocket: WebSocket) -> None:
        version, key = websocket.query_params.get("vsn", "1.0.0"), _key(websocket)
        if self._away or version not in ("1.0.0", "2.0.0") or not self._is_known(key):
            await websocket.close()
            return
        await websocket.accept()
        socket = Socket(websocket, "2.0.0" if version == "2.0.0" else "1.0.0", key)
        self._sockets.add(socket)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_raise_when(socket.cut))
                tasks.create_task(socket.write())
                while True:
                    text = await websocket.receive_text()
                    if (channel := self._answer(socket, text)) is not None:
                        tasks.create_task(self._subscribe(channel))
        except* _CutError:
            await _close(websocket)
        except* (WebSocketDisconnect, KeyError):
            pass  # the client has gone; a frame that is no text has no "text"
        finally:
            self._sockets.discard(socket)
            if not any(one.is_subscribed for one in self._channels()):
                await self._reader.stop()

    def _channels(self) -> list[Channel]:
        return [channel for socket in self._sockets for channel in socket.channels.values()]

    def _is_known(self, key: str) -> bool:
        if is_api_key(self._keys, key):
            return True
        try:
            claims_of(self._keys, key)
        except TokenError:
            return False
        return True

    # Messages ----------------------------------------------------------------------------------

    def _answer(self, socket: Socket, text: str) -> Channel | None:
        """Answer one message; return a channel that it has joined."""
        try:
            message = phoenix.read(text, socket.version)
        except MessageError:
            return None
        match message.event:
            case "phx_join":
                return self._join(socket, message)
            case "phx_leave":
                socket.channels.pop(message.topic, None)
                socket.send(message.reply("ok", {}))
                socket.send(Message(message.topic, "phx_close", {}, message.ref, message.join_ref))
            case "access_token":
                self._renew(socket, message)
            case "heartbeat":
                self._end_expired(socket)
                socket.send(message.reply("ok", {}))
            case _:
                # Broadcast and presence are taken and go nowhere.
                socket.send(message.reply("ok", {}))
        return None

    def _join(self, socket: Socket, message: Message) -> Channel | None:
        token = message.payload.get("access_token") or socket.api_key
        try:
            asked = (message.payload.get("config") or {}).get("postgres_changes") or []
            caller = self._caller(socket, str(token))
            channel = Channel(socket, message.topic, message.join_ref or message.ref, caller)
            channel.subscriptions = [
                Subscription.of(number, one) for number, one in enumerate(asked, 1)
            ]
        except TokenError as error:
            reason = f"{_jwt_error(error)}: {error.message}"
            socket.send(message.reply("error", {"reason": reason}))
            return None
        except SubscriptionError as error:
            socket.send(message.reply("error", {"reason": str(error)}))
            return None
        except (AttributeError, TypeError):
            socket.send(message.reply("error", {"reason": "a list of objects was expected"}))
            return None
        socket.channels[message.topic] = channel
        changes = [
            {**one, "id": subscription.id}
            for one, subscription in zip(asked, channel.subscriptions, strict=True)
        ]
        socket.send(message.reply("ok", {"postgres_changes": changes}))
        channel.push("presence_state", {})
        return channel if changes else None

    def _renew(self, socket: Socket, message: Message) -> None:
        """Take a channel's new token; one that identifies nobody ends the channel."""
        channel = socket.channels.get(message.topic)
        token = message.payload.get("access_token")
        if channel is None or not isinstance(token, str) or token.startswith("sb_"):
            return
        try:
            channel.caller = self._caller(socket, token)
        except TokenError as error:
            self._end(channel, error.message)

    def _end_expired(self, socket: Socket) -> None:
        for channel in list(socket.channels.values()):
            if channel.caller.is_expired:
                self._end(channel, "Access token has expired")

    def _end(self, channel: Channel, reason: str) -> None:
        channel.socket.channels.pop(channel.topic, None)
        channel.tell("error", reason, "system")
        channel.push("phx_close", {})

    def _caller(self, socket: Socket, token: str) -> Caller:
        """Return who a token is. Raises `TokenError`."""
        key = token if token.startswith("sb_") else socket.api_key
        return caller_of(self._keys, key, f"Bearer {token}")

    # Changes -----------------------------------------------------------------------------------

    async def _subscribe(self, channel: Channel) -> None:
        """Let changes flow to a channel, and say so."""
        try:
            await self._reader.started()
            async with opened(self._admin_url) as connection:
                for subscription in channel.subscriptions:
                    await check(connection, subscription, channel.caller)
        except (SubscriptionError, psycopg.Error) as error:
            what = "Unable to subscribe to changes with given parameters"
            said = error.diag.message_primary if isinstance(error, psycopg.Error) else None
            channel.tell("error", f"{what}. {said or str(error).strip()}")
            return
        channel.is_subscribed = True
        channel.tell("ok", "Subscribed to PostgreSQL")
        self._tell("subscribed", channel.caller.claims)

    async def _deliver(self, connection: Connection, changes: Sequence[Change]) -> None:
        """Send changes to whoever asked for them and may see them."""
        catalog = Catalog(connection)
        for change in changes:
            listening = [
                (channel, [one for one in channel.subscriptions if one.concerns(change)])
                for channel in self._channels()
                if channel.is_subscribed
            ]
            wanted = [(channel, found) for channel, found in listening if found]
            table = await catalog.describe(change.schema, change.table)
            if not wanted or table is None:
                continue
            try:
                await self._deliver_one(catalog, table, change, wanted)
            except psycopg.DataError:
                # Its columns were of other types when it was written.
                self._tell("withheld", change)

    async def _deliver_one(
        self,
        catalog: Catalog,
        table: visibility.Described,
        change: Change,
        wanted: list[tuple[Channel, list[Subscription]]],
    ) -> None:
        connection = catalog.connection
        told: dict[str, dict[str, Any]] = {}
        for channel, found in wanted:
            role = channel.caller.role
            if channel.caller.is_expired:
                self._end(channel, "Access token has expired")
                continue
            ids = [
                one.id
                for one in found
                if await visibility.passes(connection, table, change, one.conditions)
            ]
            if not ids:
                continue
            if role not in told:
                allowed = await catalog.selectable(table, role)
                told[role] = await visibility.payload(connection, table, change, allowed)
            data = told[role]
            is_refused = "commit_timestamp" not in data
            if is_refused or await visibility.may_see(connection, table, change, channel.caller):
                self._tell("sent", data)
                channel.push("postgres_changes", {"ids": ids, "data": data})
            else:
                self._tell("withheld", change)

    async def _database_ended(self, error: psycopg.Error) -> None:
        """Let every channel join again: what happens until then is lost to it."""
        for channel in self._channels():
            channel.socket.channels.pop(channel.topic, None)
            channel.tell("error", f"The connection to the database ended: {error}")
            channel.push("phx_error", {})


def _key(websocket: WebSocket) -> str:
    return websocket.query_params.get("apikey") or websocket.headers.get("apikey", "")


def _jwt_error(error: TokenError) -> str:
    return "InvalidJWTToken" if error.code == "PGRST303" else "MalformedJWT"


async def _close(websocket: WebSocket) -> None:
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await websocket.close(SERVICE_RESTART)
    except (RuntimeError, TimeoutError):
        return  # it is closed already, or its client takes nothing


async def _raise_when(cut: asyncio.Event) -> None:
    await cut.wait()
    raise _CutError
