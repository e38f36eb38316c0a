"""Phoenix messages as Realtime's clients write them: versions 1.0.0 (objects) and 2.0.0 (lists).

Source: https://supabase.com/docs/guides/realtime/protocol. It never opens a socket.
"""

import json
from dataclasses import dataclass
from typing import Any, Literal

Version = Literal["1.0.0", "2.0.0"]


class MessageError(Exception):
    """A message that is no Phoenix message."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message, either way."""

    topic: str
    event: str
    payload: dict[str, Any]
    ref: str | None = None
    join_ref: str | None = None

    def reply(self, status: Literal["ok", "error"], response: dict[str, Any]) -> "Message":
        """Return the reply to this message."""
        payload = {"status": status, "response": response}
        return Message(self.topic, "phx_reply", payload, self.ref, self.join_ref)


def read(text: str, version: Version) -> Message:
    """Return a received message. Raises `MessageError`."""
    try:
        given = json.loads(text)
        if version == "2.0.0":
            join_ref, ref, topic, event, payload = given
        else:
            join_ref, ref = given.get("join_ref"), given.get("ref")
            topic, event, payload = given["topic"], given["event"], given["payload"]
        return Message(str(topic), str(event), dict(payload or {}), ref, join_ref)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise MessageError(f"This is no Phoenix message of version {version}") from error


def written(message: Message, version: Version) -> str:
    """Return a message as it is sent."""
    if version == "2.0.0":
        parts = (message.join_ref, message.ref, message.topic, message.event, message.payload)
        return json.dumps(parts)
    return json.dumps(
        {
            "topic": message.topic,
            "event": message.event,
            "payload": message.payload,
            "ref": message.ref,
            "join_ref": message.join_ref,
        }
    )
