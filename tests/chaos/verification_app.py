"""An app that completes each order in two HTTP steps, and sometimes dies between them.

Its writers are tasks on a loop of their own, in a thread, whatever colour the verifier has. An
order that is left half-way is really broken: no one but a fix will set it right.
"""

import asyncio
import contextlib
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from supabase import AsyncClient, acreate_client

from supabase_resilience.local import LocalSupabase

DATE = "2026-01-02T03:04:05+00:00"
SHORTEST, LONGEST = 0.005, 0.4


async def pause(seconds: float) -> None:
    """Let the others work."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.Event().wait()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """So many writers; each of `abandoned` is left after its first step."""

    orders: list[int]
    abandoned: frozenset[int]
    writers: int
    seed: int


@dataclass(kw_only=True)
class Done:
    """What the app has written."""

    completed: set[int] = field(default_factory=set)
    abandoned: set[int] = field(default_factory=set)


class App(threading.Thread):
    """Writes until it is `enough`, and at least until the last one is abandoned."""

    def __init__(self, local: LocalSupabase, plan: Plan) -> None:
        super().__init__(name="app", daemon=True)
        self.done = Done()
        self.enough = threading.Event()
        self._local = local
        self._plan = plan
        self._random = random.Random(plan.seed)
        self._orders = self._in_order()

    def _in_order(self) -> Iterator[int]:
        """Those that it will abandon first, so that their number does not depend on the speed."""
        late = [order for order in self._plan.orders if order not in self._plan.abandoned]
        early = [*sorted(self._plan.abandoned), *late[: len(self._plan.abandoned)]]
        self._random.shuffle(early)
        yield from early
        yield from late[len(self._plan.abandoned) :]

    def run(self) -> None:
        asyncio.run(self._live())

    async def _live(self) -> None:
        client = await acreate_client(self._local.url, self._local.secret_key)
        await asyncio.gather(*(self._write(client) for _ in range(self._plan.writers)))

    async def _write(self, client: AsyncClient) -> None:
        for order in self._orders:
            await self._complete(client, order)
            if self.enough.is_set() and self.done.abandoned >= self._plan.abandoned:
                return

    async def _complete(self, client: AsyncClient, order: int) -> None:
        orders = client.table("orders")
        await orders.update({"status": "completed"}).eq("id", order).execute()
        if order in self._plan.abandoned:
            self.done.abandoned.add(order)
            return
        await pause(self._random.uniform(SHORTEST, LONGEST))
        values = {"completion_date": DATE, "payment_id": f"pay_{order}"}
        await orders.update(values).eq("id", order).execute()
        self.done.completed.add(order)
