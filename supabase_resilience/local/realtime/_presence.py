"""Presence: who is on a topic, told to its channels as a state and then as differences."""

import secrets
from collections.abc import Iterable
from typing import Any

from supabase_resilience.local.realtime._phoenix import frame, to_json
from supabase_resilience.local.realtime._sockets import Channel

Meta = dict[str, Any]


def new_key() -> str:
    """Make up a key for a client that gave none."""
    return secrets.token_hex(16)


def track(channel: Channel, payload: Meta | None) -> str:
    """Set what the channel shows (None: nothing any more) and return the frame for its topic."""
    before = channel.tracked
    channel.tracked = None if payload is None else _meta(payload, before)
    joins, leaves = _entry(channel, channel.tracked), _entry(channel, before)
    return frame(channel.topic, "presence_diff", to_json({"joins": joins, "leaves": leaves}))


def state(topic: str, channels: Iterable[Channel]) -> str:
    """Return the frame that lists everybody on the topic."""
    present: dict[str, dict[str, list[Meta]]] = {}
    for channel in channels:
        if channel.tracked is not None:
            entry = present.setdefault(channel.presence_key, {"metas": []})
            entry["metas"].append(channel.tracked)
    return frame(topic, "presence_state", to_json(present))


def _meta(payload: Meta, before: Meta | None) -> Meta:
    previous = {} if before is None else {"phx_ref_prev": before["phx_ref"]}
    return {"phx_ref": secrets.token_urlsafe(12), **previous, **payload}


def _entry(channel: Channel, meta: Meta | None) -> dict[str, Any]:
    return {} if meta is None else {channel.presence_key: {"metas": [meta]}}
