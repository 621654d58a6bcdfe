"""REST and Auth of the local stack answer as PostgREST and Supabase do.

Where supabase-py would hide a status or a header, the test speaks HTTP itself.
"""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from postgrest import APIError, CountMethod
from supabase import AsyncClientOptions, Client, create_async_client, create_client
from supabase.lib.client_options import SyncClientOptions
from supabase_auth.errors import AuthApiError

from supabase_resilience.local import LocalSupabase
from supabase_resilience.local._child import Child
from supabase_resilience.local._node import rest_command

REPRESENTATION = {"Prefer": "return=representation"}
MERGE = {"Prefer": "resolution=merge-duplicates,return=representation"}
STRICT = "handling=strict"
ONE_OBJECT = {"Accept": "application/vnd.pgrst.object+json"}
JSON_BODY = {"Content-Type": "application/json"}
QUEUES = {"Content-Profile": "pgmq_public"}


@pytest.fixture(scope="module")
def rest_stack() -> Iterator[LocalSupabase]:
    """One stack for the whole file; each test makes the rows that it needs."""
    with LocalSupabase(schema=[Path(__file__).with_name("rest_schema.sql")]) as local:
        yield local


Connect = Callable[[str], Client]


@pytest.fixture(scope="module")
def connect(rest_stack: LocalSupabase) -> Iterator[Connect]:
    """Return a function that makes a supabase-py client for a key; its connections are closed."""
    with ExitStack() as sessions:

        def connect(key: str) -> Client:
            session = sessions.enter_context(httpx.Client(timeout=60))
            return create_client(rest_stack.url, key, SyncClientOptions(httpx_client=session))

        yield connect


@pytest.fixture(scope="module")
def client(connect: Connect, rest_stack: LocalSupabase) -> Client:
    return connect(rest_stack.secret_key)


@pytest.fixture(scope="module")
def http(rest_stack: LocalSupabase) -> Iterator[httpx.Client]:
    """HTTP as the service role, without supabase-py in between."""
    headers = {"apikey": rest_stack.secret_key}
    url = f"{rest_stack.url}/rest/v1"
    with httpx.Client(base_url=url, headers=headers, timeout=60) as http:
        yield http


@pytest.fixture
def admin(rest_stack: LocalSupabase) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(rest_stack.admin_dsn, autocommit=True) as connection:
        yield connection


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid4().hex[:12]}"


def new_item(client: Client, **values: Any) -> dict[str, Any]:
    return client.table("items").insert({"name": unique("item"), **values}).execute().data[0]


def error_of(response: httpx.Response) -> tuple[int, str | None]:
    body = response.json()
    return response.status_code, body.get("code") if isinstance(body, dict) else None


# --- Values ---


@pytest.mark.parametrize(
    ("column", "sent", "printed"),
    [
        ("big", "9223372036854775807", "9223372036854775807"),
        ("big", '"-9007199254740993"', "-9007199254740993"),
        ("price", "12.30", "12.30"),
        ("price", "7", "7.00"),
        ("ratio", "0.1", "0.1"),
        ("ratio", '"NaN"', '"NaN"'),
        ("ratio", '"-Infinity"', '"-Infinity"'),
        ("at", '"2026-01-02 03:04:05.678+02"', '"2026-01-02T01:04:05.678+00:00"'),
        ("local_at", '"2026-01-02 03:04:05"', '"2026-01-02T03:04:05"'),
        ("day", '"2026-01-02"', '"2026-01-02"'),
        ("bytes", '"\\\\x00ff"', '"\\\\x00ff"'),
        ("words", '["a,b","c\\"d",null]', '["a,b","c\\"d",null]'),
        ("doc", '{"n":12345678901234567890,"f":1.0}', '{"f": 1.0, "n": 12345678901234567890}'),
        ("doc", "true", "true"),
        ("doc", '"true"', '"true"'),
        ("doc", '"{\\"a\\":1}"', '"{\\"a\\":1}"'),
        ("doc", "null", "null"),
        ("raw", '{"b":1.0,  "a":[]}', '{"b":1.0,  "a":[]}'),
        ("ok", "false", "false"),
    ],
)
def test_values_come_back_as_postgrest_prints_them(
    http: httpx.Client, column: str, sent: str, printed: str
) -> None:
    """A value's text survives the way in and out: nothing is rounded, reformatted or re-typed."""
    body = f'{{"id":{uuid4().int % 10**15},"{column}":{sent}}}'
    response = http.post(
        f"/samples?select={column}", content=body, headers=REPRESENTATION | JSON_BODY
    )

    assert f'[{{"{column}":{printed}}}]' == response.text


