"""The rules of Phoenix channels: join, leave, tokens, broadcast and presence.

A handler never waits, so the frames that it sends stay in order; what takes time (subscribing)
runs as a task of the channel. Not here: rate limits of broadcast and presence, and policies for
private channels.
"""

import asyncio
from typing import Any, Final

from supabase_resilience.local.realtime import _presence as presence
from supabase_resilience.local.realtime._admission import Admission
from supabase_resilience.local.realtime._bindings import binding_id
from supabase_resilience.local.realtime._joins import JoinError
from supabase_resilience.local.realtime._limits import JoinRateError
from supabase_resilience.local.realtime._phoenix import (
    PREFIX,
    Frame,
    Message,
    closed,
    crashed,
    disconnecting,
    refusal,
    reply,
    system,
    to_json,
)
from supabase_resilience.local.realtime._settings import Settings
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

_LONGEST_TIMER: Final = 300.0
_GOING_AWAY: Final = 1001


class Channels:
    """Answers the messages of clients."""

    def __init__(
        self,
        *,
        sockets: Sockets,
        admission: Admission,
        keyring: Keyring,
        subscriber: Subscriber,
        subscriptions: Subscriptions,
        settings: Settings,
    ) -> None:
        self._sockets = sockets
        self._admission = admission
        self._settings = settings
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
        socket.forget()
        for channel in list(socket.channels.values()):
            self._end(channel)

    def resubscribe(self) -> None:
        """Make every binding that is live so anew."""
        for channel in self._subscriptions.channels():
            self._subscribe(channel)

    def crash(self) -> None:
        """Lose every channel, as the real server does when a channel's process dies."""
        for channel in self._all():
            self._end(channel)
            channel.send(crashed(channel.topic, channel.join_ref))

    def announce_disconnect(self) -> None:
        """Tell every channel that its socket is about to be closed."""
        for channel in self._all():
            channel.send(disconnecting(channel.topic, channel.join_ref))

    def _all(self) -> list[Channel]:
        return [channel for socket in self._sockets for channel in socket.channels.values()]

    def _join(self, socket: Socket, message: Message) -> None:
        if not message.topic.startswith(PREFIX):
            socket.send(refusal(message, "unmatched topic"))
            return
        replaced = socket.channels.get(message.topic)
        try:
            channel = self._admission.admit(socket, message)
        except JoinError as error:
            self._refuse(socket, message, error, replaced)
        else:
            self._admit(channel, message, replaced)

    def _refuse(
        self, socket: Socket, message: Message, error: JoinError, replaced: Channel | None
    ) -> None:
        """Refuse a join, which ends an earlier one of its topic all the same."""
        if replaced is not None:
            self._end(replaced)

        def answer() -> None:
            socket.send(refusal(message, str(error)))
            if replaced is not None:
                socket.send(closed(replaced.topic, replaced.join_ref))
            if isinstance(error, JoinRateError):
                socket.start_close(_GOING_AWAY)

        socket.block(self._settings.join_error_delay, answer)

    def _admit(self, channel: Channel, message: Message, replaced: Channel | None) -> None:
        channel.socket.channels[channel.topic] = channel
        bindings = [{**params, "id": binding_id(params)} for params in channel.config.bindings]
        channel.send(reply(message, {"postgres_changes": bindings}))
        if replaced is not None:
            self._end(replaced)
            channel.send(closed(channel.topic, replaced.join_ref))
        if channel.config.presence_enabled:
            channel.send(presence.state(channel, self._peers(channel)))
        if channel.config.replication_ready:
            _tell(channel, "Replication connection established", status="ok")
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
        frame = message.broadcast or Frame(channel.topic, "broadcast", to_json(message.payload))
        for peer in self._peers(channel):
            if peer is not channel or channel.config.broadcast_self:
                peer.send(frame)
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
        frame = presence.track(channel, payload)
        for peer in self._peers(channel):
            peer.send(frame)

    def _peers(self, channel: Channel) -> list[Channel]:
        return self._sockets.joined(channel.topic, private=channel.config.private)

    def _subscribe(self, channel: Channel) -> None:
        for task in channel.tasks:
            task.cancel()
        if channel.config.bindings:
            task = asyncio.create_task(self._subscriber.subscribe(channel))
            channel.tasks.add(task)
            task.add_done_callback(channel.tasks.discard)

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
        _tell(channel, reason, status="error")
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


def _tell(channel: Channel, text: str, *, status: str) -> None:
    topic, join_ref = channel.topic, channel.join_ref
    channel.send(system(topic, join_ref, text, status=status, extension="system"))
