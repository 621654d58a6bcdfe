"""Options that make no sense are refused when the listener is made, by name and with the value."""

from dataclasses import replace
from typing import Any

import pytest

from supabase_resilience import MemoryCursor
from supabase_resilience.listener._levels import Recovery
from supabase_resilience.listener._settings import Settings

GOOD = Settings(
    table="orders",
    schema="public",
    event="*",
    filter=None,
    id_column="id",
    recovery=Recovery.versioned(),
    start_from="now",
    cursor=None,
    token=None,
    catch_up_interval=60.0,
    ping_interval=10.0,
    buffer_size=10_000,
    overflow="recover",
    on_handler_error="retry",
    on_event=print,
)

ACCEPTED: list[dict[str, Any]] = [
    {"event": "DELETE"},
    {"filter": "status=eq.open"},
    {"id_column": ("order", "line")},
    {"id_column": ["order", "line"]},
    {"recovery": None},
    {"start_from": "beginning"},
    {"cursor": MemoryCursor()},
    {"token": "a token"},
    {"token": lambda: "a token"},
    {"catch_up_interval": 1},
    {"buffer_size": 1},
    {"overflow": "block", "on_handler_error": "skip"},
    {"recovery": Recovery.change_log()},
    {"recovery": Recovery.by_column(), "filter": "a=eq.1"},
]

REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"table": ""}, ValueError, "table must not be empty"),
    ({"table": 7}, TypeError, "table must be a string, got 7"),
    ({"schema": ""}, ValueError, "schema must not be empty"),
    (
        {"event": "insert"},
        ValueError,
        "event must be one of '*', 'INSERT', 'UPDATE', 'DELETE', got 'insert'",
    ),
    ({"event": None}, TypeError, "event must be a string, got None"),
    ({"filter": ""}, ValueError, "filter must not be empty"),
    ({"filter": 7}, TypeError, "filter must be a string, got 7"),
    ({"filter": "status"}, ValueError, "filter must be like 'column=operator.value'"),
    ({"id_column": ""}, ValueError, "id_column must not be empty"),
    ({"id_column": ()}, ValueError, "id_column must not be empty"),
    ({"id_column": ("id", "")}, ValueError, "id_column must not be empty"),
    ({"id_column": ("id", 7)}, TypeError, "id_column must be a string, got 7"),
    (
        {"id_column": {"id"}},
        TypeError,
        "id_column must be a string or a tuple of strings, got {'id'}",
    ),
    ({"recovery": "versioned"}, TypeError, "recovery must be a Recovery or None, got 'versioned'"),
    ({"recovery": None, "cursor": MemoryCursor()}, ValueError, "cursor needs a recovery"),
    (
        {"recovery": None, "start_from": "beginning"},
        ValueError,
        "start_from='beginning' needs a recovery",
    ),
    (
        {"recovery": Recovery.change_log(), "filter": "a=eq.1"},
        ValueError,
        "filter cannot be used with Recovery.change_log()",
    ),
    ({"start_from": "end"}, ValueError, "start_from must be one of 'now', 'beginning', got 'end'"),
    ({"cursor": "file"}, TypeError, "cursor must be a cursor store, got 'file'"),
    ({"token": ""}, ValueError, "token must not be empty"),
    ({"token": 7}, TypeError, "token must be a string, got 7"),
    ({"catch_up_interval": 0}, ValueError, "catch_up_interval must be more than 0 seconds, got 0"),
    ({"ping_interval": "10"}, TypeError, "ping_interval must be a number, got '10'"),
    ({"buffer_size": 0}, ValueError, "buffer_size must be >= 1, got 0"),
    ({"buffer_size": 1.5}, TypeError, "buffer_size must be a whole number, got 1.5"),
    ({"overflow": "drop"}, ValueError, "overflow must be one of 'recover', 'block', got 'drop'"),
    (
        {"on_handler_error": "raise"},
        ValueError,
        "on_handler_error must be one of 'retry', 'skip', got 'raise'",
    ),
    ({"on_event": None}, TypeError, "on_event must be callable, got None"),
]


@pytest.mark.parametrize("options", ACCEPTED)
def test_accepted(options):
    """What makes sense is kept as it was given."""
    settings = replace(GOOD, **options)
    assert options == {name: getattr(settings, name) for name in options}


@pytest.mark.parametrize(("options", "kind", "message"), REFUSED)
def test_refused(options, kind, message):
    """The message names the option and shows the value, or says what it needs."""
    with pytest.raises(kind) as raised:
        replace(GOOD, **options)
    assert str(raised.value).startswith(message)


def test_what_follows_from_them():
    """The key as a tuple, the name for events, the filter's parts, and which table is followed."""
    assert (("id",), "public.orders", []) == (GOOD.key, GOOD.name, GOOD.conditions())
    assert ("order", "line") == replace(GOOD, id_column=["order", "line"]).key
    assert [("a", "eq", "1")] == replace(GOOD, filter="a=eq.1").conditions()
    levels = [None, Recovery.by_column(), Recovery.versioned(), Recovery.change_log()]
    assert [False, False, False, True] == [replace(GOOD, recovery=each).is_log for each in levels]


# --- levels of recovery ---------------------------------------------------------------------------


def test_levels():
    """Each says what it needs."""
    assert ("by_column", "updated_at", 30.0, False, 0.2) == _values(Recovery.by_column())
    assert ("by_column", "n", 5.0, True, 1.0) == _values(
        Recovery.by_column("n", overlap=5, key_diff=True, max_delete_share=1)
    )
    assert ("versioned", None, 0.0, False, 0.2) == _values(Recovery.versioned())
    assert ("versioned", None, 0.0, True, 0.0) == _values(
        Recovery.versioned(key_diff=True, max_delete_share=0)
    )
    assert "change_log" == Recovery.change_log().level


def _values(one: Recovery) -> tuple[Any, ...]:
    return one.level, one.column, one.overlap, one.key_diff, one.max_delete_share


BAD_LEVELS: list[tuple[Any, type[Exception], str]] = [
    (lambda: Recovery.by_column(""), ValueError, "column must not be empty"),
    (lambda: Recovery.by_column(7), TypeError, "column must be a string, got 7"),  # type: ignore[arg-type]
    (lambda: Recovery.by_column(overlap=-1), ValueError, "overlap must be >= 0, got -1"),
    (lambda: Recovery.by_column(key_diff=1), TypeError, "key_diff must be True or False, got 1"),  # type: ignore[arg-type]
    (
        lambda: Recovery.versioned(key_diff=None),
        TypeError,
        "key_diff must be True or False, got None",
    ),  # type: ignore[arg-type]
    (
        lambda: Recovery.versioned(max_delete_share=-0.1),
        ValueError,
        "max_delete_share must be >= 0",
    ),
    (
        lambda: Recovery.versioned(max_delete_share=1.1),
        ValueError,
        "max_delete_share must be <= 1, got 1.1",
    ),
]


@pytest.mark.parametrize(("make", "kind", "message"), BAD_LEVELS)
def test_refused_levels(make, kind, message):
    """By name and with the value."""
    with pytest.raises(kind) as raised:
        make()
    assert str(raised.value).startswith(message)