def test_big_integers_are_exact_both_ways_through_supabase_py(client: Client) -> None:
    """Beyond 2^53 a key is still one row's key: in bodies, filters, functions and JSON."""
    key = 2**53 + 1 + uuid4().int % 10**12 * 2
    client.table("samples").insert({"id": key, "big": key, "doc": {"n": key}}).execute()
    client.table("samples").insert({"id": key + 1}).execute()
    row = client.table("samples").select("*").eq("id", key).eq("doc->n", key).single().execute()
    listed = client.table("samples").select("id").in_("id", [key, key + 1]).order("id").execute()

    assert (key, key, {"n": key}) == (row.data["id"], row.data["big"], row.data["doc"])
    assert [{"id": key}, {"id": key + 1}] == listed.data
    assert key == client.rpc("echo_bigint", {"value": key}).execute().data
    assert {"n": [key]} == client.rpc("echo", {"value": {"n": [key]}}).execute().data


def test_csv_is_what_postgresql_prints(client: Client) -> None:
    """CSV shows arrays and JSON in PostgreSQL's own notation."""
    key = uuid4().int % 10**15
    client.table("samples").insert({"id": key, "words": ["a", "b c"], "doc": {"x": 1}}).execute()
    csv = client.table("samples").select("id,words,doc").eq("id", key).csv().execute().data

    assert f'id,words,doc\n{key},"{{a,""b c""}}","{{""x"": 1}}"' == csv


# --- Reading ---


def test_relations_are_embedded_along_their_keys(client: Client) -> None:
    """Many-to-one, one-to-many, many-to-many and a view's relation are found by foreign keys."""
    author = client.table("authors").insert({"name": unique("author")}).execute().data[0]
    item = new_item(client, author_id=author["id"])
    tag = {"id": uuid4().int % 10**9, "label": "red"}
    client.table("tags").insert(tag).execute()
    client.table("item_tags").insert({"item_id": item["id"], "tag_id": tag["id"]}).execute()
    items = client.table("items").select("id, authors(name), tags(label), ...authors(author:name)")
    authors = client.table("authors").select("writes:items(id)").eq("id", author["id"])
    view = client.table("item_names").select("by:authors!inner(name)").eq("id", item["id"])

    assert [
        {
            "id": item["id"],
            "authors": {"name": author["name"]},
            "tags": [{"label": "red"}],
            "author": author["name"],
        }
    ] == items.eq("id", item["id"]).execute().data
    assert [{"writes": [{"id": item["id"]}]}] == authors.execute().data
    assert [{"by": {"name": author["name"]}}] == view.execute().data


def test_embedded_rows_have_their_own_filters_order_and_limit(client: Client) -> None:
    """A filter on an embedded relation keeps the parent, unless its join is inner."""
    author = client.table("authors").insert({"name": unique("author")}).execute().data[0]
    low, high = (new_item(client, author_id=author["id"], qty=qty) for qty in (1, 9))
    lonely = client.table("authors").insert({"name": unique("author")}).execute().data[0]
    both = [author["id"], lonely["id"]]

    def names(query: Any) -> list[Any]:
        return query.in_("id", both).order("id").execute().data

    def embedded(embed: str) -> Any:
        return client.table("authors").select(f"id, items{embed}(id)")

    top = (
        embedded("").order("qty", desc=True, foreign_table="items").limit(1, foreign_table="items")
    )
    assert [{"id": both[0], "items": [{"id": high["id"]}]}, {"id": both[1], "items": []}] == names(
        top
    )
    assert [{"id": both[0], "items": [{"id": low["id"]}]}] == names(
        embedded("!inner").lt("items.qty", 5)
    )
    assert [both[1]] == [row["id"] for row in names(embedded("").is_("items", "null"))]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("n=in.(3,1,2)&order=n.desc&limit=2", [3, 2]),
        ("or=(n.gt.1499,and(n.eq.7,label.eq.row 7))&order=n", [7, 1500]),
        ("n=gte.5&n=lt.8&label=neq.row 6&order=n.asc.nullslast", [5, 7]),
        ('or=(label.eq."row 3",label.in.("row 4","x,y"))&order=n', [3, 4]),
        ("label=like.row 149*&not.and=(n.gt.1491,n.lt.1500)&order=n", [149, 1490, 1491]),
        ("n=not.lte.1499", [1500]),
        ("label=match.^row 9{2}$", [99]),
        ("n=eq(any).{1,2}&order=n", [1, 2]),
        ("label=fts.1234", [1234]),
        ("n=isdistinct.1&n=lt.3&label=is.not_null", [2]),
    ],
)
def test_filters_and_logic(http: httpx.Client, query: str, expected: list[int]) -> None:
    """Operators, negation, quoting and nested logic mean what they mean in PostgREST."""
    response = http.get(f"/numbers?select=n&{query}")

    assert expected == [row["n"] for row in response.json()]


