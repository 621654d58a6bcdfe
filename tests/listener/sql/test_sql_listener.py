"""`sql listener` run again, otherwise, taken back, and on what it refuses."""

import psycopg
import pytest

from .shops import sql

LOG = ("--recovery", "change-log")
REMOVAL = sql("listener", "--remove")

MADE = """
select 'function ' || oid::regprocedure from pg_proc
where proname like 'supabase%' or pronamespace = to_regnamespace('supabase_resilience')
union all
select 'trigger ' || tgname || ' ' || tgrelid::regclass from pg_trigger where tgname ~ 'supabase_'
union all
select 'column ' || attname || ' ' || attrelid::regclass from pg_attribute
where attname in ('sync_ver', 'sync_xid')
  and attrelid in (select oid from pg_class where relkind = 'r' and relname <> 'followed')
union all
select 'relation ' || oid::regclass from pg_class
where relnamespace = to_regnamespace('supabase_resilience') and relkind in ('r', 'S', 'i')
union all
select 'index ' || indexname from pg_indexes where indexdef ~ 'sync_xid'
order by 1
"""


def made(database):
    return [row[0] for row in database.execute(MADE).fetchall()]


@pytest.mark.parametrize("recovery", ["versioned", "change-log"])
def test_it_may_be_run_again(shop, recovery):
    """Nothing changes, and what was recorded stays."""
    arguments = ("--recovery", recovery)
    shop.create("id int primary key", *arguments)
    shop.run("insert into {} values (1)")
    shop.run("delete from {}")
    read = shop.tombstones if recovery == "versioned" else shop.changes
    before = made(shop.database), read()
    shop.follow(*arguments)
    assert before == (made(shop.database), read())


def test_it_may_be_run_with_the_other_recovery(shop):
    """The other's triggers go; the columns stay, for they may be wanted again."""
    shop.create()
    shop.follow(*LOG)
    shop.run("insert into {} values (1)")
    assert ("change_log", 1) == (shop.horizon()["recovery"], len(shop.changes()))
    shop.run("delete from {}")
    shop.follow()
    shop.run("insert into {} values (2)")
    assert ("versioned", []) == (shop.horizon()["recovery"], shop.tombstones())
    count = "select count(*) from supabase_resilience.changes where table_name = %s"
    assert 2 == shop.one(count, shop.name)


def test_it_may_be_run_statement_by_statement(shop):
    """As it must be with CONCURRENTLY, which makes the same index."""
    shop.run("create table {} (id int primary key)")
    printed = sql("listener", "--table", shop.table, "--concurrently")
    note, rest = printed.split("--\n", 1)
    assert "statement by statement" in note
    for statement in statements(rest):
        shop.database.execute(statement.encode())
    (plain,) = [line for line in made(shop.database) if line.startswith(f"index {shop.name}_")]
    shop.run(f'drop index "{plain.removeprefix("index ")}"')
    shop.follow()
    assert plain in made(shop.database)


def statements(script):
    """Cut where a statement ends with its line, and outside of a function's body."""
    whole = ""
    for line in script.splitlines(keepends=True):
        whole += line
        if line.rstrip().endswith(";") and whole.count("$$") % 2 == 0:
            yield whole
            whole = ""


def test_the_index_serves_the_read_of_a_catch_up(shop):
    """Rows from an xid on, in the order of xid and key."""
    shop.create()
    shop.run("insert into {} select generate_series(1, 5000)")
    shop.run("update {} set note = 'x' where id = 7")
    shop.run("analyze {}")
    xid = shop.one("select sync_xid from {} where id = 7")
    plan = shop.run(
        "explain select * from {} where sync_xid >= %s order by sync_xid, id limit 100", xid
    )
    assert f"{shop.name}_sync_xid_id_idx" in plan[1][0]


def test_long_names_make_an_index_too(shop):
    """Its name is cut and yet its own."""
    shop.name = f"{shop.name}_{'ä' * 25}"
    shop.create()
    (index,) = [line for line in made(shop.database) if line.startswith(f"index {shop.name[:8]}")]
    assert "_sync_" in index


