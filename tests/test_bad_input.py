"""Arguments that make no sense, for every public constructor at once: refused, and by name.

Each refusal is a `ValueError` or `TypeError` at construction that names the argument and the value.
Of `CircuitBreaker`, `RetryConfig`, `deadline` and `protect` many are listed where the rest of their
promises are tested (`test_breaker.py`, `test_retry.py`, `test_deadline.py`,
`contract/test_protect.py`); here is what all of them have in common, and the others in full.
"""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from supabase import Client

from supabase_resilience import (
    AsyncProtectedClient,
    CircuitBreaker,
    CircuitBreakers,
    FailureRate,
    ProtectedClient,
    RetryConfig,
    by_table,
    deadline,
    idempotent,
    protect,
)

CLIENT = Client.create("https://project.supabase.test", "sb_publishable_key")
MADE: dict[str, Callable[..., Any]] = {
    "CircuitBreaker": CircuitBreaker,
    "CircuitBreakers": CircuitBreakers,
    "FailureRate": FailureRate,
    "RetryConfig": RetryConfig,
    "deadline": lambda seconds=1.0, **more: deadline(seconds, **more),
    "protect": lambda **options: protect(CLIENT, **options),
}

COUNTS = {
    "CircuitBreaker": ["failure_threshold", "half_open_permits", "close_after"],
    "CircuitBreakers": ["failure_threshold", "half_open_permits", "close_after", "limit"],
    "FailureRate": ["minimum_calls", "calls"],
    "RetryConfig": ["attempts"],
}
SECONDS = {
    "CircuitBreaker": ["reset_timeout", "probe_timeout", "max_reset_timeout"],
    "CircuitBreakers": ["reset_timeout", "probe_timeout", "max_reset_timeout"],
    "FailureRate": ["window", "slow_after"],
    "RetryConfig": ["attempt_timeout", "total_timeout"],
    "deadline": ["seconds"],
}
SHARES = {  # with the least that is right
    "CircuitBreaker": {"growth": 1.0, "jitter": 0.0, "retry_budget": 0.0},
    "CircuitBreakers": {"growth": 1.0, "jitter": 0.0, "retry_budget": 0.0},
    "FailureRate": {"threshold": 0.0},
    "RetryConfig": {"wait_initial": 0.0, "wait_max": 0.0},
}
CALLABLES = {
    "CircuitBreaker": ["classify", "on_open", "on_half_open", "on_close", "on_event", "clock"],
    "CircuitBreakers": [
        "classify",
        "on_open",
        "on_half_open",
        "on_close",
        "on_event",
        "clock",
        "key",
    ],
}
OBJECTS = {
    "CircuitBreaker": ["trip", "name"],
    "CircuitBreakers": ["trip", "name"],
    "protect": ["breaker", "retry"],
}
NAN, INFINITY = float("nan"), float("inf")


def listed(names: dict[str, Any]) -> list[tuple[str, str]]:
    return [(of, name) for of, each in names.items() for name in each]


def refused(of: str, name: str, value: object, kind: type[Exception]) -> None:
    with pytest.raises(kind) as error:
        MADE[of](**{name: value})
    assert name in str(error.value)
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("value", [0, -1, -(10**30)])
@pytest.mark.parametrize(("of", "name"), listed(COUNTS))
def test_count_too_small(of: str, name: str, value: int) -> None:
    """A count of nothing, such as a threshold of 0, is a ValueError."""
    refused(of, name, value, ValueError)


@pytest.mark.parametrize("value", ["5", 1.5, 5.0, NAN, True, 1j, [5], b"5"])
@pytest.mark.parametrize(("of", "name"), listed(COUNTS))
def test_count_of_the_wrong_kind(of: str, name: str, value: object) -> None:
    """A count that is no whole number is a TypeError; a bool or a 5.0 is none either."""
    refused(of, name, value, TypeError)


@pytest.mark.parametrize("value", [0, 0.0, -1, -0.5, NAN, INFINITY, -INFINITY, 10**400])
@pytest.mark.parametrize(("of", "name"), listed(SECONDS))
def test_seconds_out_of_range(of: str, name: str, value: float) -> None:
    """A time that is not above 0, or not finite, is a ValueError."""
    refused(of, name, value, ValueError)


@pytest.mark.parametrize("value", ["1", True, 1j, [1.0], b"1"])
@pytest.mark.parametrize(("of", "name"), [*listed(SECONDS), *listed(SHARES)])
def test_number_of_the_wrong_kind(of: str, name: str, value: object) -> None:
    """A time or share that is no number is a TypeError."""
    refused(of, name, value, TypeError)