def test_rows_are_capped_silently(http: httpx.Client) -> None:
    """A limit above the cap of 1,000 rows is lowered without a word; only a count tells."""
    silent = http.get("/numbers?limit=5000")
    counted = http.get("/numbers", headers={"Prefer": "count=exact"})

    assert (200, "0-999/*", 1000) == (
        silent.status_code,
        silent.headers["Content-Range"],
        len(silent.json()),
    )
    assert (206, "0-999/1500") == (counted.status_code, counted.headers["Content-Range"])


def test_ranges_and_counts(http: httpx.Client) -> None:
    """The Range header narrows limit and offset; past the end it is an error only when counted."""
    exact = {"Prefer": "count=exact"}
    page = http.get("/numbers?select=n&offset=10&order=n", headers={"Range": "12-13"} | exact)
    past = http.get("/numbers?offset=2000", headers=exact)
    unknown = http.get("/numbers?offset=2000")

    assert (206, "12-13/1500", [{"n": 13}, {"n": 14}]) == (
        page.status_code,
        page.headers["Content-Range"],
        page.json(),
    )
    assert (416, "PGRST103") == error_of(past)
    assert (200, "*/*", []) == (
        unknown.status_code,
        unknown.headers["Content-Range"],
        unknown.json(),
    )


def test_counts_through_supabase_py(client: Client) -> None:
    """An exact and a capped estimated count are exact; a planned one is the planner's."""
    counters = client.table("counters")
    counts = {
        method: counters.select("*", count=method, head=True).execute().count
        for method in CountMethod
    }

    assert 1 == counts[CountMethod.exact] == counts[CountMethod.estimated]
    assert counts[CountMethod.planned] > 1  # never analysed, so the planner guesses


def test_a_plan_is_shown(client: Client) -> None:
    """explain() returns PostgreSQL's plan instead of rows."""
    plan = client.table("counters").select("*").explain(format="json", analyze=True).execute()

    assert "Actual Rows" in json.dumps(plan.data)


# --- Writing ---


def test_rows_with_unequal_keys_get_null_or_the_default(http: httpx.Client) -> None:
    """A missing key is NULL, or with missing=default the column's default; both are shown."""
    rows = [{"name": unique("a"), "note": "set"}, {"name": unique("b")}]
    path = "/items?columns=name,note&select=note,qty"
    with_nulls = http.post(path, json=rows, headers=REPRESENTATION)
    renamed = [{**row, "name": unique("c")} for row in rows]
    defaults = {"Prefer": "return=representation,missing=default"}
    with_defaults = http.post(path, json=renamed, headers=defaults)

    assert [{"note": "set", "qty": 7}, {"note": None, "qty": 7}] == with_nulls.json()
    assert [{"note": "set", "qty": 7}, {"note": "none", "qty": 7}] == with_defaults.json()


def test_a_missing_key_of_a_not_null_column_is_refused(client: Client) -> None:
    """NULL for a missing key meets the NOT NULL constraint."""
    with pytest.raises(APIError) as refused:
        client.table("items").insert(
            [{"name": unique("a"), "qty": 1}, {"name": unique("b")}]
        ).execute()

    assert "23502" == refused.value.code


def test_upsert_tells_whether_anything_was_inserted(http: httpx.Client) -> None:
    """201 when a row is new, 200 when all were merged; ignored duplicates are not returned."""
    name = unique("author")
    path = "/authors?on_conflict=name&select=name"
    ignore = {"Prefer": "resolution=ignore-duplicates,return=representation"}
    answers = [
        http.post(path, json=[{"name": name}], headers=headers)
        for headers in (MERGE, MERGE, ignore)
    ]
    mixed = http.post(path, json=[{"name": name}, {"name": unique("author")}], headers=MERGE)

    assert [(201, 1), (200, 1), (201, 0)] == [(a.status_code, len(a.json())) for a in answers]
    assert (201, 2) == (mixed.status_code, len(mixed.json()))


def test_put_writes_the_row_that_the_url_names(http: httpx.Client) -> None:
    """PUT inserts or replaces one row by its primary key."""
    key = uuid4().int % 10**12
    path = f"/authors?id=eq.{key}"
    first, second = (
        http.put(path, json={"id": key, "name": unique("put")}, headers=REPRESENTATION)
        for _ in range(2)
    )

    assert (201, 200) == (first.status_code, second.status_code)
    assert (400, "PGRST115") == error_of(http.put(path, json={"id": 1, "name": unique("put")}))


