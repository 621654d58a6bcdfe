"""`sql listener`, versioned: every row's version and every delete, whatever wrote them."""

import psycopg
import pytest
from postgrest.exceptions import APIError

VERSIONS = "select id, sync_ver, sync_xid from {} order by id"


def test_the_owner_is_no_superuser(database):
    """What these tests do, a hosted project's role `postgres` can do."""
    query = "select rolname, rolsuper from pg_roles where rolname = current_user"
    assert ("postgres", False) == database.execute(query).fetchone()


# --- rows -----------------------------------------------------------------------------------------


def test_old_rows_are_neither_rewritten_nor_stamped(shop):
    """They keep the version 0 until they change; no new file is made for them."""
    shop.run("create table {} (id int primary key)")
    shop.run("insert into {} values (1)")
    file = "select relfilenode from pg_class where oid = '{}'::regclass"
    before = shop.one(file)
    shop.follow()
    assert before == shop.one(file)
    assert [(1, 0, 0)] == shop.run(VERSIONS)


def test_each_change_is_stamped(shop):
    """With a version that is greater than all before, and with the transaction's id."""
    shop.create()
    with shop.database.transaction():
        shop.run("insert into {} values (1), (2)")
        own = shop.one("select pg_current_xact_id()::text::bigint")
    first = shop.run(VERSIONS)
    shop.run("update {} set note = 'x' where id = 1")
    (updated, _) = shop.run(VERSIONS)
    assert [(1, own), (2, own)] == [(id_, xid) for id_, _, xid in first]
    assert updated[1] > max(ver for _, ver, _ in first) > 0
    assert updated[2] > own


def test_a_caller_cannot_choose_the_version(shop, local):
    """An upsert brings old values along, and an update may try; both are stamped."""
    shop.create()
    local.rest.reload()
    shop.run("insert into {} values (1, 'a', 7, 7)")
    ((_, inserted, xid),) = shop.run(VERSIONS)
    shop.api.service.table(shop.name).upsert(
        {"id": 1, "note": "b", "sync_ver": inserted, "sync_xid": 5}
    ).execute()
    ((_, upserted, later),) = shop.run(VERSIONS)
    shop.run("update {} set sync_ver = 1, sync_xid = 1")
    ((_, updated, last),) = shop.run(VERSIONS)
    assert (True, True) == (7 != inserted < upserted < updated, 7 < xid < later < last)


def test_the_stamp_comes_after_other_triggers(shop):
    """One that sets the columns does no harm."""
    shop.create()
    shop.run("""create or replace function meddle() returns trigger language plpgsql as $$
        begin new.sync_ver := 0; new.sync_xid := 0; return new; end $$""")
    shop.run("create trigger zz before update on {} for each row execute function meddle()")
    shop.run("insert into {} values (1)")
    shop.run("update {} set note = 'x'")
    ((_, ver, xid),) = shop.run(VERSIONS)
    assert ver > 0
    assert xid > 0


def test_a_rollback_leaves_nothing(shop):
    """No stamp and no tombstone."""
    shop.create()
    shop.run("insert into {} values (1)")
    before = shop.run(VERSIONS)
    with shop.database.transaction(force_rollback=True):
        shop.run("update {} set note = 'x'")
        shop.run("delete from {}")
    assert before == shop.run(VERSIONS)
    assert [] == shop.tombstones()


# --- deletes --------------------------------------------------------------------------------------


def test_a_delete_leaves_a_tombstone(shop):
    """With the key, the version that the row had, and the id of the deleting transaction."""
    shop.create()
    shop.run("insert into {} values (1), (2)")
    ((_, ver, _), _) = shop.run(VERSIONS)
    with shop.database.transaction():
        shop.run("delete from {} where id = 1")
        own = shop.one("select pg_current_xact_id()::text::bigint")
    (tombstone,) = shop.tombstones()
    expected = {"id": tombstone["id"], "key": [1], "ver": ver, "xid": own, "alive": False}
    assert expected == tombstone


def test_tombstones_are_read_from_an_xid_and_page_by_page(shop):
    """From p_since on, itself included, in the order of their ids."""
    shop.create()
    shop.run("insert into {} select generate_series(1, 4)")
    for id_ in (3, 1, 4):
        shop.run("delete from {} where id = %s", id_)
    first, second, third = shop.tombstones()
    assert [[3], [1], [4]] == [each["key"] for each in (first, second, third)]
    assert [second, third] == shop.tombstones(second["xid"])
    assert [second] == shop.tombstones(0, after=first["id"], limit=1)
    assert [] == shop.tombstones(third["xid"] + 1)


