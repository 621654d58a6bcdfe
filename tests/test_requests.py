"""What a request is, whether it may be sent again, and the promise of `idempotent()`."""

import asyncio
import contextvars
import json
import threading
from typing import Any

import httpx
import pytest

from supabase_resilience import Target, by_table, idempotent
from supabase_resilience._requests import (
    answer_as_applied,
    is_repeatable,
    is_repeated_insert,
    is_within_idempotent,
    target_of,
)

pytestmark = pytest.mark.anyio

URL = "https://project.supabase.test/rest/v1/"
MERGE = "return=representation,resolution=merge-duplicates"
IGNORE = "return=representation,resolution=ignore-duplicates"


@pytest.fixture
def anyio_backend():
    return "asyncio"


def options(body: Any = None, prefer: str = "", **params: str) -> dict[str, Any]:
    """Make the options of a request as supabase-py makes them."""
    return {
        "content": None if body is None else json.dumps(body).encode(),
        "params": httpx.QueryParams({name.replace("__", "."): of for name, of in params.items()}),
        "headers": httpx.Headers({"Prefer": prefer, "Content-Profile": "public"}),
    }


def repeatable(method: str, path: str = "t", **request: Any) -> bool:
    return is_repeatable(method, URL + path, options(**request))


# --- where it goes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "url", "headers", "target", "key"),
    [
        ("GET", URL + "t", {}, ("GET", "public", "t", False), "public.t"),
        ("POST", URL + "rpc/f", {}, ("POST", "public", "f", True), "public.rpc/f"),
        ("GET", URL + "rpc/f", {}, ("GET", "public", "f", True), "public.rpc/f"),
        ("HEAD", "t?x=eq.1/2", {}, ("HEAD", "public", "t", False), "public.t"),
        ("GET", URL + "t/", {}, ("GET", "public", "t", False), "public.t"),
        ("GET", URL + "rpc", {}, ("GET", "public", "rpc", False), "public.rpc"),
        ("GET", "/rpc/f", {}, ("GET", "public", "f", True), "public.rpc/f"),
        ("GET", "https://[/t", {}, ("GET", "public", "t", False), "public.t"),
        ("GET", URL + "a%20t", {}, ("GET", "public", "a t", False), "public.a t"),
        ("get", URL + "t", {"Accept-Profile": "o"}, ("GET", "o", "t", False), "o.t"),
        ("HEAD", URL + "t", {"Accept-Profile": "o"}, ("HEAD", "o", "t", False), "o.t"),
        ("POST", URL + "t", {"Content-Profile": "o"}, ("POST", "o", "t", False), "o.t"),
        ("GET", URL + "t", {"Content-Profile": "o"}, ("GET", "public", "t", False), "public.t"),
        ("PATCH", URL + "t", {"Accept-Profile": "o"}, ("PATCH", "public", "t", False), "public.t"),
    ],
)
def test_target(method: str, url: str, headers: dict[str, str], target: Any, key: str) -> None:
    """Schema, name and kind are read off the URL and the header that counts for the method."""
    found = target_of(method, url, httpx.Headers(headers))
    assert target == found
    assert key == by_table(found)


def test_target_of_a_url_object() -> None:
    """A URL that is no string is read as well."""
    assert Target("GET", "public", "t", is_rpc=False) == target_of("GET", httpx.URL(URL + "t"), {})


# --- what may be repeated -----------------------------------------------------------------------

UPDATES: list[tuple[dict[str, str], bool]] = [
    ({"id": "eq.1"}, True),
    ({}, True),
    ({"select": "version", "order": "version", "limit": "1", "offset": "2", "id": "eq.1"}, True),
    ({"columns": "version", "on_conflict": "version"}, True),
    ({"version": "eq.1"}, False),
    ({"id": "eq.1", "version": "eq.1"}, False),
    ({"id": "eq.1", "xmin": "eq.7"}, False),
    ({"data->>version": "eq.1"}, False),
    ({"data->version->x": "eq.1"}, False),
    ({'"version"': "eq.1"}, False),
    ({"or": "(a.eq.1,b.eq.2)"}, False),
    ({"and": "(a.eq.1)"}, False),
    ({"not.or": "(a.eq.1)"}, False),
    ({"not.and": "(a.eq.1)"}, False),
    ({"version_of": "eq.1", "other->>version": "eq.1"}, True),
]


@pytest.mark.parametrize(("params", "expected"), UPDATES, ids=[str(each) for each, _ in UPDATES])
def test_update(params: dict[str, str], *, expected: bool) -> None:
    """An update by filter may be repeated, a compare-and-swap may not."""
    assert expected == repeatable("PATCH", body={"version": 2, "data": {}}, **params)


def test_update_that_names_its_filter_in_the_url() -> None:
    """A filter in the URL is a filter."""
    assert not repeatable("PATCH", "t?version=eq.1", body={"version": 2})
    assert not repeatable("PATCH", "t?version=", body={"version": 2})
    assert repeatable("PATCH", "t?id=eq.1", body={"version": 2})


