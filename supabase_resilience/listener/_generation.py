"""One connection to Realtime and the one channel on it: used once, then replaced by a new one.

Everything that realtime-py would do by itself after a failure is off, as it does it wrongly: a
stale `phx_close` kills its rejoined channel, and it gives up after five connects. Its callbacks run
inside its receive loop, where an exception ends all reception; so ours only hand on.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from realtime import AsyncRealtimeClient, RealtimeSubscribeStates
from realtime.types import RealtimeAcknowledgementStatus as Answer

from supabase_resilience._telling import logger
from supabase_resilience.listener._changes import Shape
from supabase_resilience.listener._refusals import Refusal, of_handshake, of_realtime

__all__ = ["Binding", "Generation"]

_ANSWER_WITHIN = 10
_GOODBYE_WITHIN = 1.0
_READY = "Subscribed to PostgreSQL"


@dataclass(frozen=True, slots=True)
class Binding:
    """What to subscribe to: `event` is `*`, `INSERT`, `UPDATE` or `DELETE`."""

    schema: str
    table: str
    event: str
    filter: str | None


class Generation:
    """`await open()`, then `on_change` is called with each payload, until `ended` is done.

    `on_ready` is called with every "Subscribed to PostgreSQL": only from the first one on changes
    arrive, and each later one is the boundary of a gap.
    """

    def __init__(
        self,
        url: str,
        apikey: str,
        binding: Binding,
        shape: Shape,
        *,
        on_change: Callable[[Mapping[str, Any]], None],
        on_ready: Callable[[], None],
    ) -> None:
        self.ended: asyncio.Future[Refusal] = asyncio.get_running_loop().create_future()
        self.is_open = False
        self._shape = shape
        self._on_change = on_change
        self._on_ready = on_ready
        self._client = AsyncRealtimeClient(
            url, token=apikey, auto_reconnect=False, timeout=_ANSWER_WITHIN
        )
        # A topic that was never used: no late frame of an earlier channel can be meant for it.
        self._channel = self._client.channel(
            f"supabase-resilience-{secrets.token_hex(8)}",
            {
                "config": {
                    "broadcast": {"ack": True, "self": False},
                    "presence": {"key": "", "enabled": False},
                    "private": False,
                }
            },
        )
        self._channel.on_postgres_changes(
            cast("Any", binding.event),
            self._changed,
            table=binding.table,
            schema=binding.schema,
            filter=binding.filter,
        )
        self._channel.on_system(self._told)

    async def open(self, token: str) -> None:
        """Connect and join; what comes of it is told by `on_ready` or `ended`."""
        try:
            await self._client.set_auth(token)
            await self._client.connect()
            self.is_open = True
            await self._channel.subscribe(self._subscribed)
        except Exception as error:  # noqa: BLE001 - of whatever kind, the connection is of no use
            response = getattr(error, "response", None)
            self.end(of_handshake(getattr(response, "status_code", None), error))

    def end(self, refusal: Refusal) -> None:
        """It is of no use any more."""
        if not self.ended.done():
            self.ended.set_result(refusal)

    async def refresh(self, token: str) -> None:
        """Use another token from now on; the server answers with a new "Subscribed"."""
        await self._client.set_auth(token)

    async def ping(self, within: float) -> bool:
        """Whether the server answers."""
        answered = asyncio.Event()
        message = {"type": "broadcast", "event": "ping", "payload": {}}
        try:
            async with asyncio.timeout(within):
                push = await self._channel.push("broadcast", message)
                push.receive(Answer.Ok, lambda _: answered.set())
                push.receive(Answer.Error, lambda _: answered.set())
                await answered.wait()
        except Exception:  # noqa: BLE001 - of whatever kind, there is no answer
            return False
        return True

    async def close(self) -> None:
        """Say goodbye, and wait for no answer of a server that gives none."""
        self.end(Refusal("passing", "closed"))
        self._channel.rejoin_timer.reset()
        self._channel.join_push.destroy()
        closing = asyncio.ensure_future(self._client.close())
        done, _ = await asyncio.wait([closing], timeout=_GOODBYE_WITHIN)
        closing.add_done_callback(_forget)
        for task in done:
            _forget(task)

    # --- callbacks of realtime-py: none may raise -------------------------------------------------

    def _changed(self, payload: Any) -> None:
        if self.ended.done():
            return
        try:
            self._on_change(payload)
        except Exception:
            logger.exception("a change could not be handed on; the connection is made anew")
            self.end(Refusal("passing", "a change could not be handed on"))

    def _told(self, payload: Any) -> None:
        is_ours = payload.extension == "postgres_changes" and payload.message == _READY
        if is_ours and not self.ended.done():
            self._on_ready()

    def _subscribed(self, state: RealtimeSubscribeStates, error: Exception | None) -> None:
        if state == RealtimeSubscribeStates.SUBSCRIBED:
            return
        if state == RealtimeSubscribeStates.CHANNEL_ERROR:
            self.end(of_realtime(str(error), self._shape))
        elif state == RealtimeSubscribeStates.TIMED_OUT:
            self.end(Refusal("passing", "the join was not answered"))
        else:
            self.end(Refusal("passing", "the server closed the channel"))


def _forget(task: "asyncio.Future[None]") -> None:
    with contextlib.suppress(Exception, asyncio.CancelledError):
        task.result()