def test_patches_that_change_nothing(http: httpx.Client, client: Client) -> None:
    """An empty patch and one that matches no row succeed and return nothing."""
    key = new_item(client)["id"]
    empty = http.patch(f"/items?id=eq.{key}", json={}, headers=REPRESENTATION)
    counted = {"Prefer": "return=representation,count=exact"}
    unmatched = http.patch("/items?id=eq.-1", json={"qty": 1}, headers=counted)
    minimal = http.patch("/items?id=eq.-1", json={"qty": 1})

    assert (200, []) == (empty.status_code, empty.json())
    assert (200, [], "*/0") == (
        unmatched.status_code,
        unmatched.json(),
        unmatched.headers["Content-Range"],
    )
    assert (204, "") == (minimal.status_code, minimal.text)


def test_too_many_affected_rows_are_rolled_back(http: httpx.Client, client: Client) -> None:
    """max-affected under handling=strict refuses the whole write."""
    note = unique("note")
    for _ in range(2):
        new_item(client, note=note)
    limited = {"Prefer": f"{STRICT},max-affected=1"}
    response = http.patch(f"/items?note=eq.{note}", json={"note": "x"}, headers=limited)
    left = client.table("items").select("id", count=CountMethod.exact).eq("note", note).execute()

    assert (400, "PGRST124") == error_of(response)
    assert 2 == left.count


# --- xmin, the optimistic lock of every table ---


def test_xmin_is_a_string_that_filters_match(client: Client) -> None:
    """A row's xmin is text; eq and in find the row by it, also to patch and delete it."""
    item = new_item(client)
    xmin = (
        client.table("items").select("*,xmin").eq("id", item["id"]).single().execute().data["xmin"]
    )
    patch = client.table("items").update({"qty": 1}).eq("id", item["id"])
    patched = patch.eq("xmin", xmin).select("id,xmin").execute().data[0]
    stale = client.table("items").delete().eq("id", item["id"]).in_("xmin", [xmin]).execute()
    gone = client.table("items").delete().eq("xmin", patched["xmin"]).execute()

    assert isinstance(xmin, str)
    assert xmin.isdigit()
    assert patched["xmin"] not in {xmin, None}
    assert [] == stale.data
    assert [item["id"]] == [row["id"] for row in gone.data]


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/items?xmin=gt.1", (404, "42883")),
        ("GET", "/items?order=xmin", (404, "42883")),
        ("GET", "/item_names?select=id,xmin", (400, "42703")),
        ("PATCH", "/items?id=eq.-1&select=*,xmin", (400, "42703")),
    ],
)
def test_what_xmin_cannot_do(
    http: httpx.Client, method: str, path: str, expected: tuple[int, str]
) -> None:
    """It has no order, views have none, and a write returns it only when it is named."""
    body = {"json": {"qty": 1}} if method == "PATCH" else {}
    response = http.request(method, path, headers=REPRESENTATION, **body)

    assert expected == error_of(response)


def test_one_of_twenty_wins_a_compare_and_swap(http: httpx.Client, client: Client) -> None:
    """Twenty concurrent patches of one version: one changes the row, the others match nothing."""
    item = new_item(client, qty=0)
    row = client.table("items").select("xmin").eq("id", item["id"]).single().execute().data
    start = threading.Barrier(20)

    def swap(worker: int) -> list[Any]:
        start.wait()
        path = f"/items?id=eq.{item['id']}&xmin=eq.{row['xmin']}&select=qty"
        return http.patch(path, json={"qty": worker}, headers=REPRESENTATION).json()

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(swap, range(1, 21)))
    winners = [answer for answer in answers if answer]
    stored = client.table("items").select("qty").eq("id", item["id"]).execute().data

    assert [stored] == winners


# --- Errors ---


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("08006", 503),
        ("09000", 500),
        ("0L000", 403),
        ("0P000", 403),
        ("21000", 500),
        ("22012", 400),
        ("22P02", 400),
        ("23503", 409),
        ("23505", 409),
        ("23514", 400),
        ("25006", 405),
        ("25P02", 500),
        ("28000", 403),
        ("2D000", 500),
        ("38000", 500),
        ("39000", 500),
        ("3B000", 500),
        ("40001", 500),
        ("40P01", 500),
        ("42501", 403),
        ("42601", 400),
        ("42883", 404),
        ("42P01", 404),
        ("42P17", 500),
        ("53300", 503),
        ("53400", 500),
        ("54000", 500),
        ("55P03", 500),
        ("57014", 500),
        ("57P01", 503),
        ("58000", 500),
        ("F0000", 500),
        ("HV000", 500),
        ("P0001", 400),
        ("P0002", 500),
        ("PT409", 409),
        ("PT429", 429),
        ("PT503", 503),
        ("XX000", 500),
        ("ZZ123", 400),
    ],
)
def test_each_sqlstate_has_postgrests_status(http: httpx.Client, state: str, status: int) -> None:
    """An error keeps its code, message, detail and hint, and gets the status of its SQLSTATE."""
    said = {"message": "m", "detail": "d", "hint": "h"}
    response = http.post("/rpc/fail", json={"state": state, **said})

    assert status == response.status_code
    assert {"code": state, "message": "m", "details": "d", "hint": "h"} == response.json()
    assert f"PostgREST; error={state}" == response.headers["Proxy-Status"]
    assert (status == 503) == ("Retry-After" in response.headers)


