"""Rules, and what a verification is told when it is made."""

import math
import re
from datetime import datetime

import pytest
from pydantic import BaseModel
from supabase import acreate_client, create_client

from supabase_resilience import (
    AsyncServerSideVerification,
    ServerSideVerification,
    server_side_verification,
)
from supabase_resilience.verification import SKIP, Rule
from supabase_resilience.verification._rules import suspects
from supabase_resilience.verification._settings import Window

RIGHT = Rule("right", check=lambda row: True)


class Shape(BaseModel):
    """A row as a model."""

    id: int
    note: str


# --- rules ----------------------------------------------------------------------------------------


async def coroutine(_):
    return False


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        ({"name": ""}, ValueError, "name must not be empty"),
        ({"name": None}, TypeError, "name must be a string, got None"),
        ({"name": "x"}, ValueError, "rule 'x' needs one of check= and violates="),
        ({"name": "x", "check": bool, "violates": bool}, ValueError, "needs one of"),
        ({"name": "x", "check": 1}, TypeError, "check must be callable, got 1"),
        ({"name": "x", "violates": "a"}, TypeError, "violates must be callable, got 'a'"),
        ({"name": "x", "check": bool, "fix": {}}, TypeError, r"fix must be callable, got \{\}"),
        ({"name": "x", "check": coroutine}, TypeError, "check must not be a coroutine function"),
        ({"name": "x", "violates": coroutine}, TypeError, "violates must not be a coroutine"),
        ({"name": "x", "check": bool, "severity": "bad"}, ValueError, "'warning', got 'bad'"),
        ({"name": "x", "check": bool, "guard": "a"}, TypeError, "tuple of column names, got 'a'"),
        ({"name": "x", "check": bool, "guard": 1}, TypeError, "tuple of column names, got 1"),
        ({"name": "x", "check": bool, "guard": ()}, ValueError, "guard must not be empty"),
        ({"name": "x", "check": bool, "guard": ("a", "")}, ValueError, "guard must not be empty"),
        ({"name": "x", "check": bool, "guard": [1]}, TypeError, "guard must be a string, got 1"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(arguments, error, reason):
    """Where it is made, with the name of the argument."""
    with pytest.raises(error, match=reason):
        Rule(**arguments)


def test_a_rule_shows_its_name_and_how_it_is_judged():
    """Nothing of its functions."""
    assert "<Rule 'right' check>" == repr(RIGHT)
    assert "<Rule 'x' violates>" == repr(Rule("x", violates=bool))
    assert "SKIP" == repr(SKIP)
    assert ("a", "b") == Rule("x", check=bool, guard=["a", "b"]).guard


@pytest.mark.parametrize(
    ("check", "state", "reason"),
    [
        (lambda row: True, "right", ""),
        (lambda row: 1, "right", ""),
        (lambda row: None, "broken", ""),
        (lambda row: row["nope"], "error", "check raised KeyError"),
        (Shape, "broken", "id: Input should be a valid integer, unable to parse string as an"),
        (None, "right", ""),
    ],
)
def test_a_row_is_judged(check, state, reason):
    """Right, broken, or an error of the check; a pushed rule leaves that to the database."""
    rule = Rule("x", violates=bool) if check is None else Rule("x", check=check)
    judgment = rule.judge({"id": "secret", "note": "x"})
    assert state == judgment.state
    assert reason in judgment.reason
    assert "secret" not in judgment.reason


def test_a_model_names_each_column_that_is_wrong():
    """And says `row` where the row as a whole is."""
    judgment = Rule("x", check=Shape).judge({"id": "x"})
    assert ["id", "note"] == [part.split(":")[0] for part in judgment.reason.split("; ")]
    assert "row" == Rule("x", check=Shape).judge(None).reason.split(":")[0]
    assert "right" == Rule("x", check=Shape).judge({"id": 1, "note": ""}).state


def test_rows_that_a_check_passes_are_no_suspects():
    """Those of which it raises are; and all, where only a closer look tells."""
    rows = [{"id": 1}, {"id": 2}, {}]
    rule = Rule("x", check=lambda row: row["id"] == 1)
    assert [{"id": 2}, {}] == list(suspects(rule, rows))
    for rule in (Rule("x", check=Shape), Rule("x", violates=bool)):
        assert rows == list(suspects(rule, rows))


# --- verifications --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client():
    """A client of a project that nobody asks for anything."""
    return create_client("http://127.0.0.1:9", "sb_secret_key")


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"rules": []}, ValueError, "nothing to verify: give rules= or data_validator="),
        ({"rules": RIGHT}, TypeError, "rules must be a sequence of Rule, got <Rule 'right'"),
        ({"rules": "x"}, TypeError, "rules must be a sequence of Rule, got 'x'"),
        ({"rules": None}, TypeError, "rules must be a sequence of Rule, got None"),
        ({"rules": [1]}, TypeError, "rules must be a sequence of Rule, got 1 in it"),
        ({"rules": [RIGHT, RIGHT]}, ValueError, "'right'"),
        ({"data_validator": 1}, TypeError, "data_validator must be callable, got 1"),
        ({"data_validator": coroutine}, TypeError, "check must not be a coroutine function"),
        ({"fix_missing_data": "x"}, TypeError, "fix_missing_data must be callable, got 'x'"),
        ({"throttle": 1.5}, TypeError, "throttle must be callable, got 1.5"),
        ({"id_column": ""}, ValueError, "id_column must not be empty"),
        ({"id_column": ()}, ValueError, "id_column must not be empty"),
        ({"id_column": ("a", 1)}, TypeError, "id_column must be a string, got 1"),
        ({"id_column": 1}, TypeError, "id_column must be .*, got 1"),
        ({"id_column": ("a", "a")}, ValueError, "id_column .*'a'"),
        ({"schema": ""}, ValueError, "schema must not be empty"),
        ({"interval": 0}, ValueError, "interval must be more than 0 seconds, got 0"),
        ({"interval": "1"}, TypeError, "interval must be a number, got '1'"),
        ({"grace": -1}, ValueError, "grace must be >= 0, got -1"),
        ({"grace": math.nan}, ValueError, "grace must be finite, got nan"),
        ({"overlap": -1}, ValueError, "overlap must be >= 0, got -1"),
        ({"max_share": -0.1}, ValueError, "max_share must be >= 0, got -0.1"),
        ({"max_fixes": -1}, ValueError, "max_fixes must be >= 0, got -1"),
        ({"max_fixes": 1.5}, TypeError, "max_fixes must be a whole number, got 1.5"),
        ({"batch_size": 0}, ValueError, "batch_size must be >= 1, got 0"),
        ({"ranges": 0}, ValueError, "ranges must be >= 1, got 0"),
        ({"full_every": 0}, ValueError, "full_every must be >= 1, got 0"),
        ({"changed_since": ""}, ValueError, "changed_since must not be empty"),
        ({"lease": 1}, TypeError, "lease must be a string, got 1"),
        ({"cursor": "file"}, TypeError, "cursor must be a cursor store, got 'file'"),
        ({"token": 1}, TypeError, "token must be a string, got 1"),
        ({"only_between": "01:00"}, TypeError, "must be two times, .* got '01:00'"),
        ({"only_between": ("01:00",)}, TypeError, "must be two times"),
        ({"only_between": ("1am", "5am")}, ValueError, r"like '01:00', got \('1am', '5am'\)"),
        ({"only_between": (1, 5)}, ValueError, r"like '01:00', got \(1, 5\)"),
        ({"only_between": ("01:00", "01:00")}, ValueError, "two different times"),
        ({"on_event": None}, TypeError, "on_event must be callable, got None"),
    ],
)
def test_options_that_make_no_sense_are_refused(client, options, error, reason):
    """Where the verification is made, with the name of the argument and the value."""
    with pytest.raises(error, match=reason):
        ServerSideVerification(client, "orders", **{"rules": [RIGHT], **options})


