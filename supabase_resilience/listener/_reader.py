"""Carries out what catch-ups read, with clients of both colours, on the listener's event loop."""

import asyncio
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from supabase_resilience._identity import Identity
from supabase_resilience._queries import Rpc, Select, named
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
        self._query = _Query(identity, schema, table)

    async def rows(self, read: Rpc | Select) -> Any:
        """The answer's JSON."""
        with _repeatable():
            return (await self._query.builder(read).execute()).data


class ThreadReader:
    """With a `Client`, whose calls block: each is made on a thread."""

    def __init__(self, identity: Identity[Any], schema: str, table: str) -> None:
        self._query = _Query(identity, schema, table)

    async def rows(self, read: Rpc | Select) -> Any:
        """The answer's JSON."""
        return await asyncio.to_thread(self._read, read)

    def _read(self, read: Rpc | Select) -> Any:
        with _repeatable():
            return self._query.builder(read).execute().data


class _Query:
    """Makes supabase-py's builders."""

    def __init__(self, identity: Identity[Any], schema: str, table: str) -> None:
        self._identity = identity
        self._schema = schema
        self._table = table

    def builder(self, read: Rpc | Select) -> Any:
        if isinstance(read, Rpc):
            return self._identity.api("public").rpc(read.function, read.arguments)
        columns = map(named, read.columns) if read.columns else ("*",)
        query = self._identity.api(self._schema).from_(self._table).select(*columns)
        for column, operator, value in read.where:
            query = query.filter(column, operator, value)
        if read.any_of is not None:
            query = query.or_(read.any_of)
        for column in read.order:
            query = query.order(named(column), desc=read.is_descending)
        return query if read.limit is None else query.limit(read.limit)


def _repeatable() -> AbstractContextManager[object]:
    """All of this only reads, functions included."""
    return idempotent()