@pytest.mark.parametrize(
    ("method", "path", "headers", "expected"),
    [
        ("GET", "/items?id=foo", {}, (400, "PGRST100")),
        ("GET", "/items?id=noop.1", {}, (400, "PGRST100")),
        ("GET", "/items?or=(id.eq.1", {}, (400, "PGRST100")),
        ("GET", "/items?order=id.up", {}, (400, "PGRST100")),
        ("GET", "/items?select=id,(", {}, (400, "PGRST100")),
        ("PUT", "/rpc/add", {}, (405, "PGRST101")),
        ("POST", "/items", {}, (400, "PGRST102")),
        ("GET", "/items?limit=-1", {}, (416, "PGRST103")),
        ("GET", "/items", {"Range": "5-2"}, (416, "PGRST103")),
        ("PUT", "/authors?name=eq.x", {}, (405, "PGRST105")),
        ("GET", "/items", {"Accept-Profile": "auth"}, (406, "PGRST106")),
        ("GET", "/items", {"Accept": "image/png"}, (406, "PGRST107")),
        ("GET", "/items?authors.id=eq.1", {}, (400, "PGRST108")),
        ("PUT", "/authors?id=eq.1&limit=1", {}, (400, "PGRST114")),
        ("GET", "/items?id=eq.-1", ONE_OBJECT, (406, "PGRST116")),
        ("PROPFIND", "/items", {}, (405, "PGRST117")),
        ("GET", "/authors?select=id,items(id)&order=items(id)", {}, (400, "PGRST118")),
        ("GET", "/authors?select=id,...items(id)", {}, (400, "PGRST119")),
        ("GET", "/items?select=id,authors(id)&authors=eq.1", {}, (400, "PGRST120")),
        ("GET", "/items", {"Prefer": f"{STRICT},color=red"}, (400, "PGRST122")),
        ("GET", "/items?select=qty.sum()", {}, (400, "PGRST123")),
        ("GET", "/items/1", {}, (404, "PGRST125")),
        ("POST", "/rpc/add", {"Prefer": f"{STRICT},max-affected=1"}, (400, "PGRST128")),
        ("GET", "/items?select=samples(id)", {}, (400, "PGRST200")),
        ("POST", "/rpc/add", {}, (404, "PGRST202")),
        ("GET", "/rpc/overloaded?a=1", {}, (300, "PGRST203")),
        ("PATCH", "/items?id=eq.1&columns=nope", {}, (400, "PGRST204")),
        ("GET", "/itemz", {}, (404, "PGRST205")),
        ("GET", "/items?nope=eq.1", {}, (400, "42703")),
        ("GET", "/items?id=eq.x", {}, (400, "22P02")),
        ("DELETE", "/items", {}, (400, "21000")),
        ("GET", "/rpc/bump", {}, (405, "25006")),
        ("POST", "/rpc/fail_as_response", {}, (429, "E123")),
    ],
)
def test_each_mistake_has_postgrests_code(
    http: httpx.Client, method: str, path: str, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    """What the request itself does wrong is told by status and code."""
    bodies = {"PGRST128": {"a": 1}, "PGRST102": None, "PGRST204": {"nope": 1}}
    body = bodies.get(expected[1], {})
    sent = {} if method == "GET" or body is None else {"json": body}
    response = http.request(method, path, headers=headers, **sent)

    assert expected == error_of(response)
    assert f"PostgREST; error={expected[1]}" == response.headers["Proxy-Status"]


def test_the_code_of_a_head_request_is_in_its_headers(http: httpx.Client) -> None:
    """HEAD has no body, so Proxy-Status carries the code."""
    response = http.head("/nothing_here")

    assert (404, "", "PostgREST; error=PGRST205") == (
        response.status_code,
        response.text,
        response.headers["Proxy-Status"],
    )


def test_a_function_can_write_the_whole_response(http: httpx.Client) -> None:
    """Raised as SQLSTATE PGRST, or set in response.status and response.headers."""
    raised = http.post("/rpc/fail_as_response")
    own = http.post("/rpc/own_response")

    assert {"code": "E123", "message": "custom", "details": "d", "hint": "h"} == raised.json()
    assert "7" == raised.headers["Retry-After"]
    assert (418, {"a": 1}, "yes") == (own.status_code, own.json(), own.headers["X-Custom"])


def test_a_longer_url_than_node_allows_by_default(http: httpx.Client) -> None:
    """A filter of tens of kilobytes works; past 64 KiB of URL and headers the answer is 431."""
    long = http.get(f"/numbers?select=n&n=in.({','.join(map(str, range(10_000, 18_000)))},1)")
    too_long = http.get("/numbers?select=n", headers={"X-Long": "x" * 65_536})

    assert [{"n": 1}] == long.json()
    assert 431 == too_long.status_code


@pytest.mark.parametrize("path", ["/functions/v1/hello", "/storage/v1/bucket", "/elsewhere"])
def test_what_the_stack_lacks_is_a_plain_404(rest_stack: LocalSupabase, path: str) -> None:
    """No HTML page is ever mistaken for an answer."""
    response = httpx.get(rest_stack.url + path, headers={"apikey": rest_stack.secret_key})

    assert 404 == response.status_code
    assert "message" in response.json()


# --- Functions ---


def test_functions_are_called_by_name(http: httpx.Client, client: Client) -> None:
    """Defaults, sets, no result at all, variadic and whole-body arguments."""
    new_item(client, qty=3)
    items = client.rpc("items_over", {"minimum": 2}).eq("qty", 3).limit(1).execute()

    assert 3 == client.rpc("add", {"a": 2}).execute().data
    assert 7 == client.rpc("add", {"a": 2, "b": 5}, get=True).execute().data
    assert [3] == [row["qty"] for row in items.data]
    assert (204, "") == ((r := http.post("/rpc/nothing")).status_code, r.text)
    assert {"any": ["thing"]} == http.post("/rpc/whole", json={"any": ["thing"]}).json()
    assert 6 == http.get("/rpc/sum_of?numbers=1&numbers=2&numbers=3").json()


def test_a_request_is_described_to_its_function(rest_stack: LocalSupabase) -> None:
    """Role, claims, method, path and headers are what policies and functions read."""
    sub = str(uuid4())
    token = rest_stack.jwt(sub=sub, email="ann@example.com")
    headers = {"apikey": rest_stack.publishable_key, "Authorization": f"Bearer {token}"}
    response = httpx.get(
        f"{rest_stack.url}/rest/v1/rpc/whoami", headers={**headers, "X-Test": "yes"}
    )
    told = response.json()

    assert ("authenticated", sub, "ann@example.com") == (told["user"], told["uid"], told["email"])
    assert ("authenticated", sub) == (told["role"], told["claims"]["sub"])
    assert ("GET", "/rpc/whoami", "yes") == (told["method"], told["path"], told["header"])


def test_a_wrong_function_name_gets_a_hint(client: Client) -> None:
    """The closest name is suggested, by name or by parameters."""
    with pytest.raises(APIError) as misspelt:
        client.rpc("itemsover", {"minimum": 1}).execute()
    with pytest.raises(APIError) as misnamed:
        client.rpc("items_over", {"minimu": 1}).execute()

    assert "Perhaps you meant to call the function public.items_over" == misspelt.value.hint
    assert (
        "Perhaps you meant to call the function public.items_over(minimum)" == misnamed.value.hint
    )


def test_the_time_limits_of_functions_and_roles_apply(
    http: httpx.Client, rest_stack: LocalSupabase, admin: psycopg.Connection[Any]
) -> None:
    """statement_timeout of a function or a role ends the statement: 57014 with status 500."""
    by_function = http.post("/rpc/short_nap", json={"seconds": 60})
    admin.execute("alter role anon set statement_timeout = '100ms'")
    rest_stack.rest.reload()
    anon = {"apikey": rest_stack.publishable_key}
    by_role = http.post("/rpc/nap", json={"seconds": 60}, headers=anon)
    admin.execute("alter role anon set statement_timeout = '3s'")
    rest_stack.rest.reload()

    assert (500, "57014") == error_of(by_function)
    assert (500, "57014") == error_of(by_role)


# --- Queues ---


def test_a_job_goes_through_a_queue(client: Client) -> None:
    """send, read, archive and pop of pgmq_public; messages stay the JSON that they are."""
    queues = client.schema("pgmq_public")

    def call(function: str, **arguments: Any) -> Any:
        return queues.rpc(function, {"queue_name": "jobs", **arguments}).execute().data

    message = {"a": [1, 1.5, None], "big": 2**60, "text": "7"}
    [sent] = call("send", message=message)
    [read] = call("read", sleep_seconds=30, n=1)
    batch = call("send_batch", messages=[{"n": 1}, {"n": 2}])

    assert (sent, 1, message) == (read["msg_id"], read["read_ct"], read["message"])
    assert call("archive", message_id=sent) is True
    assert batch == [call("pop")[0]["msg_id"], call("pop")[0]["msg_id"]]
    assert [] == call("read", sleep_seconds=0, n=1)


def test_a_missing_queue_is_an_undefined_table(client: Client) -> None:
    """Supabase Queues answer 42P01 for a queue that does not exist."""
    with pytest.raises(APIError) as missing:
        client.schema("pgmq_public").rpc("pop", {"queue_name": "nope"}).execute()

    assert "42P01" == missing.value.code


# --- Who asks ---


def test_a_key_is_required(rest_stack: LocalSupabase) -> None:
    """The gateway's own words, without a code, for a missing and a wrong key."""
    url = f"{rest_stack.url}/rest/v1/items"
    missing = httpx.get(url)
    wrong = httpx.get(url, headers={"apikey": "sb_publishable_wrong"})

    assert (401, "No API key found in request") == (missing.status_code, missing.json()["message"])
    assert (401, "Invalid API key") == (wrong.status_code, wrong.json()["message"])


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"expires_in": -60.0}, (401, "PGRST303")),
        ({"nbf": 4_000_000_000}, (401, "PGRST303")),
        ({"iat": 4_000_000_000}, (401, "PGRST303")),
        ({"nbf": "soon"}, (401, "PGRST303")),
        ({"role": "nobody_at_all"}, (401, "22023")),
        ({"role": "postgres"}, (403, "42501")),
        ({"role": "anon"}, (200, None)),
    ],
)
def test_tokens_are_checked(
    rest_stack: LocalSupabase, claims: dict[str, Any], expected: tuple[int, str | None]
) -> None:
    """Times, role and what the role may become decide."""
    response = _as_bearer(rest_stack, rest_stack.jwt(**claims))

    assert expected == error_of(response)


