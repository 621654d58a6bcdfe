"""The binary form of broadcasts in protocol version 2.0.0.

A byte tells the kind, others the lengths of the fields, which follow; the payload comes last. It
may be JSON, or any bytes; only JSON reaches the clients of version 1.0.0.
"""

from dataclasses import dataclass
from typing import Final

from supabase_resilience.local.realtime._phoenix import VERSIONS, Frame, Message, to_json

_PUSH: Final = 3
_BROADCAST: Final = 4
_IS_JSON: Final = 1
_HEADER_SIZE: Final = 7


@dataclass(frozen=True, slots=True)
class BinaryBroadcast:
    """A broadcast for clients, as one of them has sent it."""

    topic: str
    event: str
    metadata: bytes
    payload: bytes
    is_json: bool

    def encode(self, version: str) -> str | bytes | None:
        """Return what goes over the wire; None if this version cannot say it."""
        if version != VERSIONS[0]:
            return self._binary()
        if not self.is_json:
            return None
        payload = self.payload.decode(errors="replace")
        json = f'{{"event":{to_json(self.event)},"payload":{payload},"type":"broadcast"}}'
        return Frame(self.topic, "broadcast", json).encode(version)

    def _binary(self) -> bytes:
        topic, event = self.topic.encode(), self.event.encode()
        header = bytes([_BROADCAST, len(topic), len(event), len(self.metadata), self.is_json])
        return b"".join([header, topic, event, self.metadata, self.payload])


def parse_binary(data: bytes) -> Message | None:
    """Read a broadcast from a client; None if it is malformed."""
    if len(data) < _HEADER_SIZE or data[0] != _PUSH:
        return None
    fields, payload = _split(data[_HEADER_SIZE:], data[1 : _HEADER_SIZE - 1])
    try:
        join_ref, ref, topic, event = (field.decode() for field in fields[:-1])
    except UnicodeDecodeError:
        return None
    frame = BinaryBroadcast(topic, event, fields[-1], payload, data[_HEADER_SIZE - 1] == _IS_JSON)
    return Message(topic, "broadcast", {}, ref or None, join_ref or None, frame)


def _split(data: bytes, lengths: bytes) -> tuple[list[bytes], bytes]:
    fields: list[bytes] = []
    for length in lengths:
        fields.append(data[:length])
        data = data[length:]
    return fields, data