def test_a_key_that_is_used_again_is_alive(shop):
    """And its version is greater than that of its tombstone."""
    shop.create()
    shop.run("insert into {} values (1), (2)")
    shop.run("delete from {}")
    shop.run("insert into {} values (2)")
    assert [([1], False), ([2], True)] == shop.deleted()
    ((_, ver, _),) = shop.run(VERSIONS)
    assert all(ver > each["ver"] for each in shop.tombstones())


def test_a_changed_key_leaves_a_tombstone_of_the_old_one(shop):
    """An update that keeps the key leaves none."""
    shop.create()
    shop.run("insert into {} values (1), (2)")
    shop.run("update {} set note = 'x', id = id")
    assert [] == shop.deleted()
    shop.run("update {} set id = 3 where id = 1")
    assert [([1], False)] == shop.deleted()


def test_truncate_leaves_one_for_all(shop):
    """Without a key; its version is greater than all before and less than all after."""
    shop.create()
    shop.run("insert into {} values (1)")
    ((_, before, _),) = shop.run(VERSIONS)
    shop.run("truncate {}")
    shop.run("insert into {} values (1)")
    ((_, after, _),) = shop.run(VERSIONS)
    (tombstone,) = shop.tombstones()
    assert (None, False) == (tombstone["key"], tombstone["alive"])
    assert before < tombstone["ver"] < after


def test_a_cascade_leaves_tombstones(shop):
    """The deletes of a foreign key are deletes."""
    shop.run("create table {} (id int primary key, parent int references {} on delete cascade)")
    shop.follow()
    shop.run("insert into {} values (1, null), (2, 1), (3, 2), (4, null)")
    shop.run("delete from {} where id = 1")
    assert [([1], False), ([2], False), ([3], False)] == sorted(shop.deleted())


def test_a_great_delete_is_one_statement_more(shop):
    """50,000 rows leave 50,000 tombstones; a page of them costs no look at the others."""
    shop.create()
    shop.run("insert into {} select generate_series(1, 50000)")
    shop.run("delete from {}")
    assert 1000 == len(shop.tombstones())
    query = "select count(*) from supabase_resilience.tombstones where table_name = %s"
    assert 50000 == shop.one(query, shop.name)


def test_alive_is_found_by_the_primary_key(shop):
    """A page of tombstones looks at no more rows of a great table than it has keys."""
    shop.create()
    shop.run("insert into {} select generate_series(1, 20000)")
    shop.run("delete from {} where id <= 5")
    shop.run("insert into {} values (1)")
    shop.run("analyze {}")
    seen = "select seq_tup_read, idx_tup_fetch from pg_stat_xact_user_tables where relname = %s"
    query = "select * from public.supabase_resilience_tombstones('public', %s, 0)"
    with shop.database.transaction():
        ((scanned, found),) = shop.run(seen, shop.name)
        assert 5 == len(shop.run(query, shop.name))
        assert [(scanned, found + 1)] == shop.run(seen, shop.name)


@pytest.mark.parametrize(
    ("columns", "key", "row", "expected"),
    [
        (
            "a uuid",
            "a",
            "'7B9C1F4A-0000-4000-8000-00000000000a'",
            ["7b9c1f4a-0000-4000-8000-00000000000a"],
        ),
        ("a text", "a", "'O''Neill \"x\" \\ {{}} $1 %%s'", ['O\'Neill "x" \\ {} $1 %s']),
        ("a int, b text", "b,a", "1, 'x'", ["x", 1]),
        ("a bigint", "a", "9007199254740993", [9007199254740993]),
        ("a numeric(8, 2)", "a", "1.50", [1.5]),
        ("a timestamptz", "a", "'2024-02-29 12:00+02'", ["2024-02-29T10:00:00+00:00"]),
        ("a date, b boolean", "a,b", "'2024-02-29', true", ["2024-02-29", True]),
        ("a bytea", "a", "'\\x00ff'", ["\\x00ff"]),
        ("a int4range", "a", "'[1,3)'", ["[1,3)"]),
        ('"A b""c" char(3)', '"A b""c"', "'x'", ["x  "]),
    ],
)
def test_keys_of_all_kinds(shop, columns, key, row, expected):
    """They come as PostgREST prints them, and are found again by what came."""
    names = ", ".join(f'"{name}"' for name in key.split(",")) if '"' not in key else key
    shop.create(f"{columns}, primary key ({names})", "--key", key)
    row = row.replace("{{}}", "{}").replace("%%", "%")
    insert = f"insert into {shop.table} values ({row})"
    shop.database.execute("set timezone = 'Asia/Tokyo'; set bytea_output = 'escape'")
    shop.database.execute(insert.encode())
    shop.run("delete from {}")
    assert [(expected, False)] == shop.deleted()
    shop.database.execute(insert.encode())
    assert [(expected, True)] == shop.deleted()


