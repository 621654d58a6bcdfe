"""`sql listener`, change log: every committed change, as PostgREST prints rows."""

LOG = ("--recovery", "change-log")
TYPES = """id int primary key, b bytea, t timestamptz, n numeric, d double precision, i interval,
    j jsonb, js json, a text[], r tstzrange, u uuid, "Big Ä" bigint, c char(4), dt date, x text"""
VALUES = (
    "1, '\\x00ff', '2024-02-29 12:00:00.123456+02', 1.500, 0.1, '1 year 2 days 03:00', "
    """'{"a": [1.0, null]}', '{"b": 1, "a": 2}', '{x,"y z"}', """
    "'[2024-01-01 00:00+00, 2024-02-01 00:00+00)', gen_random_uuid(), 9007199254740993, 'ab', "
    "'2024-02-29', null"
)


def steps(shop):
    return [(each["op"], each["key"]) for each in shop.changes()]


def test_every_change_is_logged(shop):
    """In order, with what was and what is, the transaction, and the time."""
    shop.create("id int primary key, note text", *LOG)
    with shop.database.transaction():
        shop.run("insert into {} values (1, 'a')")
        shop.run("update {} set note = 'b'")
        own = shop.one("select pg_current_xact_id()::text::bigint")
    shop.run("delete from {}")
    shop.run("truncate {}")
    first, second, third, fourth = shop.changes()
    a, b = {"id": 1, "note": "a"}, {"id": 1, "note": "b"}
    logged = [(each["op"], each["key"], each["new"], each["old"]) for each in shop.changes()]
    expected = [
        ("INSERT", [1], a, None),
        ("UPDATE", [1], b, a),
        ("DELETE", [1], None, b),
        ("TRUNCATE", None, None, None),
    ]
    assert expected == logged
    assert first["seq"] < second["seq"] < third["seq"] < fourth["seq"]
    assert [own, own] == [first["xid"], second["xid"]]
    assert first["at"] <= second["at"] <= third["at"]


def test_a_changed_key_is_the_new_one(shop):
    """The old one is in the old row."""
    shop.create("a int, b text, primary key (a, b)", *LOG, "--key", "b,a")
    shop.run("insert into {} values (1, 'x')")
    shop.run("update {} set a = 2")
    changed = shop.changes()[-1]
    assert (["x", 2], {"a": 1, "b": "x"}) == (changed["key"], changed["old"])


def test_values_are_those_of_the_api(shop, local, api):
    """Of every type, whatever the writing session's settings are."""
    shop.create(TYPES, *LOG)
    local.rest.reload()
    shop.run(
        "set timezone = 'Asia/Tokyo'; set bytea_output = 'escape'; set datestyle = 'German'; "
        "set intervalstyle = 'iso_8601'; set extra_float_digits = 0"
    )
    shop.database.execute(f"insert into {shop.table} values ({VALUES})".encode())
    (row,) = api.service.table(shop.name).select("*").execute().data
    (change,) = shop.changes()
    assert row == change["new"]


def test_a_row_that_jsonb_cannot_hold_is_written_all_the_same(shop):
    """NUL characters in a column of type json are replaced in the log."""
    shop.create("id int primary key, js json", *LOG)
    shop.run("""insert into {} values (1, '{"a": "x\\u0000"}')""")
    (change,) = shop.changes()
    assert {"id": 1, "js": {"a": "x\ufffd"}} == change["new"]


def test_a_rollback_leaves_nothing(shop):
    """A savepoint's neither."""
    shop.create("id int primary key", *LOG)
    with shop.database.transaction():
        shop.run("insert into {} values (1)")
        with shop.database.transaction(force_rollback=True):
            shop.run("insert into {} values (2)")
    assert [("INSERT", [1])] == steps(shop)


def test_what_a_trigger_changes_again_is_logged_after(shop):
    """The last change in the log is what is in the table."""
    shop.create("id int primary key, note text", *LOG)
    shop.run("""create function again() returns trigger language plpgsql as $$ begin
        execute format('update %s set note = ''second'' where id = $1', tg_relid::regclass)
        using new.id;
        return null; end $$""")
    try:
        shop.run("create trigger a after insert on {} for each row execute function again()")
        shop.run("insert into {} values (1, 'first')")
        assert ["first", "second"] == [each["new"]["note"] for each in shop.changes()]
    finally:
        shop.run("drop function again cascade")


def test_a_cascade_is_logged(shop):
    """The deletes of a foreign key are deletes."""
    shop.run("create table {} (id int primary key, parent int references {} on delete cascade)")
    shop.follow(*LOG)
    shop.run("insert into {} values (1, null), (2, 1)")
    shop.run("delete from {} where id = 1")
    assert [("DELETE", [1]), ("DELETE", [2])] == sorted(steps(shop)[2:])


def test_changes_are_read_from_an_xid_page_by_page_or_one_by_one(shop):
    """From p_since on, itself included, in the order of seq; or exactly those asked for."""
    shop.create("id int primary key", *LOG)
    for id_ in range(4):
        shop.run("insert into {} values (%s)", id_)
    every = shop.changes()
    seqs = [each["seq"] for each in every]
    assert every[2:] == shop.changes(every[2]["xid"])
    assert every[1:3] == shop.changes(0, after=seqs[0], limit=2)
    assert [every[0], every[3]] == shop.changes(0, seqs=[seqs[3], seqs[0], 0])
    assert [] == shop.changes(0, seqs=[])


def test_an_app_needs_no_other_rights(shop, api, local):
    """A role with grants on the table and a policy writes as before, and is recorded."""
    shop.create("id int primary key, owner text default current_user", *LOG)
    shop.run("alter table {} enable row level security")
    shop.run("create policy own on {} to anon using (owner = current_user)")
    local.rest.reload()
    table = api.anon.table(shop.name)
    table.insert({"id": 1}).execute()
    table.delete().eq("id", 1).execute()
    assert [("INSERT", [1]), ("DELETE", [1])] == steps(shop)


def test_the_log_is_published_and_closed(shop):
    """Realtime tells of it; only service_role sees what; the table itself needs no place there."""
    shop.create("id int primary key", *LOG)
    query = """select count(*) from pg_publication_tables
        where pubname = 'supabase_realtime' and tablename = %s"""
    assert [1, 0] == [shop.one(query, "changes"), shop.one(query, shop.name)]
    query = (
        "select relrowsecurity from pg_class where oid = 'supabase_resilience.changes'::regclass"
    )
    assert shop.one(query) is True
    assert 0 == shop.one("select count(*) from pg_policies where tablename = 'changes'")


def test_a_table_needs_no_columns_for_it(shop):
    """It stays as it is."""
    shop.create("id int primary key", *LOG)
    query = "select count(*) from pg_attribute where attrelid = '{}'::regclass and attnum > 0"
    assert 1 == shop.one(query)