def test_update_of_many_columns() -> None:
    """Each column that changes counts."""
    assert not repeatable("PATCH", body={"a": 1, "b": 2, "c": 3}, b="eq.1")


@pytest.mark.parametrize("content", [None, b"", b"\x00", "not JSON", iter([b"{}"]), b"[1]", b"{}"])
def test_update_that_cannot_be_read(content: Any) -> None:
    """When nobody knows what changes, it is not repeated."""
    assert not is_repeatable("PATCH", URL + "t", {**options(id="eq.1"), "content": content})


UPSERTS: list[tuple[Any, str, dict[str, str], bool]] = [
    ({"id": 1}, MERGE, {"on_conflict": "id"}, True),
    ({"id": 0}, MERGE, {"on_conflict": "id"}, True),
    ([{"id": 1}, {"id": 2}], MERGE, {"on_conflict": "id"}, True),
    ({"a": 1, "b": 2}, MERGE, {"on_conflict": "a,b"}, True),
    ({"a": 1, "b": 2}, MERGE, {"on_conflict": 'a, "b"'}, True),
    ({"x": 1}, MERGE, {"on_conflict": "id"}, False),
    ({"id": None}, MERGE, {"on_conflict": "id"}, False),
    ([{"id": 1}, {"x": 2}], MERGE, {"on_conflict": "id"}, False),
    ([{"id": 1}, {"id": None}], MERGE, {"on_conflict": "id"}, False),
    ({"a": 1}, MERGE, {"on_conflict": "a,b"}, False),
    ({"id": 1}, MERGE, {}, True),
    ([{"id": 1}, {"id": 2}], MERGE, {}, True),
    ({"note": "x"}, MERGE, {}, False),
    ([{"id": 1}, {"note": "x"}], MERGE, {}, False),
    ([], MERGE, {"on_conflict": "id"}, False),
    (None, MERGE, {"on_conflict": "id"}, False),
    ({"id": 1}, IGNORE, {"on_conflict": "id"}, False),
    ({"id": 1}, "return=minimal,resolution=ignore-duplicates", {"on_conflict": "id"}, True),
    ({"x": 1}, "return=minimal,resolution=ignore-duplicates", {"on_conflict": "id"}, False),
]


@pytest.mark.parametrize(("body", "prefer", "params", "expected"), UPSERTS)
def test_upsert(body: Any, prefer: str, params: dict[str, str], *, expected: bool) -> None:
    """An upsert may be repeated when every row has its key, and the answer stays the same."""
    assert expected == repeatable("POST", body=body, prefer=prefer, **params)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "t", True),
        ("HEAD", "t", True),
        ("get", "t", True),
        ("GET", "rpc/f", True),
        ("HEAD", "rpc/f", True),
        ("DELETE", "t", True),
        ("DELETE", "t?id=eq.1", True),
        ("POST", "t", False),
        ("POST", "rpc/f", False),
        ("OPTIONS", "t", False),
        ("PROPFIND", "t", False),
    ],
)
def test_other_kinds(method: str, path: str, *, expected: bool) -> None:
    """Reads and silent deletes may be repeated; plain inserts and rpc posts may not."""
    assert expected == repeatable(method, path, body={"id": 1})
    with idempotent():
        assert repeatable(method, path, body={"id": 1})


def test_put() -> None:
    """A PUT is an upsert of one row by its key."""
    assert repeatable("PUT", "t?id=eq.1", body={"id": 1, "x": 2})
    assert not repeatable("PUT", "t?id=eq.1", body={"x": 2})


def test_rpc_that_looks_like_an_upsert() -> None:
    """A function stays a function, whatever its headers say."""
    assert not repeatable("POST", "rpc/f", body={"id": 1}, prefer=MERGE)


def test_delete_that_tells_the_rows() -> None:
    """Repeated, it would tell that there was nothing to delete."""
    assert not repeatable("DELETE", prefer="return=representation", id="eq.1")
    assert repeatable("DELETE", prefer="return=minimal", id="eq.1")


@pytest.mark.parametrize("headers", [None, {}])
def test_without_headers(headers: Any) -> None:
    """A request made by hand may have no headers and no params."""
    for method, expected in (("GET", True), ("POST", False), ("PATCH", True), ("DELETE", True)):
        sent = {"json": {"x": 1}, "params": None, "headers": headers}
        assert expected == is_repeatable(method, URL + "t", sent)
    assert is_repeatable("GET", URL + "t", {})


def test_body_by_hand() -> None:
    """A body given as `json=` is read like one given as `content=`."""
    sent = {"json": {"version": 2}, "params": {"version": "eq.1"}}
    assert not is_repeatable("PATCH", URL + "t", sent)
    assert (201, [{"id": 1}]) == answer_as_applied(
        {"json": {"id": 1}, "headers": {"prefer": "return=representation"}}
    )