def test_a_forged_token_is_refused(rest_stack: LocalSupabase) -> None:
    """A changed signature and a malformed token are PGRST301, with a challenge."""
    header, payload, signature = rest_stack.jwt().split(".")
    forged = _as_bearer(rest_stack, f"{header}.{payload}.{signature[::-1]}")
    malformed = _as_bearer(rest_stack, "not-a-token")

    assert (401, "PGRST301") == error_of(forged) == error_of(malformed)
    assert forged.headers["WWW-Authenticate"].startswith('Bearer error="invalid_token"')


def _as_bearer(local: LocalSupabase, token: str) -> httpx.Response:
    headers = {"apikey": local.publishable_key, "Authorization": f"Bearer {token}"}
    return httpx.get(f"{local.url}/rest/v1/rpc/whoami", headers=headers)


def test_users_sign_up_and_in(connect: Connect, rest_stack: LocalSupabase) -> None:
    """The life of a user through supabase-py."""
    client = connect(rest_stack.publishable_key)
    email, password = f"{unique('user')}@example.com", "correct horse battery"
    created = client.auth.sign_up({"email": email, "password": password})
    client.auth.sign_out()
    with pytest.raises(AuthApiError):
        client.auth.sign_in_with_password({"email": email, "password": "wrong"})
    signed_in = client.auth.sign_in_with_password({"email": email, "password": password})
    client.auth.update_user({"data": {"colour": "red", "list": [1, {"a": 2}]}})
    renewed = client.auth.refresh_session()
    current = client.auth.get_user()

    assert created.user is not None
    assert signed_in.user is not None
    assert renewed.session is not None
    assert current is not None
    assert (created.user.id, email) == (signed_in.user.id, current.user.email)
    assert "red" == current.user.user_metadata["colour"]


