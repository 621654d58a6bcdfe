"""Tables of every kind: keys, columns, schemas, views and row level security."""

import uuid
from typing import Any

import pytest

from supabase_resilience import VerificationError
from supabase_resilience.local import LocalSupabase
from supabase_resilience.verification import Rule

from .worlds import COLUMNS, DATE, Bench, dated, fates, is_dated, is_undated

AWKWARD = [
    "a b",
    "a,b",
    "a.b",
    "a:b",
    "(a)",
    'a"b',
    "a\\b",
    "a'b",
    "a%b&c=d+e#f?g/h",
    "",
    "null",
    "*",
    "é漢🙂",
    "{a}",
    "eq.1",
    "\t",
]
DETECTIONS: list[Any] = [{"check": is_dated}, {"check": None, "violates": is_undated}]


@pytest.fixture(params=DETECTIONS, ids=["check", "violates"])
def detection(request) -> dict[str, Any]:
    """Judged here, row by row, and in the database."""
    return request.param


def undated(table) -> int:
    return table.run("select count(*) from {} where done_at is null")[0][0]


# --- keys -----------------------------------------------------------------------------------------


def test_text_keys_may_hold_anything(bench, detection):
    """In pages of two, so that each of them is also where a page begins."""
    table = bench.table(COLUMNS.replace("bigint", "text"))
    for key in AWKWARD:
        table.run("insert into {} (id, status) values (%s, 'done')", key)
    for guard in (None, ("status", "done_at")):
        table.run("update {} set done_at = null")
        report = bench.verify(table, rules=[dated(guard=guard, **detection)], batch_size=2)
        assert {"fixed": len(AWKWARD)} == fates(report)
        assert sorted(AWKWARD) == sorted(problem.key for problem in report.problems)
        assert 0 == undated(table)


def test_composite_keys_may_hold_anything(bench, detection):
    """Their problems name a value for each column."""
    table = bench.table("a text, b text, c int, status text, done_at date, primary key (a, b, c)")
    keys = [(a, b, 1) for a in AWKWARD[:6] for b in AWKWARD[5:10]]
    for key in keys:
        table.run("insert into {} (a, b, c, status) values (%s, %s, %s, 'done')", *key)
    report = bench.verify(
        table, id_column=("a", "b", "c"), rules=[dated(**detection)], batch_size=2
    )
    assert {"fixed": 30} == fates(report)
    assert sorted(keys) == sorted(tuple(problem.key) for problem in report.problems)
    assert 0 == undated(table)


def test_uuids_are_keys(bench, detection):
    """In their own order."""
    table = bench.table(COLUMNS.replace("bigint", "uuid"))
    keys = sorted(str(uuid.UUID(int=(7919 << 100) * each % (1 << 128))) for each in range(1, 31))
    for key in keys:
        table.run("insert into {} (id, status) values (%s, 'done')", key)
    report = bench.verify(table, rules=[dated(**detection)], batch_size=4)
    assert {"fixed": 30} == fates(report)
    assert keys == sorted(problem.key for problem in report.problems)


def test_integers_beyond_those_of_javascript_are_keys(bench, detection):
    """None of them is rounded to another one."""
    table = bench.table()
    keys = [2**53 + each for each in range(8)] + [2**63 - 1]
    for key in keys:
        table.run("insert into {} (id, status) values (%s, 'done')", key)
    report = bench.verify(table, rules=[dated(**detection)], batch_size=2)
    assert keys == sorted(problem.key for problem in report.problems)
    assert {"fixed": 9} == fates(report)


def test_long_keys_are_looked_for_in_bounded_requests(bench):
    """A hundred keys of three uuids, or of 300 letters, would make an URL that gateways refuse."""
    too_long = bench.local.faults.add(match=r"^.{12000}", status=414, times=None)
    table = bench.table("a uuid, b uuid, c uuid, done_at date, primary key (a, b, c)")
    table.run(
        "insert into {} select gen_random_uuid(), gen_random_uuid(), gen_random_uuid()"
        " from generate_series(1, 120)"
    )
    rule = Rule(
        "dated", check=lambda row: row["done_at"] is not None, fix=lambda _: {"done_at": DATE}
    )
    report = bench.verify(table, id_column=("a", "b", "c"), rules=[rule], batch_size=200)
    assert {"fixed": 120} == fates(report)
    text = bench.table("id text primary key, done_at date")
    text.run("insert into {} select repeat(i::text, 100) from generate_series(100, 219) i")
    assert {"fixed": 120} == fates(bench.verify(text, rules=[rule], batch_size=200))
    assert 0 == undated(text)
    assert 0 == too_long.count


