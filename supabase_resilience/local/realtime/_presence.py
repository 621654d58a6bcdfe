"""Presence: who is on a topic, told to its channels as a state and then as differences."""

import secrets
from collections.abc import Iterable
from typing import Any

from supabase_resilience.local.realtime._phoenix import Frame, to_json
from supabase_resilience.local.realtime._sockets import Channel

Meta = dict[str, Any]


def new_key() -> str:
    """Make up a key for a client that gave none."""
    return secrets.token_hex(16)


def track(channel: Channel, payload: Meta | None) -> Frame:
    """Set what the channel shows (None: nothing any more) and return the frame for its topic."""
    before = channel.tracked
    channel.tracked = None if payload is None else _meta(payload, before)
    joins, leaves = _entry(channel, channel.tracked), _entry(channel, before)
    return Frame(channel.topic, "presence_diff", to_json({"joins": joins, "leaves": leaves}))


def state(listener: Channel, channels: Iterable[Channel]) -> Frame:
    """Return the frame that tells one channel of all on its topic."""
    present: dict[str, dict[str, list[Meta]]] = {}
    for channel in channels:
        if channel.tracked is not None:
            entry = present.setdefault(channel.presence_key, {"metas": []})
            entry["metas"].append(channel.tracked)
    payload = to_json(present)
    return Frame(listener.topic, "presence_state", payload, join_ref=listener.join_ref)


def _meta(payload: Meta, before: Meta | None) -> Meta:
    previous = {} if before is None else {"phx_ref_prev": before["phx_ref"]}
    return {"phx_ref": secrets.token_urlsafe(12), **previous, **payload}


def _entry(channel: Channel, meta: Meta | None) -> dict[str, Any]:
    return {} if meta is None else {channel.presence_key: {"metas": [meta]}}