def test_users_and_what_refers_to_them_outlive_a_restart(
    connect: Connect, client: Client, rest_stack: LocalSupabase
) -> None:
    """REST and Auth start again on a database that is in use."""
    user = connect(rest_stack.publishable_key).auth.sign_up(
        {"email": f"{unique('user')}@example.com", "password": "long enough"}
    )
    assert user.user is not None
    profile = {"id": user.user.id, "nickname": unique("nick")}
    client.table("profiles").insert(profile).execute()
    rest_stack.rest.kill()
    rest_stack.rest.start()
    whoami = _as_bearer(rest_stack, rest_stack.jwt(sub=user.user.id)).json()

    assert [profile] == client.table("profiles").select("*").eq("id", user.user.id).execute().data
    assert user.user.id == whoami["uid"]


def test_users_see_and_make_only_their_own_rows(
    connect: Connect, client: Client, rest_stack: LocalSupabase
) -> None:
    """Row level security binds users and anon, not the service role."""
    ann, bob, anon = (connect(rest_stack.publishable_key) for _ in range(3))
    for user in (ann, bob):
        user.auth.sign_up({"email": f"{unique('user')}@example.com", "password": "long enough"})
    document = ann.table("documents").insert({"body": "ann's"}).execute().data[0]
    forged = {"body": "x", "user_id": document["user_id"]}

    def refused(client: Client) -> str | None:
        with pytest.raises(APIError) as refusal:
            client.table("documents").insert(forged).execute()
        return refusal.value.code

    def seen(client: Client) -> int:
        return len(client.table("documents").select("id").eq("id", document["id"]).execute().data)

    assert ("42501", "42501") == (refused(bob), refused(anon))
    assert [1, 0, 0, 1] == [seen(each) for each in (ann, bob, anon, client)]