def test_names_are_only_names(shop):
    """Mixed case, quotes, blanks and what looks like SQL, in schema, table and column."""
    shop.schema, shop.name = 'My "shop"; --', f"{shop.name} O'x %s $$ {{a}} \\"
    shop.run(f"create schema {shop.table.split('.', maxsplit=1)[0]}")
    try:
        shop.create('"Id; --" int primary key', "--key", '"Id; --"')
        shop.run("insert into {} values (1), (2)")
        shop.run('delete from {} where "Id; --" = 1')
        assert [([1], False)] == shop.deleted()
        assert ("versioned", ["Id; --"]) == (shop.horizon()["recovery"], shop.horizon()["key"])
    finally:
        shop.database.execute('drop schema "My ""shop""; --" cascade')


# --- an app's own roles ---------------------------------------------------------------------------


def test_an_app_needs_no_other_rights(shop, local):
    """A role with grants on the table and a policy writes as before, and is recorded."""
    shop.create("id int primary key, owner text default current_user")
    shop.run("alter table {} enable row level security")
    shop.run("create policy own on {} to anon using (owner = current_user)")
    local.rest.reload()
    table = shop.api.anon.table(shop.name)
    table.insert([{"id": 1}, {"id": 2}]).execute()
    table.update({"id": 3}).eq("id", 1).execute()
    table.delete().eq("id", 2).execute()
    ((id_, ver, xid),) = shop.run(VERSIONS)
    assert (3, True, True) == (id_, ver > 0, xid > 0)
    assert [([1], False), ([2], False)] == shop.deleted()


def test_an_app_cannot_read_or_write_what_is_recorded(shop, local, api):
    """Neither tables nor functions, but the horizon."""
    shop.create()
    given = {"schema": shop.schema, "table": shop.name}
    for function in ("tombstones", "changes"):
        with pytest.raises(APIError, match="permission denied"):
            api.call(function, client=api.anon, since=0, **given)
    with pytest.raises(APIError, match="permission denied"):
        api.call("prune", client=api.anon)
    assert "versioned" == shop.horizon(client=api.anon)["recovery"]
    with psycopg.connect(local.admin_dsn, autocommit=True) as other:
        for role in ("anon", "authenticated"):
            other.execute(f"set role {role}")
            for table in ("tombstones", "changes", "followed", "cursors"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    other.execute(f"select * from supabase_resilience.{table}")
            other.execute("reset role")


WRITABLE = """
select relname, privilege
from pg_class, unnest(array['anon', 'authenticated', 'service_role']) as role,
  unnest(array['insert', 'update', 'delete', 'truncate', 'select']) as privilege
where relnamespace = 'supabase_resilience'::regnamespace and relkind = 'r'
  and has_table_privilege(role, pg_class.oid, privilege)
"""
CALLABLE = """
select proname, array_agg(role order by role) from pg_proc,
  unnest(array['anon', 'authenticated', 'service_role', 'pg_monitor']) as role
where pronamespace in ('public'::regnamespace, 'supabase_resilience'::regnamespace)
  and (pronamespace <> 'public'::regnamespace or proname like 'supabase%')
  and has_function_privilege(role, pg_proc.oid, 'execute')
group by 1
"""


def test_nobody_has_more_rights_than_needed(database):
    """Only service_role, only the log, only by select; no inner function at all."""
    assert [("changes", "select")] == database.execute(WRITABLE.encode()).fetchall()
    service = ["service_role"]
    expected = {
        "supabase_resilience_horizon": ["anon", "authenticated", "service_role"],
        "supabase_resilience_tombstones": service,
        "supabase_resilience_changes": service,
        "supabase_resilience_prune": service,
        "supabase_resilience_load_cursor": service,
        "supabase_resilience_save_cursor": service,
    }
    assert expected == dict(database.execute(CALLABLE.encode()).fetchall())


def test_functions_are_the_owners_and_cannot_be_led_astray(database):
    """All are owned by the role that ran the migration, and name where they look for things."""
    query = """select proname from pg_proc
        where (proname like 'supabase%' or pronamespace::regnamespace::text = 'supabase_resilience')
          and (proowner <> 'postgres'::regrole
            or not 'search_path=pg_catalog, pg_temp' = any (coalesce(proconfig, '{}')))"""
    assert [] == database.execute(query).fetchall()


def test_what_a_session_makes_for_itself_is_not_met(shop):
    """Temporary tables and types with the names that triggers use change nothing."""
    shop.create()
    shop.run("create temp table gone (id int, sync_ver bigint)")
    shop.run("create temp table tombstones (key jsonb)")
    shop.run("create domain pg_temp.jsonb as text check (false)")
    shop.run("create domain pg_temp.text as int check (false)")
    shop.run("insert into {} values (1)")
    shop.run("delete from {}")
    assert [([1], False)] == shop.deleted()