@pytest.mark.parametrize("value", ["below", -1.0, NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize(("of", "name"), listed(SHARES))
def test_share_out_of_range(of: str, name: str, value: Any) -> None:
    """A share, factor or wait below its least, or not finite, is a ValueError."""
    value = SHARES[of][name] - 0.1 if value == "below" else value
    refused(of, name, value, ValueError)


@pytest.mark.parametrize("value", [0, 0.0, 1.1, 2])
def test_threshold_is_a_share(value: float) -> None:
    """A share of failures of 0 would always be reached, and one above 1 never."""
    refused("FailureRate", "threshold", value, ValueError)


def test_window_smaller_than_its_minimum() -> None:
    """A window of fewer calls than `minimum_calls` could never open."""
    with pytest.raises(ValueError, match=r"calls must be >= 20, got 19"):
        FailureRate(calls=19)


@pytest.mark.parametrize("value", [5, "print", (), [print], object()])
@pytest.mark.parametrize(("of", "name"), listed(CALLABLES))
def test_not_callable(of: str, name: str, value: object) -> None:
    """What has to be called, and cannot be, is a TypeError."""
    refused(of, name, value, TypeError)


@pytest.mark.parametrize("value", [5, 0, True, {}, object(), print, CircuitBreaker])
@pytest.mark.parametrize(("of", "name"), listed(OBJECTS))
def test_object_of_the_wrong_kind(of: str, name: str, value: object) -> None:
    """A rule, name, breaker or retry of another kind is a TypeError, also where it is falsy."""
    refused(of, name, value, TypeError)


@pytest.mark.parametrize("of", ["CircuitBreaker", "CircuitBreakers"])
@pytest.mark.parametrize("trip", [FailureRate, "consecutive", 0.5])
def test_trip_that_is_no_rule(of: str, trip: object) -> None:
    """A rule's class, or its number alone, is not the rule."""
    refused(of, "trip", trip, TypeError)


@pytest.mark.parametrize("of", MADE)
def test_unknown_keyword(of: str) -> None:
    """A misspelled option is a TypeError that names it, not silently ignored."""
    with pytest.raises(TypeError, match="reset_time_out"):
        MADE[of](reset_time_out=5.0)


@pytest.mark.parametrize("of", ["CircuitBreaker", "CircuitBreakers", "FailureRate", "RetryConfig"])
def test_options_by_position(of: str) -> None:
    """Options are given by name, so that none is taken for another."""
    with pytest.raises(TypeError, match="positional"):
        MADE[of](*["x", by_table][: of.startswith("C")], 5, 5)


def test_idempotent_takes_nothing() -> None:
    """`idempotent()` has no options, so any is a mistake."""
    with pytest.raises(TypeError):
        idempotent(5)


@pytest.mark.parametrize("of", ["CircuitBreaker", "CircuitBreakers"])
def test_limits_that_contradict_each_other(of: str) -> None:
    """An open time beyond its own limit is refused with both numbers."""
    with pytest.raises(ValueError, match=r"max_reset_timeout .*60.*got 30"):
        MADE[of](reset_timeout=60.0, max_reset_timeout=30.0)


def test_every_argument_is_listed() -> None:
    """A new option has to be listed here, so that nobody forgets to check it."""
    tables = (COUNTS, SECONDS, SHARES, CALLABLES, OBJECTS)
    for of, kind in (
        ("CircuitBreaker", CircuitBreaker),
        ("FailureRate", FailureRate),
        ("RetryConfig", RetryConfig),
        ("deadline", deadline),
        ("protect", protect),
    ):
        checked = {name for table in tables for name in table.get(of, ())}
        assert checked == set(inspect.signature(kind).parameters) - {"client"}


def test_options_of_a_set_are_those_of_a_breaker() -> None:
    """`CircuitBreakers` refuses what `CircuitBreaker` refuses, at its own construction."""
    for table in (COUNTS, SECONDS, SHARES, CALLABLES, OBJECTS):
        assert set(table.get("CircuitBreaker", ())) <= set(table.get("CircuitBreakers", ()))


@pytest.mark.parametrize("kind", [ProtectedClient, AsyncProtectedClient])
def test_protected_client_by_hand(kind: type) -> None:
    """A protected client is made by `protect()`; as one makes a client, it is a TypeError."""
    with pytest.raises(TypeError):
        kind("https://project.supabase.test", "sb_publishable_key")
