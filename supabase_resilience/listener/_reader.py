"""Carries out what catch-ups read, with clients of both colours, on the listener's event loop."""

import asyncio
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from supabase_resilience._builders import Builders
from supabase_resilience._identity import Identity
from supabase_resilience._queries import Rpc, Select
from supabase_resilience._requests import idempotent
from supabase_resilience.listener._reads import Plan, Read, Wait

__all__ = ["LoopReader", "Reader", "ThreadReader", "carry_out"]

T = TypeVar("T")


class Reader(Protocol):
    """Reads rows."""

    async def rows(self, read: Rpc | Select) -> Any:
        """The answer's JSON; raises what supabase-py raises."""


async def carry_out(plan: Plan[T], reader: Reader) -> T:
    """Go through a plan; what a read raises is raised in the plan, too."""
    answer: Any = None
    try:
        while True:
            read: Read = plan.send(answer)
            if isinstance(read, Wait):
                await asyncio.sleep(read.seconds)
                answer = None
            else:
                answer = await reader.rows(read)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        plan.close()


class LoopReader:
    """With an `AsyncClient`."""

    def __init__(self, identity: Identity[Any], schema: str, table: str) -> None:
        self._builders = Builders(identity, schema, table)

    async def rows(self, read: Rpc | Select) -> Any:
        """The answer's JSON."""
        with _repeatable():
            return (await _builder(self._builders, read).execute()).data


class ThreadReader:
    """With a `Client`, whose calls block: each is made on a thread."""

    def __init__(self, identity: Identity[Any], schema: str, table: str) -> None:
        self._builders = Builders(identity, schema, table)

    async def rows(self, read: Rpc | Select) -> Any:
        """The answer's JSON."""
        return await asyncio.to_thread(self._read, read)

    def _read(self, read: Rpc | Select) -> Any:
        with _repeatable():
            return _builder(self._builders, read).execute().data


def _builder(builders: Builders, read: Rpc | Select) -> Any:
    return builders.rpc(read) if isinstance(read, Rpc) else builders.select(read)


def _repeatable() -> AbstractContextManager[object]:
    """All of this only reads, functions included."""
    return idempotent()
