"""The rules of Phoenix channels: join, leave, tokens, broadcast and presence.

A handler never waits, so the frames that it sends stay in order; what takes time (subscribing)
runs as a task of the channel. Not here: rate limits, and policies for private channels.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from supabase_resilience.local.realtime import _presence as presence
from supabase_resilience.local.realtime._bindings import binding_id
from supabase_resilience.local.realtime._joins import JoinConfig, JoinError
from supabase_resilience.local.realtime._phoenix import (
    Message,
    closed,
    frame,
    refusal,
    reply,
    system,
    to_json,
)
from supabase_resilience.local.realtime._shapes import is_object
from supabase_resilience.local.realtime._sockets import Channel, Socket, Sockets
from supabase_resilience.local.realtime._subscriber import Subscriber
from supabase_resilience.local.realtime._subscriptions import Subscriptions
from supabase_resilience.local.realtime._tokens import (
    Keyring,
    TokenError,
    expiry_message,
    is_api_key,
    seconds_left,
)

_PREFIX: Final = "realtime:"
_LONGEST_TIMER: Final = 300.0


class Channels:
    """Answers the messages of clients."""

    def __init__(
        self,
        sockets: Sockets,
        keyring: Keyring,
        subscriber: Subscriber,
        subscriptions: Subscriptions,
    ) -> None:
        self._sockets = sockets
        self._keyring = keyring
        self._subscriber = subscriber
        self._subscriptions = subscriptions

    def handle(self, socket: Socket, message: Message) -> None:
        """Answer one message."""
        if message.event == "heartbeat" and message.topic == "phoenix":
            socket.send(reply(message, {}))
        elif message.event == "phx_join":
            self._join(socket, message)
        elif (channel := socket.channels.get(message.topic)) is not None:
            self._push(channel, message)
        elif message.event == "phx_leave":
            socket.send(reply(message, {}))
        else:
            socket.send(refusal(message, "unmatched topic"))

    def drop(self, socket: Socket) -> None:
        """End the channels of a socket that is gone."""
        for channel in list(socket.channels.values()):
            self._end(channel)

    def resubscribe(self) -> None:
        """Make every binding live anew."""
        for socket in self._sockets:
            for channel in socket.channels.values():
                self._subscribe(channel)

    def _join(self, socket: Socket, message: Message) -> None:
        if not message.topic.startswith(_PREFIX):
            socket.send(refusal(message, "unmatched topic"))
            return
        try:
            channel = self._new_channel(socket, message)
        except TokenError as error:
            socket.send(refusal(message, error.join_reason))
        except JoinError as error:
            socket.send(refusal(message, str(error)))
        else:
            self._admit(channel, message)

    def _new_channel(self, socket: Socket, message: Message) -> Channel:
        if message.topic == _PREFIX:
            raise JoinError("TopicNameRequired: You must provide a topic name")
        config = JoinConfig.parse(message.topic, message.payload)
        token = message.payload.get("access_token")
        if not isinstance(token, str) or is_api_key(token):
            token = socket.token
        claims = self._keyring.claims(token)
        key = config.presence_key or presence.new_key()
        return Channel(socket, message.topic, message.join_ref, config, token, claims, key)

    def _admit(self, channel: Channel, message: Message) -> None:
        replaced = channel.socket.channels.get(channel.topic)
        channel.socket.channels[channel.topic] = channel
        bindings = [{**params, "id": binding_id(params)} for params in channel.config.bindings]
        channel.send(reply(message, {"postgres_changes": bindings}))
        if replaced is not None:
            self._end(replaced)
            channel.send(closed(channel.topic, replaced.join_ref))
        if channel.config.presence_enabled:
            channel.send(presence.state(channel.topic, self._peers(channel)))
        self._watch_expiry(channel)
        self._subscribe(channel)

    def _push(self, channel: Channel, message: Message) -> None:
        if message.event == "phx_leave":
            self._leave(channel, message)
        elif message.join_ref not in {None, channel.join_ref}:
            return  # It was meant for a join that has been replaced.
        elif message.event == "access_token":
            self._refresh(channel, message.payload.get("access_token"))
        elif message.event == "broadcast":
            self._broadcast(channel, message)
        elif message.event == "presence":
            self._presence(channel, message)

    def _leave(self, channel: Channel, message: Message) -> None:
        if message.join_ref != channel.join_ref:
            return
        self._end(channel)
        channel.send(reply(message, {}))
        channel.send(closed(channel.topic, channel.join_ref))

    def _refresh(self, channel: Channel, token: Any) -> None:
        if not isinstance(token, str) or is_api_key(token) or token == channel.token:
            return
        try:
            channel.claims = self._keyring.claims(token)
        except TokenError as error:
            self._shut(channel, error.pushed)
            return
        channel.token = token
        self._watch_expiry(channel)
        self._subscribe(channel)

    def _broadcast(self, channel: Channel, message: Message) -> None:
        text = frame(channel.topic, "broadcast", to_json(message.payload))
        for peer in self._peers(channel):
            if peer is not channel or channel.config.broadcast_self:
                peer.send(text)
        if channel.config.broadcast_ack:
            channel.send(reply(message, {}))

    def _presence(self, channel: Channel, message: Message) -> None:
        action, payload = message.payload.get("event"), message.payload.get("payload", {})
        if action == "track" and not is_object(payload):
            channel.send(refusal(message, "Presence track payload must be a map"))
            return
        channel.send(reply(message, {}))
        if action == "track":
            self._show(channel, payload)
        elif action == "untrack":
            self._show(channel, None)

    def _show(self, channel: Channel, payload: dict[str, Any] | None) -> None:
        """Change what a channel shows of itself and tell its topic."""
        if payload is None and channel.tracked is None:
            return
        text = presence.track(channel, payload)
        for peer in self._peers(channel):
            peer.send(text)

    def _peers(self, channel: Channel) -> list[Channel]:
        return self._sockets.joined(channel.topic, private=channel.config.private)

    def _subscribe(self, channel: Channel) -> None:
        for task in channel.tasks:
            task.cancel()
        if channel.config.bindings:
            _spawn(channel, self._subscriber.subscribe(channel))

    def _watch_expiry(self, channel: Channel) -> None:
        if channel.expiry is not None:
            channel.expiry.cancel()
        left = seconds_left(channel.claims)
        if left is not None:
            loop = asyncio.get_running_loop()
            # An event loop refuses delays of many days, so far-off expiries are looked at again.
            delay = min(max(left, 0.0), _LONGEST_TIMER)
            channel.expiry = loop.call_later(delay, self._check_expiry, channel)

    def _check_expiry(self, channel: Channel) -> None:
        left = seconds_left(channel.claims)
        if left is not None and left <= 0:
            self._shut(channel, expiry_message(-left))
        else:
            self._watch_expiry(channel)

    def _shut(self, channel: Channel, reason: str) -> None:
        """Put a client out of its channel; the socket stays."""
        channel.send(system(channel.topic, reason, status="error", extension="system"))
        self._end(channel)
        channel.send(closed(channel.topic, channel.join_ref))

    def _end(self, channel: Channel) -> None:
        for task in channel.tasks:
            task.cancel()
        if channel.expiry is not None:
            channel.expiry.cancel()
        self._subscriptions.remove(channel)
        if channel.socket.channels.get(channel.topic) is channel:
            del channel.socket.channels[channel.topic]
        self._show(channel, None)


def _spawn(channel: Channel, work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work)
    channel.tasks.add(task)
    task.add_done_callback(channel.tasks.discard)
