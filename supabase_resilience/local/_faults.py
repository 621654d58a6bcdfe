"""Faults in front of a healthy stack: what a caller sees when a gateway or a network fails."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from supabase_resilience.local._child import Child

Drop = Literal["before", "after", "body"]
_JSON = "application/json; charset=utf-8"
_TEXT = "text/plain; charset=utf-8"


class Fault:
    """One fault that was added; it can be asked how often it hit, and be taken away."""

    def __init__(self, gateway: Child, number: int) -> None:
        self._gateway = gateway
        self._number = number

    @property
    def count(self) -> int:
        """How many requests it has hit so far."""
        return int(self._gateway.ask("fault_count", fault=self._number))

    def remove(self) -> None:
        """Take it away. Calls that it holds already stay held."""
        self._gateway.ask("remove_fault", fault=self._number)


class Faults:
    """The faults of a stack. A request meets the first that matches, in the order of adding."""

    def __init__(self, gateway: Child) -> None:
        self._gateway = gateway

    def add(
        self,
        *,
        match: str = ".*",
        method: str | None = None,
        times: int | None = 1,
        share: float = 1.0,
        seed: int = 0,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        body: str | dict[str, Any] | list[Any] | None = None,
        drop: Drop | None = None,
        delay: float = 0.0,
        stall: bool = False,
    ) -> Fault:
        """Make the next `times` requests that match (None: all of them) fail as described.

        `match` is a regular expression, searched in path and query; `method` narrows it to one HTTP
        method. WebSocket upgrades are requests, too. `share` of these are hit (0.05 is one in
        twenty), drawn at random from `seed`; the others go on to the faults after it. After `delay`
        seconds one of these happens; without any of them, the request just arrives late:

        - `status`, with `headers` and `body` (a dict or list becomes JSON): this answer, without
          the servers' having been asked;
        - `drop="before"`: the connection is lost, the request never reaches the servers;
        - `drop="after"`: the servers do all of the work, then the connection is lost before the
          first byte of the answer;
        - `drop="body"`: the servers do all of the work; the headers and half of the body arrive,
          then the connection is lost;
        - `stall`: the connection stays open and nothing ever comes.

        A delayed request reaches the servers even if its caller has given up meanwhile, as it would
        in a slow server. Raises `ValueError` for a pattern that is no regular expression and for
        options that contradict each other.
        """
        check_pattern(match)
        _check_numbers(times=times, share=share, status=status, delay=delay)
        _check_combination(
            status=status, answer=(headers, body), drop=drop, stall=stall, delay=delay
        )
        fault = {
            "match": match,
            "method": method.upper() if method else None,
            "times": times,
            "share": share,
            "seed": seed,
            "status": status,
            "drop": drop,
            "delay": delay,
            "stall": stall,
            **_answer(headers, body),
        }
        number, problem = self._gateway.ask("add_fault", fault=fault)
        if problem is not None:
            raise ValueError(problem)
        return Fault(self._gateway, number)

    def clear(self) -> None:
        """Take all faults away. Calls that one of them holds already stay held."""
        self._gateway.ask("clear_faults")


def check_pattern(match: str) -> None:
    """Raise `ValueError` unless this is a regular expression."""
    try:
        re.compile(match)
    except re.error as error:
        raise ValueError(f"match={match!r} is no regular expression: {error}") from None


def _check_numbers(*, times: int | None, share: float, status: int | None, delay: float) -> None:
    if times is not None and times < 1:
        raise ValueError(f"times must be at least 1, or None for ever, got {times}")
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    if status is not None and not 200 <= status <= 599:
        raise ValueError(f"status must be from 200 to 599, got {status}")
    if not (math.isfinite(delay) and delay >= 0):
        raise ValueError(f"delay must be a number of seconds from 0 on, got {delay}")


def _check_combination(
    *,
    status: int | None,
    answer: tuple[object, object],
    drop: str | None,
    stall: bool,
    delay: float,
) -> None:
    if drop not in {None, "before", "after", "body"}:
        raise ValueError(f"drop must be 'before', 'after' or 'body', got {drop!r}")
    given = [
        name
        for name, it in (("status", status is not None), ("drop", drop), ("stall", stall))
        if it
    ]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} contradict each other: choose one")
    if answer != (None, None) and status is None:
        raise ValueError("headers and body belong to an answer: say its status, too")
    if not given and not delay:
        raise ValueError("the fault does nothing: give status, drop, stall or delay")


def _answer(
    headers: Mapping[str, str] | None, body: str | dict[str, Any] | list[Any] | None
) -> dict[str, Any]:
    kind = _TEXT if isinstance(body, str) else _JSON
    text = body if body is None or isinstance(body, str) else json.dumps(body)
    sent = dict(headers or {})
    if text is not None and "content-type" not in {name.lower() for name in sent}:
        sent["Content-Type"] = kind
    return {"headers": sent, "body": text or ""}