def test_columns_may_have_capitals_and_spaces(bench):
    """Key, guard, patch and rule."""
    table = bench.table(
        '"Order Id" bigint, "Line-No" int, "doneAt" date, primary key ("Order Id", "Line-No")'
    )
    table.run("insert into {} select i, i from generate_series(1, 10) i")
    rules = [
        Rule(
            "dated",
            violates=lambda q: q.is_("doneAt", "null"),
            fix=lambda row: {"doneAt": DATE},
            guard=guard,
        )
        for guard in (None, ("doneAt",))
    ]
    for rule in rules:
        table.run('update {} set "doneAt" = null')
        report = bench.verify(table, id_column=("Order Id", "Line-No"), rules=[rule], batch_size=3)
        assert {"fixed": 10} == fates(report)


def test_guards_of_every_type_hold(bench):
    """What was read is found again, whatever its type."""
    columns = {
        "boolean": "true",
        "bigint": "9007199254740993",
        "numeric": "0.1",
        "real": "0.1",
        "double precision": "1e-7",
        "text": "'null'",
        "timestamptz": "'2026-01-01 12:00:00.123456+02'",
        "uuid": "gen_random_uuid()",
        "jsonb": """'{"a": [1, "x,y", null], "b": true}'""",
        "bytea": "'\\x00ff'",
    }
    for type_, value in columns.items():
        table = bench.table(f"id int primary key, value {type_}, done_at date")
        table.run(f"insert into {{}} values (1, {value}), (2, null)")
        rule = Rule(
            "dated",
            check=lambda row: row["done_at"] is not None,
            fix=lambda _: {"done_at": DATE},
            guard=("value",),
        )
        assert (type_, {"fixed": 2}) == (type_, fates(bench.verify(table, rules=[rule])))


def test_an_array_is_no_guard(bench):
    """PostgREST compares it with a text of another kind: it is told, and nothing is written."""
    table = bench.table("id int primary key, value int[], done_at date")
    table.run("insert into {} values (1, array[1, 2])")
    rule = Rule(
        "dated",
        check=lambda row: row["done_at"] is not None,
        fix=lambda _: {"done_at": DATE},
        guard=("value",),
    )
    (problem,) = bench.verify(table, rules=[rule]).problems
    assert ("fix_failed", "the write was refused: 22P02") == (problem.fate, problem.reason)
    assert 1 == undated(table)


# --- schemas, views, users ------------------------------------------------------------------------


def test_a_table_of_another_schema_is_verified(bench, detection):
    """It is called by its full name."""
    table = bench.table(schema="shop")
    table.fill(10, [3])
    report = bench.verify(table, rules=[dated(**detection)])
    assert {"fixed": 1} == fates(report)
    assert table.full_name == report.table
    client = bench.client(schema="shop")
    assert table.full_name == bench.verify(table.name, client=client).table


def test_a_view_needs_a_guard(bench, detection):
    """It has no xmin; nothing is written before that is told."""
    table = bench.table()
    table.fill(10, [3])
    view = f"{table.name}_view"
    table.run(f'create view "{view}" as select * from {{}}')
    table.offer(view)
    with pytest.raises(VerificationError, match=r"is a view, so rule 'dated' needs guard="):
        bench.verify(view, rules=[dated(**detection)])
    assert [3] == table.broken()
    assert {"left": 1} == fates(bench.verify(view, rules=[dated(fix=None, **detection)]))
    report = bench.verify(view, rules=[dated(guard=("status", "done_at"), **detection)])
    assert {"fixed": 1} == fates(report)
    assert [] == table.broken()


def test_a_verification_sees_what_its_user_may_see(bench):
    """With the key of a user under row level security it looks after that user's rows."""
    table = bench.table(f"{COLUMNS}, owner uuid")
    ada, bob = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
    table.fill(20, range(1, 21))
    table.run("update {} set owner = case when id <= 5 then %s::uuid else %s::uuid end", ada, bob)
    table.run(
        "alter table {} enable row level security;"
        "create policy mine on {} to authenticated using (owner = auth.uid())"
    )
    user = bench.protected().as_user(bench.local.jwt(sub=ada))
    report = bench.verify(table, client=user)
    assert ({"fixed": 5}, 5) == (fates(report), report.rows)
    token = bench.verify(table, token=lambda: bench.local.jwt(sub=bob))
    assert ({"fixed": 15}, 15) == (fates(token), token.rows)


def test_a_row_that_may_be_read_but_not_written_is_not_called_fixed(bench):
    """Row level security hides it from the write only."""
    table = bench.table()
    table.fill(5, [3])
    table.run(
        "alter table {} enable row level security;"
        "create policy look on {} for select to anon using (true)"
    )
    report = bench.verify(table, client=bench.client(bench.local.publishable_key))
    assert {"cas_lost": 1} == fates(report)
    assert [3] == table.broken()


def test_a_sign_in_on_the_same_client_changes_nothing(bench):
    """The key is pinned: a verification that turned into a user would find an empty table clean."""
    table = bench.table()
    table.fill(5, [3])
    table.run("alter table {} enable row level security")
    client = bench.client()
    verification = bench.verification(table, client=client)
    account = {"email": f"{table.name}@example.com", "password": "a long password"}
    bench.world.do(client.auth.sign_up, account)
    bench.world.do(client.auth.sign_in_with_password, account)
    report = verification.run_once()
    assert ({"fixed": 1}, 5) == (fates(report), report.rows)


