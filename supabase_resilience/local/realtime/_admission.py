"""Who may join: limits first, then what the client wants and who it is, as in the real server."""

from supabase_resilience.local.realtime import _presence as presence
from supabase_resilience.local.realtime._joins import JoinConfig, JoinError
from supabase_resilience.local.realtime._limits import Limits
from supabase_resilience.local.realtime._phoenix import PREFIX, Message
from supabase_resilience.local.realtime._sockets import Channel, Socket
from supabase_resilience.local.realtime._tokens import Claims, Keyring, TokenError, is_api_key


class Admission:
    """Makes channels of joins."""

    def __init__(self, keyring: Keyring, limits: Limits) -> None:
        self._keyring = keyring
        self._limits = limits

    def admit(self, socket: Socket, message: Message) -> Channel:
        """Return the channel that a join asks for. Raises `JoinError`."""
        if message.topic == PREFIX:
            raise JoinError("TopicNameRequired: You must provide a topic name")
        self._limits.check_join(socket, message.topic)
        config = JoinConfig.parse(message.topic, message.payload)
        token = message.payload.get("access_token")
        if not isinstance(token, str) or is_api_key(token):
            token = socket.token
        claims = self._claims(token)
        key = config.presence_key or presence.new_key()
        return Channel(socket, message.topic, message.join_ref, config, token, claims, key)

    def _claims(self, token: str) -> Claims:
        try:
            return self._keyring.claims(token)
        except TokenError as error:
            raise JoinError(error.join_reason) from None
