"""A client's connection and its channels: what waits to be sent to it, and no decisions.

Nobody waits for a client: messages go into its line, and one that doesn't read is cut off.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from vidgen_worker.sandbox.supabase.callers import Caller
from vidgen_worker.sandbox.supabase.realtime import phoenix
from vidgen_worker.sandbox.supabase.realtime.phoenix import Message, Version
from vidgen_worker.sandbox.supabase.realtime.subscriptions import Subscription

MOST_WAITING = 32 * 1024 * 1024
"""Letters for a client that doesn't read, a closed laptop: the others don't wait for it."""


@dataclass(eq=False)
class Channel:
    """One joined topic: who listens, and to what. `subscribed` once changes flow."""

    socket: "Socket"
    topic: str
    join_ref: str | None
    caller: Caller
    subscriptions: list[Subscription] = field(default_factory=list)
    is_subscribed: bool = False

    def push(self, event: str, payload: dict[str, Any]) -> None:
        """Send an event of the channel."""
        self.socket.send(Message(self.topic, event, payload, None, self.join_ref))

    def tell(self, status: str, message: str, extension: str = "postgres_changes") -> None:
        """Send a `system` message."""
        channel = self.topic.removeprefix("realtime:")
        said = {"extension": extension, "status": status, "message": message, "channel": channel}
        self.push("system", said)


@dataclass(eq=False)
class Socket:
    """One client's connection and its channels."""

    websocket: WebSocket
    version: Version
    api_key: str
    channels: dict[str, Channel] = field(default_factory=dict)
    cut: asyncio.Event = field(default_factory=asyncio.Event)
    _waiting: deque[str] = field(default_factory=deque)
    _waiting_letters: int = 0
    _filled: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, message: Message) -> None:
        """Put a message into the line; a client that doesn't take what is there is cut off."""
        text = phoenix.written(message, self.version)
        self._waiting.append(text)
        self._waiting_letters += len(text)
        self._filled.set()
        if self._waiting_letters > MOST_WAITING:
            self.cut.set()

    async def write(self) -> None:
        """Send what is in the line, for as long as the client is there."""
        try:
            while True:
                await self._filled.wait()
                while self._waiting:
                    text = self._waiting.popleft()
                    self._waiting_letters -= len(text)
                    await self.websocket.send_text(text)
                self._filled.clear()
        except (WebSocketDisconnect, RuntimeError):
            self.cut.set()