# --- what a person has to set right ---------------------------------------------------------------


def test_an_unknown_table_is_told(bench):
    """With what to do."""
    with pytest.raises(VerificationError, match=r"cannot verify public\.nope: .*create the table"):
        bench.verify("nope")


def test_an_unknown_schema_is_told(bench):
    """It may be one that the API does not show."""
    with pytest.raises(VerificationError, match="expose the schema"):
        bench.verify("orders", schema="pg_catalog")


@pytest.mark.parametrize(
    "options",
    [
        {"id_column": "nope"},
        {"id_column": ("id", "nope")},
        {"changed_since": "nope"},
        {"rules": [Rule("x", violates=lambda q: q.eq("nope", 1))]},
    ],
)
def test_an_unknown_column_is_told(bench, options):
    """Before anything is written."""
    table = bench.table()
    table.fill(5, [3])
    with pytest.raises(VerificationError, match=r"nope.*check id_column"):
        bench.verify(table, **{"rules": [dated(), *options.get("rules", [])], **options})
    assert [3] == table.broken()


@pytest.mark.parametrize("detection", DETECTIONS, ids=["check", "violates"])
def test_a_guard_that_the_table_does_not_have_is_told(bench, detection):
    """Before anything is written."""
    table = bench.table()
    table.fill(5, [3])
    with pytest.raises(VerificationError, match=r"rule 'dated' .* does not have: nope"):
        bench.verify(table, rules=[dated(guard=("status", "nope"), **detection)])
    assert [3] == table.broken()


def test_a_table_that_the_key_may_not_read_is_told(bench):
    """It is not taken for an empty one."""
    table = bench.table()
    table.fill(5, [3])
    table.run("revoke all on {} from public, anon")
    with pytest.raises(VerificationError, match="use the secret key"):
        bench.verify(table, client=bench.client(bench.local.publishable_key))


# --- pages ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def capped():
    """A project that answers with seven rows at most."""
    with LocalSupabase(max_rows=7) as stack:
        yield stack


@pytest.mark.parametrize("detection", DETECTIONS, ids=["check", "violates"])
def test_a_cap_of_the_server_below_the_size_of_a_page_hides_nothing(world, capped, detection):
    """Neither while rows are looked for, nor while they are read again."""
    bench = Bench(world, capped)
    table = bench.table()
    table.fill(60, range(1, 61, 2))
    report = bench.verify(table, rules=[dated(**detection)], batch_size=50)
    assert {"fixed": 30} == fates(report)
    assert [] == table.broken()
    assert 30 == sum(date is not None for date in table.rows().values())
    assert report.rows in {0, 60}
    bench.close()


def test_rows_that_exist_throughout_are_checked_exactly_once(bench):
    """While others are inserted, deleted and updated around the place where the pass is."""
    table = bench.table()
    table.run("insert into {} (id) select 10 * i from generate_series(1, 200) i")
    seen: list[int] = []

    def check(row):
        key = row["id"]
        seen.append(key)
        if key % 100 == 0:
            table.run("delete from {} where id %% 10 = 0 and id %% 70 = 0 and id > %s", key)
            table.run("insert into {} (id) values (%s), (%s)", key - 15, key + 15)
            table.run("update {} set note = 'x' where id between %s and %s", key - 50, key + 50)
        return True

    report = bench.verify(table, rules=[dated(check=check)], batch_size=7)
    throughout = {10 * each for each in range(1, 201) if each % 7}
    once = {key for key in throughout if seen.count(key) == 1}
    assert throughout == once
    assert len(seen) == len(set(seen)) == report.rows


def test_a_page_that_times_out_is_halved(bench, detection):
    """Until the server can do it."""
    table = bench.table()
    table.fill(60, [3, 40])
    body = {"code": "57014", "message": "canceling statement due to statement timeout"}
    slow = bench.local.faults.add(
        match=r"limit=(80|40|2\d)$", status=500, body=body, times=None, method="GET"
    )
    report = bench.verify(table, rules=[dated(**detection)], batch_size=80)
    assert {"fixed": 2} == fates(report)
    assert report.rows in {0, 60}
    assert slow.count >= 2


def test_a_page_of_one_row_that_times_out_fails_the_pass(bench):
    """It is no clean report, and the cause is named."""
    table = bench.table()
    table.fill(10, [3])
    body = {"code": "57014", "message": "canceling statement due to statement timeout"}
    bench.local.faults.add(match=r"id=gt\.", status=500, body=body, times=None)
    report = bench.verify(table, batch_size=4)
    assert 2 == report.exit_code
    assert "statement timeout" in report.failure
    assert [3] == table.broken()