@pytest.mark.anyio
async def test_the_async_client_gets_the_same_answers(rest_stack: LocalSupabase) -> None:
    """Reads, writes and functions through supabase-py's async client."""
    async with httpx.AsyncClient() as session:
        options = AsyncClientOptions(httpx_client=session)
        client = await create_async_client(rest_stack.url, rest_stack.secret_key, options)
        inserted = await client.table("items").insert({"name": unique("async")}).execute()
        found = await client.table("items").select("id").eq("id", inserted.data[0]["id"]).execute()
        added = await client.rpc("add", {"a": 40, "b": 2}).execute()

    assert [{"id": inserted.data[0]["id"]}] == found.data
    assert 42 == added.data


# --- While the database changes, fails and comes back ---


def test_new_tables_are_seen_after_a_notification(
    http: httpx.Client, rest_stack: LocalSupabase, eventually: Any
) -> None:
    """NOTIFY pgrst, 'reload schema' refreshes what REST knows."""
    table = unique("table").replace("-", "_")
    with psycopg.connect(rest_stack.dsn, autocommit=True) as connection:
        connection.execute(f"create table {table} (id int)")
        connection.execute("notify pgrst, 'reload schema'")

    eventually(lambda: http.get(f"/{table}").status_code == 200)


def test_an_outage_is_a_503_and_ends_with_the_first_request(
    http: httpx.Client, rest_stack: LocalSupabase
) -> None:
    """While PostgreSQL is away every answer is 503 with Retry-After."""
    rest_stack.postgres.stop()
    down = [http.get("/counters") for _ in range(3)]
    rest_stack.postgres.start()
    back = http.get("/counters")

    assert [(503, "PGRST000")] * 3 == [error_of(response) for response in down]
    assert all(response.headers["Retry-After"] in {"0", "1"} for response in down)
    assert 200 == back.status_code


@pytest.mark.parametrize("how", ["stop", "kill", "terminate"])
def test_requests_in_flight_are_answered_when_their_connection_dies(
    http: httpx.Client, rest_stack: LocalSupabase, eventually: Any, how: str
) -> None:
    """No request hangs and the process lives on, whatever ends the database's side."""
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(http.post, "/rpc/nap", json={"seconds": 8}) for _ in range(8)]
        eventually(lambda: _napping(rest_stack) == 8)
        _end_connections(rest_stack, how)
        answers = [call.result() for call in calls]

    assert {503} == {answer.status_code for answer in answers}
    assert {"57P01", "PGRST001"} >= {answer.json()["code"] for answer in answers}
    assert 200 == http.get("/counters").status_code


def _napping(local: LocalSupabase) -> int:
    query = (
        "select count(*) from pg_stat_activity"
        " where application_name like 'rest%' and wait_event = 'PgSleep'"
    )
    with psycopg.connect(local.admin_dsn) as connection:
        row = connection.execute(query).fetchone()
    return int(row[0]) if row else 0


def _end_connections(local: LocalSupabase, how: str) -> None:
    if how == "terminate":
        with psycopg.connect(local.admin_dsn) as connection:
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where pid <> pg_backend_pid() and application_name like 'rest%'"
            )
        return
    getattr(local.postgres, how)()
    local.postgres.start()


def test_a_request_that_outlasts_the_cap_is_given_up(
    rest_stack: LocalSupabase, tmp_path: Path, eventually: Any
) -> None:
    """The caller gets 504 PGRST003, and PostgreSQL is told to stop."""
    postgres = psycopg.conninfo.conninfo_to_dict(rest_stack.admin_dsn)
    config = {
        "pg_url": "postgres://{user}@{host}:{port}/{dbname}".format(**postgres),
        "jwt_secret": "a secret that is only used in this test",
        "publishable_key": "sb_publishable_test",
        "secret_key": "sb_secret_test",
        "schemas": ["public"],
        "request_timeout": 0.2,
    }
    child = Child("rest", rest_command(), config, log=tmp_path / "rest.log")
    try:
        response = httpx.post(
            f"http://127.0.0.1:{child.port}/rest/v1/rpc/nap",
            json={"seconds": 30},
            headers={"apikey": "sb_secret_test"},
        )
        assert (504, "PGRST003") == error_of(response)
        eventually(lambda: _napping(rest_stack) == 0)
        with pytest.raises(Exception, match="unknown command 'dance'"):
            child.ask("dance")
    finally:
        child.stop()