# --- a duplicate of our own ---------------------------------------------------------------------


TAKEN_ID = b'{"code": "23505", "details": "Key (id)=(1) already exists.", "message": "x"}'
TAKEN_PKEY = b'{"message": "duplicate key value violates unique constraint \\"t_pkey\\""}'
TAKEN_EMAIL = b'{"code": "23505", "details": "Key (email)=(a) already exists."}'


def test_repeated_insert() -> None:
    """Only a plain insert within idempotent() can be its own duplicate."""
    insert, upsert = options({"id": 1}), options({"id": 1}, MERGE)
    assert not is_repeated_insert("POST", URL + "t", insert, TAKEN_ID)
    with idempotent():
        assert is_repeated_insert("POST", URL + "t", insert, TAKEN_ID)
        assert is_repeated_insert("POST", URL + "t", insert, TAKEN_PKEY)
        assert is_repeated_insert("POST", URL + "t", {"headers": None}, TAKEN_ID)
        assert not is_repeated_insert("POST", URL + "t", upsert, TAKEN_ID)
        assert not is_repeated_insert("PATCH", URL + "t", insert, TAKEN_ID)
        assert not is_repeated_insert("POST", URL + "rpc/f", insert, TAKEN_ID)


@pytest.mark.parametrize("told", [TAKEN_EMAIL, b"", b"[]", b"no json"])
def test_insert_refused_for_another_value(told: bytes) -> None:
    """A row with an id is known by it: when something else is taken, it was never inserted."""
    with idempotent():
        assert not is_repeated_insert("POST", URL + "t", options({"id": 1, "email": "a"}), told)


@pytest.mark.parametrize(
    ("body", "headers", "answer"),
    [
        ({"id": 1}, {"Prefer": "return=representation"}, [{"id": 1}]),
        ([{"id": 1}, {"id": 2}], {"Prefer": "return=representation"}, [{"id": 1}, {"id": 2}]),
        ({"id": 1}, {"Prefer": "return=minimal"}, None),
        ({"id": 1}, {}, None),
        (
            {"id": 1},
            {"Prefer": "return=representation", "Accept": "application/vnd.pgrst.object+json"},
            {"id": 1},
        ),
        (
            [],
            {"Prefer": "return=representation", "Accept": "application/vnd.pgrst.object+json"},
            [],
        ),
    ],
)
def test_answer_as_applied(body: Any, headers: dict[str, str], answer: Any) -> None:
    """The answer has the rows as they were sent, in the form that was asked for."""
    sent = {"content": json.dumps(body).encode(), "headers": httpx.Headers(headers)}
    assert (201, answer) == answer_as_applied(sent)


# --- idempotent() -------------------------------------------------------------------------------


def test_idempotent_is_for_its_block() -> None:
    """The promise begins and ends with the block, also when the block raises."""
    assert not is_within_idempotent()
    with pytest.raises(KeyError), idempotent() as block:
        raise KeyError(is_within_idempotent(), block)
    assert not is_within_idempotent()


def test_idempotent_nested() -> None:
    """An inner block does not end the outer one's promise."""
    with idempotent():
        with idempotent():
            assert is_within_idempotent()
        assert is_within_idempotent()
    assert not is_within_idempotent()


def test_idempotent_nested_in_itself() -> None:
    """One object may be entered twice."""
    block = idempotent()
    for _ in range(2):
        with block:
            with block:
                assert is_within_idempotent()
            assert is_within_idempotent()
        assert not is_within_idempotent()


async def test_idempotent_in_tasks() -> None:
    """A task started inside keeps the promise, also after the block; one started outside has none.

    One object may be shared by tasks whose blocks overlap.
    """
    block, inside, left = idempotent(), asyncio.Event(), asyncio.Event()
    seen: list[bool] = []

    async def look_later() -> None:
        await left.wait()
        seen.append(bool(is_within_idempotent()))

    async def promise() -> None:
        with block:
            inside.set()
            await left.wait()
            seen.append(bool(is_within_idempotent()))
        seen.append(bool(is_within_idempotent()))

    outside = asyncio.create_task(promise())
    await inside.wait()
    assert not is_within_idempotent()
    with block:
        started_inside = asyncio.create_task(look_later())
        await asyncio.wait({asyncio.create_task(is_inside_of(block))})
    left.set()
    await asyncio.gather(outside, started_inside)
    assert [False, True, True] == sorted(seen)
    assert not is_within_idempotent()


async def is_inside_of(block: idempotent) -> None:
    with block:
        assert is_within_idempotent()
    assert is_within_idempotent()


def test_idempotent_and_threads() -> None:
    """The promise does not reach threads, as its documentation says."""
    seen: list[bool] = []
    with idempotent():
        thread = threading.Thread(
            target=lambda: seen.append(bool(is_within_idempotent())),
        )
        thread.start()
        thread.join()
        kept = contextvars.copy_context()
    assert [False] == seen
    assert kept.run(is_within_idempotent)
