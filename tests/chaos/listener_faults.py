"""The faults of a run: each begins, lasts for a moment, and is over when its context ends.

`during` is called while the fault is in force and PostgreSQL is up, with what must not be missed.
"""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from listener_crowd import Loop, Tokens

from supabase_resilience.local import LocalSupabase

During = Callable[[], object]
_PERIOD = 1.2  # seconds, of what Realtime's rates are averages


class Faults:
    """All that can happen to a stack; `kinds` by name."""

    def __init__(self, local: LocalSupabase, tokens: Tokens, loop: Loop) -> None:
        self._local = local
        self._tokens = tokens
        self._loop = loop
        self.kinds: dict[str, Callable[[random.Random, During], None]] = {
            "Realtime killed": self._kill_realtime,
            "REST killed": self._kill_rest,
            "PostgreSQL killed": self._kill_postgres,
            "connections aborted": self._abort,
            "closed with 1012": self._close,
            "channels crashed": self._crash_channels,
            "stalled": self._stall,
            "stream of changes dead": self._kill_cdc,
            "changes lost": self._lose_changes,
            "lost to the rate limit": self._limit_the_rate,
            "token expired": self._expire,
            "refused for a while": self._refuse,
            "requests lost": self._lose_requests,
            "our loop stood still": self._stand_still,
        }

    def strike(self, kind: str, chance: random.Random, during: During) -> None:
        """Begin it and end it; `during` is called in between, or once PostgreSQL is back."""
        self.kinds[kind](chance, during)

    # --- processes ---

    def _kill_realtime(self, chance: random.Random, during: During) -> None:
        self._local.realtime.kill()
        during()
        _last(chance, 0.0, 0.5)
        self._local.realtime.start()

    def _kill_rest(self, chance: random.Random, during: During) -> None:
        self._local.rest.kill()
        during()
        _last(chance, 0.0, 0.5)
        self._local.rest.start()

    def _kill_postgres(self, chance: random.Random, during: During) -> None:
        self._local.postgres.kill()
        _last(chance, 0.0, 0.5)
        self._local.postgres.start()
        during()

    # --- connections ---

    def _abort(self, _: random.Random, during: During) -> None:
        self._local.realtime.abort()
        during()

    def _close(self, chance: random.Random, during: During) -> None:
        self._local.realtime.close(1012, announced=chance.random() < 0.5)
        during()

    def _crash_channels(self, _: random.Random, during: During) -> None:
        self._local.realtime.crash_channels()
        during()

    def _stall(self, chance: random.Random, during: During) -> None:
        with _switched(self._local.realtime.stall):
            during()
            _last(chance, 0.5, 4.0)

    def _refuse(self, chance: random.Random, during: During) -> None:
        self._local.realtime.refuse()
        self._local.realtime.abort()
        during()
        _last(chance, 0.5, 2.0)
        self._local.realtime.refuse(None)

    def _expire(self, chance: random.Random, during: During) -> None:
        """A token expires, and there is no other one for a moment."""
        life = chance.uniform(1.5, 3.0)
        self._tokens.run_short(life)
        self._local.realtime.close(1012)
        threading.Event().wait(life + 0.3)
        during()
        self._tokens.recover()

    # --- changes and requests ---

    def _kill_cdc(self, _: random.Random, during: During) -> None:
        self._local.realtime.kill_cdc()
        during()

    def _lose_changes(self, chance: random.Random, during: During) -> None:
        with _switched(self._local.realtime.lose_changes):
            during()
            _last(chance, 0.2, 1.5)

    def _limit_the_rate(self, chance: random.Random, during: During) -> None:
        realtime = self._local.realtime
        realtime.configure(max_events_per_second=5, rate_window=_PERIOD)
        _last(chance, 1.0, 2.0)
        during()
        realtime.configure(max_events_per_second=None)

    def _lose_requests(self, chance: random.Random, during: During) -> None:
        add, seed = self._local.faults.add, chance.randrange(1000)
        for drop in ("before", "after", "body"):
            add(match="^/rest/v1/", times=None, share=0.3, seed=seed, drop=drop)
        add(match="^/rest/v1/", times=None, share=0.5, seed=seed, status=503)
        during()
        _last(chance, 0.5, 2.0)
        self._local.faults.clear()

    def _stand_still(self, chance: random.Random, during: During) -> None:
        self._loop.stand_still(chance.uniform(2.0, 5.0))
        during()


def _last(chance: random.Random, least: float, most: float) -> None:
    threading.Event().wait(chance.uniform(least, most))


@contextmanager
def _switched(switch: Callable[[bool], Any]) -> Iterator[None]:
    switch(True)
    try:
        yield
    finally:
        switch(False)
