"""Frames of the Phoenix protocol, serializer version 1.0.0: JSON objects, one per frame.

Payloads of changes are JSON text already, so frames are put together as text. A second serializer
would be another `Message.parse` and another `frame`.
"""

import json
from dataclasses import dataclass
from typing import Any, Final, Self

from supabase_resilience.local.realtime._shapes import as_object, as_text

VERSION: Final = "1.0.0"

to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Message:
    """A frame from a client."""

    topic: str
    event: str
    payload: dict[str, Any]
    ref: str | None
    join_ref: str | None

    @classmethod
    def parse(cls, text: str | bytes) -> Self | None:
        """Read a frame; None if it is malformed (Realtime drops those without an answer)."""
        try:
            raw = as_object(json.loads(text))
        except ValueError:
            return None
        topic, event = as_text(raw.get("topic")), as_text(raw.get("event"))
        if not topic or not event or "ref" not in raw:
            return None
        return cls(topic, event, as_object(raw.get("payload")), raw["ref"], raw.get("join_ref"))


def frame(topic: str, event: str, payload: str, ref: str | None = None) -> str:
    """Put a frame together; `payload` is JSON text."""
    return (
        f'{{"event":{to_json(event)},"payload":{payload},'
        f'"ref":{to_json(ref)},"topic":{to_json(topic)}}}'
    )


def reply(message: Message, response: dict[str, Any], *, status: str = "ok") -> str:
    """Answer a message of a client."""
    payload = to_json({"response": response, "status": status})
    return frame(message.topic, "phx_reply", payload, message.ref)


def refusal(message: Message, reason: str) -> str:
    """Answer a message of a client with an error."""
    return reply(message, {"reason": reason}, status="error")


def system(topic: str, text: str, *, status: str, extension: str) -> str:
    """Tell a channel how its subscription or token fares."""
    name = topic.partition(":")[2]
    payload = {"channel": name, "extension": extension, "message": text, "status": status}
    return frame(topic, "system", to_json(payload))


def closed(topic: str, join_ref: str | None) -> str:
    """Tell a client that the channel of that join is over."""
    return frame(topic, "phx_close", "{}", join_ref)
