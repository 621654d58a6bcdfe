"""What a `phx_join` asks for; Realtime replaces most wrong shapes by defaults, and so does this."""

from dataclasses import dataclass
from typing import Any, Self

from supabase_resilience.local.realtime._shapes import (
    as_flag,
    as_list,
    as_object,
    as_text,
    is_object,
)


class JoinError(ValueError):
    """The payload is beyond reading; the message is the reason that the client is sent."""


@dataclass(frozen=True, slots=True)
class JoinConfig:
    """The configuration of a channel; `bindings` are kept as sent, for the reply repeats them."""

    private: bool
    broadcast_self: bool
    broadcast_ack: bool
    presence_enabled: bool
    presence_key: str
    replication_ready: bool
    bindings: tuple[dict[str, Any], ...]

    @classmethod
    def parse(cls, topic: str, payload: dict[str, Any]) -> Self:
        """Read the payload of a join. Raises `JoinError`."""
        config = payload.get("config", {"postgres_changes": [_binding_in_topic(topic)]})
        if not is_object(config):
            raise JoinError("UnknownErrorOnChannel: no function clause matching in Access.get/3")
        return cls._of(config)

    @classmethod
    def _of(cls, config: dict[str, Any]) -> Self:
        if "replay" in as_object(config.get("broadcast")) and not as_flag(config.get("private")):
            raise JoinError("UnableToReplayMessages: Replay is not allowed for public channels")
        broadcast, presence = as_object(config.get("broadcast")), as_object(config.get("presence"))
        bindings = as_list(config.get("postgres_changes"))
        return cls(
            private=as_flag(config.get("private")),
            broadcast_self=as_flag(broadcast.get("self")),
            broadcast_ack=as_flag(broadcast.get("ack")),
            presence_enabled=as_flag(presence.get("enabled")),
            presence_key=as_text(presence.get("key")),
            replication_ready=as_flag(broadcast.get("replication_ready")),
            bindings=tuple(filter(is_object, bindings)),
        )


def _binding_in_topic(topic: str) -> dict[str, Any]:
    """Read a topic of the first protocol, `realtime:schema:table:filter`."""
    parts = topic.split(":", 3)[1:]
    return dict(zip(("schema", "table", "filter"), parts, strict=False))
