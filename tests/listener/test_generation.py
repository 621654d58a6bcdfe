"""What one connection makes of the callbacks of realtime-py, none of which may raise."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from realtime import RealtimeSubscribeStates

from supabase_resilience.listener import _generation
from supabase_resilience.listener._changes import Shape
from supabase_resilience.listener._generation import Binding, Generation
from supabase_resilience.listener._refusals import Refusal

NOWHERE = "ws://127.0.0.1:9/realtime/v1"
READY = SimpleNamespace(extension="postgres_changes", message="Subscribed to PostgreSQL")


def make(on_change: Any = print, on_ready: Any = print) -> Generation:
    binding, shape = Binding("public", "orders", "*", None), Shape("public", "orders", ["id"])
    return Generation(NOWHERE, "key", binding, shape, on_change=on_change, on_ready=on_ready)


def tell(callbacks: Any, on_change: Any = print) -> tuple[Refusal | None, int]:
    """Why a connection ended, and how often it was ready, after these callbacks."""
    ready: list[bool] = []

    async def main() -> Refusal | None:
        made = make(on_change, lambda: ready.append(True))
        callbacks(made)
        return made.ended.result() if made.ended.done() else None

    return asyncio.run(main()), len(ready)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (RealtimeSubscribeStates.SUBSCRIBED, None),
        (RealtimeSubscribeStates.TIMED_OUT, "the join was not answered"),
        (RealtimeSubscribeStates.CLOSED, "the server closed the channel"),
    ],
)
def test_what_becomes_of_a_join(state, reason):
    """All but its success ends the connection, so that another one is made."""
    ended, _ = tell(lambda made: made._subscribed(state, None))
    assert reason == (ended and ended.reason)
    assert ended is None or "passing" == ended.kind


def test_a_change_that_cannot_be_handed_on_ends_the_connection(caplog):
    """An error of ours must not end reception silently; it is logged, and nothing more comes."""
    came: list[Any] = []

    def fail(payload: Any) -> None:
        came.append(payload)
        raise ValueError("secret")

    def two(made: Generation) -> None:
        made._changed({"number": 1})
        made._changed({"number": 2})

    ended, _ = tell(two, fail)
    assert Refusal("passing", "a change could not be handed on") == ended
    assert [{"number": 1}] == came
    assert ["ERROR"] == [record.levelname for record in caplog.records]


def test_only_the_first_end_counts_and_nothing_is_ready_after_it():
    """What comes late is of a connection that nobody listens to any more."""

    def end_and_tell(made: Generation) -> None:
        made._told(READY)
        made._told(SimpleNamespace(extension="presence", message="Subscribed to PostgreSQL"))
        made.end(Refusal("passing", "first"))
        made.end(Refusal("permanent", "second"))
        made._told(READY)

    assert (Refusal("passing", "first"), 1) == tell(end_and_tell)


def test_a_ping_that_cannot_be_sent_was_not_answered():
    """Nobody has connected."""

    async def main() -> bool:
        made = make()
        return await made.ping(0.05)

    assert not asyncio.run(main())


def test_a_server_that_says_no_goodbye_is_not_waited_for(monkeypatch):
    """The closing is left to itself."""
    monkeypatch.setattr(_generation, "_GOODBYE_WITHIN", 0.0)
    left: list[bool] = []

    async def main() -> None:
        made = make()

        async def never() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                left.append(True)

        monkeypatch.setattr(made._client, "close", never)
        await made.close()
        assert "closed" == made.ended.result().reason
        assert [] == left

    asyncio.run(main())
    assert [True] == left
