"""Messages of clients and frames for them, in both versions of Phoenix's serializer.

Version 1.0.0 sends JSON objects, version 2.0.0 arrays, and a binary form for broadcasts. Payloads
are JSON text before they come here (those of changes are built as text), and stay so.
"""

import json
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

from supabase_resilience.local.realtime._shapes import as_list, as_object, as_text, is_object

VERSIONS: Final = ("1.0.0", "2.0.0")
PREFIX: Final = "realtime:"

to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Sendable(Protocol):
    """What can be sent to a client."""

    def encode(self, version: str) -> str | bytes | None:
        """Return what goes over the wire; None if this version of the protocol cannot say it."""
        ...


@dataclass(frozen=True, slots=True)
class Message:
    """A frame from a client; `broadcast` is what to send on, if it came in binary."""

    topic: str
    event: str
    payload: dict[str, Any]
    ref: str | None
    join_ref: str | None
    broadcast: Sendable | None = None

    @classmethod
    def parse(cls, text: str | bytes) -> Self | None:
        """Read a text frame; None if it is malformed (Realtime drops those without an answer)."""
        try:
            raw = json.loads(text)
        except ValueError:
            return None
        fields = raw if is_object(raw) else _fields_of_array(as_list(raw))
        topic, event = as_text(fields.get("topic")), as_text(fields.get("event"))
        if not topic or not event or "ref" not in fields:
            return None
        payload = as_object(fields.get("payload"))
        return cls(topic, event, payload, fields["ref"], fields.get("join_ref"))


def _fields_of_array(values: list[Any]) -> dict[str, Any]:
    names = ("join_ref", "ref", "topic", "event", "payload")
    return dict(zip(names, values, strict=True)) if len(values) == len(names) else {}


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame for a client; `payload` is JSON text. Only version 2.0.0 shows `join_ref`."""

    topic: str
    event: str
    payload: str
    ref: str | None = None
    join_ref: str | None = None

    def encode(self, version: str) -> str | bytes | None:
        """Return what goes over the wire; None if this version cannot say it."""
        if version == VERSIONS[0]:
            return (
                f'{{"event":{to_json(self.event)},"payload":{self.payload},'
                f'"ref":{to_json(self.ref)},"topic":{to_json(self.topic)}}}'
            )
        return (
            f"[{to_json(self.join_ref)},{to_json(self.ref)},{to_json(self.topic)},"
            f"{to_json(self.event)},{self.payload}]"
        )


def reply(message: Message, response: dict[str, Any], *, status: str = "ok") -> Frame:
    """Answer a message of a client."""
    payload = to_json({"response": response, "status": status})
    return Frame(message.topic, "phx_reply", payload, message.ref, message.join_ref)


def refusal(message: Message, reason: str) -> Frame:
    """Answer a message of a client with an error."""
    return reply(message, {"reason": reason}, status="error")


def system(topic: str, join_ref: str | None, text: str, *, status: str, extension: str) -> Frame:
    """Tell a channel how its subscription or token fares."""
    name = topic.removeprefix(PREFIX)
    payload = {"channel": name, "extension": extension, "message": text, "status": status}
    return Frame(topic, "system", to_json(payload), join_ref=join_ref)


def closed(topic: str, join_ref: str | None) -> Frame:
    """Tell a client that the channel of that join is over."""
    return Frame(topic, "phx_close", "{}", join_ref, join_ref)


def crashed(topic: str, join_ref: str | None) -> Frame:
    """Tell a client that the channel of that join has died."""
    return Frame(topic, "phx_error", to_json({"reason": "channel_crash"}), join_ref, join_ref)


def disconnecting(topic: str, join_ref: str | None) -> Frame:
    """Tell a channel that its socket is about to be closed; `channel` is missing there, too."""
    payload = {"extension": "system", "message": "Server requested disconnect", "status": "ok"}
    return Frame(topic, "system", to_json(payload), join_ref=join_ref)