def test_a_table_can_be_taken_back(shop):
    """With its columns, index, triggers and what was recorded; others stay, also a second time."""
    others = made(shop.database)
    shop.create()
    shop.run("insert into {} values (1)")
    shop.run("delete from {}")
    for _ in range(2):
        shop.database.execute(sql("listener", "--remove", "--table", shop.table).encode())
        assert others == made(shop.database)
    assert shop.horizon()["recovery"] is None
    shop.run("insert into {} values (2)")
    for log in ("tombstones", "changes", "followed"):
        query = f"select count(*) from supabase_resilience.{log} where table_name = %s"
        assert 0 == shop.one(query, shop.name)


def test_a_column_of_the_users_own_stays(shop):
    """Only what has our comment is taken back."""
    shop.create("id int primary key, sync_ver bigint", *LOG)
    shop.database.execute(sql("listener", "--remove", "--table", shop.table).encode())
    assert f"column sync_ver {shop.name}" in made(shop.database)


def test_everything_can_be_taken_back(shop):
    """Also on tables that were renamed, and a second time; cursors and queues stay."""
    shop.create()
    with shop.database.transaction(force_rollback=True):
        shop.run("alter table {} rename to renamed")
        for _ in range(2):
            shop.database.execute(REMOVAL.encode())
            left = [
                line for line in made(shop.database) if not line.startswith(("column", "index"))
            ]
            assert 4 == len(left)
            assert all("cursor" in line for line in left)
        shop.database.execute(sql("cursors", "--remove").encode())
        assert shop.one("select to_regnamespace('supabase_resilience')") is None
        shop.database.execute(REMOVAL.encode())


def test_the_publication_gets_the_table(shop):
    """Once; and one for all tables, or none, is left alone."""
    shop.create()
    query = "select count(*) from pg_publication_tables where tablename = %s"
    assert 1 == shop.one(query, shop.name)
    told = []
    shop.database.add_notice_handler(lambda notice: told.append(notice.message_primary))
    with shop.database.transaction(force_rollback=True):
        shop.run("drop publication supabase_realtime")
        shop.follow()
    assert any("no publication" in message for message in told)


def test_one_for_all_tables_is_left_alone(shop, local):
    """It has the table already."""
    shop.run("create table {} (id int primary key)")
    with psycopg.connect(local.admin_dsn) as other:
        other.execute("drop publication supabase_realtime")
        other.execute("create publication supabase_realtime for all tables")
        other.execute("set session authorization postgres")
        other.execute(sql("listener", "--table", shop.table).encode())
        other.rollback()


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made_as", "reason"),
    [
        ("select 1", "there is no table"),
        ("create view {} as select 1 as id", "cannot be followed"),
        ("create unlogged table {} (id int primary key)", "cannot be followed"),
        ("create table {} (id int primary key) partition by range (id)", "cannot be followed"),
        ("create table {} (no int primary key)", "not its primary key"),
        ("create table {} (id int, no int, primary key (id, no))", "not its primary key"),
        ("create table {} (id int)", "not its primary key"),
        ("create table {} (id int[] primary key)", "type that does not go"),
        ("create table {} (id int primary key, sync_ver text)", "type that does not go"),
    ],
)
def test_a_table_that_cannot_be_followed(shop, made_as, reason):
    """It is refused with the reason, and nothing was changed."""
    shop.run(made_as)
    before = made(shop.database)
    with pytest.raises(psycopg.Error, match=reason):
        shop.follow()
    assert before == made(shop.database)


def test_a_wrong_key_is_told_the_right_one(shop):
    """As the command takes it."""
    shop.run("create table {} (b int, a int, primary key (b, a))")
    with pytest.raises(psycopg.Error) as refused:
        shop.follow()
    assert "Use --key b,a" == refused.value.diag.message_hint
