"""What is asked of PostgREST: its operators, and values that its grammar could take for its own."""

from typing import Any

import pytest

from supabase_resilience._queries import Select, after, all_of, named, next_page, quoted
from supabase_resilience.listener._changes import Shape
from supabase_resilience.listener._reads import conditions_of, with_keys

ONE = Shape("public", "orders", ["id"])
TWO = Shape("public", "lines", ["order", "line no"])

QUOTED: list[tuple[Any, str]] = [
    (7, "7"),
    (-7.5, "-7.5"),
    (2**63 - 1, "9223372036854775807"),
    (True, "true"),
    (False, "false"),
    ("plain", '"plain"'),
    ("a,b.c:(d) e", '"a,b.c:(d) e"'),
    ('say "a"', '"say \\"a\\""'),
    ("back\\slash", '"back\\\\slash"'),
    ("null", '"null"'),
    ("0b3c1f0e-3c5a-4d0b-8f2e-0d8a4f0a1b2c", '"0b3c1f0e-3c5a-4d0b-8f2e-0d8a4f0a1b2c"'),
]


@pytest.mark.parametrize(("value", "text"), QUOTED)
def test_quoted(value, text):
    """Text is put in quotes, with its own quotes and backslashes escaped; numbers are not."""
    assert text == quoted(value)


@pytest.mark.parametrize(
    ("column", "text"),
    [("id", "id"), ("_a1", "_a1"), ("line no", '"line no"'), ("a.b", '"a.b"'), ("1a", '"1a"')],
)
def test_named(column, text):
    """A name that is no plain identifier is put in quotes."""
    assert text == named(column)


def test_all_of():
    """One condition stands alone, several are an `and`."""
    assert "a.eq.1" == all_of(["a.eq.1"])
    assert "and(a.eq.1,b.gt.2)" == all_of(["a.eq.1", "b.gt.2"])


def test_after():
    """What follows a row is greater in the first column that differs."""
    row = {"order": "x", "line no": 2, "part": 3}
    assert '"line no".gt.2' == after(["line no"], row)
    assert (
        'order.gt."x",and(order.eq."x","line no".gt.2),and(order.eq."x","line no".eq.2,part.gt.3)'
        == after(["order", "line no", "part"], row)
    )


PAGES: list[tuple[list[str], dict[str, Any] | None, Any]] = [
    (["id"], None, ([], None)),
    (["id"], {"id": "a,b"}, ([("id", "gt", "a,b")], None)),
    (["at", "id"], {"at": 5, "id": 7}, ([("at", "gte", "5")], "at.gt.5,and(at.eq.5,id.gt.7)")),
]


@pytest.mark.parametrize(("order", "last", "page"), PAGES)
def test_next_page(order, last, page):
    """A page begins after the last row of the one before, and an index can find that."""
    assert page == next_page(order, last)


def test_rows_with_keys():
    """Keys of one column are a list; a value of it is quoted, a filter stays."""
    where = [("status", "eq", "open")]
    keys = [7, "a,b", 'c"d']
    assert Select(where=[("id", "in", '(7,"a,b","c\\"d")'), *where]) == with_keys(
        ONE, keys, where=where
    )


def test_rows_with_composite_keys():
    """Keys of several columns are alternatives."""
    select = with_keys(TWO, [("x", 1), ("y", 2)])
    either = 'and(order.eq."x","line no".eq.1),and(order.eq."y","line no".eq.2)'
    assert ([], either) == (list(select.where), select.any_of)


FILTERS: list[tuple[str | None, list[tuple[str, str, str]]]] = [
    (None, []),
    ("status=eq.open", [("status", "eq", "open")]),
    ("status=eq.open,amount=gt.100", [("status", "eq", "open"), ("amount", "gt", "100")]),
    ("status=eq.open, amount=gt.100", [("status", "eq", "open"), ("amount", "gt", "100")]),
    ("id=in.(1,2,3),a=lt.1", [("id", "in", "(1,2,3)"), ("a", "lt", "1")]),
    ('name=in.("a,b","c)"),a=lt.1', [("name", "in", '("a,b","c)")'), ("a", "lt", "1")]),
    ("name=like.a%.b=c", [("name", "like", "a%.b=c")]),
    ("at=gte.2026-01-01T00:00:00.5Z", [("at", "gte", "2026-01-01T00:00:00.5Z")]),
    ("deleted=is.null", [("deleted", "is", "null")]),
    ("deleted=not.is.null", [("deleted", "not.is", "null")]),
    ("id=not.in.(1,2)", [("id", "not.in", "(1,2)")]),
    ("name=eq.", [("name", "eq", "")]),
    ("a=isdistinct.1", [("a", "isdistinct", "1")]),
]


@pytest.mark.parametrize(("text", "conditions"), FILTERS)
def test_filter(text, conditions):
    """A filter of Realtime is told to PostgREST part by part."""
    assert conditions == conditions_of(text)


@pytest.mark.parametrize(
    "text", ["", "status", "status=open", "=eq.open", "a=eq.1,", "a=not.is", "a=.1", "a=not..1"]
)
def test_bad_filter(text):
    """What is no filter is refused, with an example and the value."""
    with pytest.raises(ValueError, match=r"filter must be like 'column=operator\.value'"):
        conditions_of(text)