def test_the_table_must_have_a_name(client):
    """An empty one would be the root of the API."""
    with pytest.raises(ValueError, match="table must not be empty"):
        ServerSideVerification(client, "", rules=[RIGHT])


@pytest.mark.parametrize("count", [0, True, "4"])
def test_ranges_are_counted_in_whole_numbers(client, count):
    """From one on."""
    with pytest.raises((TypeError, ValueError), match=f"count must be .*, got {count!r}"):
        ServerSideVerification(client, "orders", rules=[RIGHT]).key_ranges(count)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_each_colour_takes_its_own_client(client, anyio_backend):
    """The other one is named; the factory chooses by itself."""
    other = await acreate_client("http://127.0.0.1:9", "sb_secret_key")
    with pytest.raises(TypeError, match="use ServerSideVerification for it"):
        AsyncServerSideVerification(client, "orders", rules=[RIGHT])
    with pytest.raises(TypeError, match="use AsyncServerSideVerification for it"):
        ServerSideVerification(other, "orders", rules=[RIGHT])
    with pytest.raises(TypeError, match=re.escape("must be a supabase Client, got 'x'")):
        server_side_verification("x", "orders", rules=[RIGHT])
    for given, kind in ((client, ServerSideVerification), (other, AsyncServerSideVerification)):
        assert kind is type(server_side_verification(given, "orders", rules=[RIGHT]))


# --- hours ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hours", "now", "seconds"),
    [
        (("01:00", "05:00"), "01:00", 0),
        (("01:00", "05:00"), "04:59:59", 0),
        (("01:00", "05:00"), "05:00", 20 * 3600),
        (("01:00", "05:00"), "00:59:30", 30),
        (("22:00", "02:00"), "23:00", 0),
        (("22:00", "02:00"), "01:59", 0),
        (("22:00", "02:00"), "02:00", 20 * 3600),
        (("22:00:30", "02:00"), "22:00:29.5", 0.5),
    ],
)
def test_hours_begin_and_end_by_the_clock(hours, now, seconds):
    """The end is outside; they may span midnight."""
    assert seconds == Window.of(hours).seconds_until(datetime.fromisoformat(f"2026-01-01T{now}"))


def test_without_hours_there_is_no_window():
    """Any time is right."""
    assert Window.of(None) is None
