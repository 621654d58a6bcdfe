"""Logs that grow: what is old is not looked at, and pruned; nothing that is still needed is."""

import psycopg
import pytest

from .shops import sql


def age(shop, log):
    """Let what is in the log be older than its retention."""
    shop.run(f"update supabase_resilience.{log} set at = at - interval '8 days'")


@pytest.mark.parametrize(
    ("recovery", "log"), [("versioned", "tombstones"), ("change-log", "changes")]
)
def test_what_is_too_old_is_pruned(shop, recovery, log):
    """The floor says what a cursor has to reach; younger rows stay."""
    shop.create("id int primary key", "--recovery", recovery)
    read = getattr(shop, log)
    shop.run("insert into {} values (1), (2), (3)")
    shop.run("delete from {} where id < 3")
    shop.api.call("prune")
    before = read()
    assert [1, 2] == [each["key"][0] for each in before[-2:]]
    assert 0 == shop.horizon()["floor"]
    age(shop, log)
    shop.run("delete from {}")
    shop.api.call("prune")
    assert [[3]] == [each["key"] for each in read()]
    assert before[-1]["xid"] + 1 == shop.horizon()["floor"]
    shop.api.call("prune")
    assert [[3]] == [each["key"] for each in read()]


def test_retention_is_each_tables_own(shop):
    """As the command was given it."""
    shop.create("id int primary key", "--retention", "9 days")
    shop.run("insert into {} values (1)")
    shop.run("delete from {}")
    age(shop, "tombstones")
    shop.api.call("prune")
    assert [([1], False)] == shop.deleted()
    shop.follow("--retention", "1 hour")
    shop.api.call("prune")
    assert [] == shop.deleted()


def test_what_an_open_transaction_can_come_before_stays(shop, local):
    """Else a cursor that waits for that transaction would be below the floor."""
    shop.create()
    shop.run("insert into {} values (1), (2)")
    with psycopg.connect(local.dsn) as writer:
        writer.execute(f"delete from {shop.table} where id = 1")
        shop.run("delete from {} where id = 2")
        age(shop, "tombstones")
        shop.api.call("prune")
        held = shop.horizon()
        assert ([([2], False)], 0) == (shop.deleted(), held["floor"])
    shop.api.call("prune")
    assert [([1], False)] == shop.deleted()
    assert held["xmin"] < shop.horizon()["floor"] <= shop.horizon()["xmin"]


def test_pruning_waits_for_nobody(shop, local):
    """Neither for another run of it, nor for a migration; it does then what it can."""
    shop.create()
    shop.run("insert into {} values (1)")
    shop.run("delete from {}")
    age(shop, "tombstones")
    with psycopg.connect(local.dsn) as other:
        other.execute("select from supabase_resilience.followed for update")
        shop.api.call("prune")
        assert [([1], False)] == shop.deleted()
    with psycopg.connect(local.dsn) as other:
        other.execute("select from supabase_resilience.tombstones for update")
        shop.api.call("prune")
        assert [([1], False)] == shop.deleted()
    shop.api.call("prune")
    assert [] == shop.deleted()


def test_pruning_goes_batch_by_batch(shop):
    """No call deletes more than 50,000 rows; the oldest transactions go first."""
    shop.create()
    shop.run("insert into {} select generate_series(1, 60000)")
    shop.run("delete from {} where id <= 1000")
    shop.run("delete from {}")
    age(shop, "tombstones")
    count = "select count(*) from supabase_resilience.tombstones where table_name = %s"
    shop.api.call("prune")
    assert 10000 == shop.one(count, shop.name)
    shop.api.call("prune")
    assert 0 == shop.one(count, shop.name)


def test_a_restored_log_does_not_put_the_floor_ahead(shop):
    """Its ids may be another server's; they are pruned, and no cursor is too old for them."""
    shop.create()
    future = shop.horizon()["xmax"] + 10**9
    shop.run(
        """insert into supabase_resilience.tombstones (schema_name, table_name, ver, xid, at)
        values ('public', %s, 1, %s, now() - interval '8 days')""",
        shop.name,
        future,
    )
    shop.api.call("prune")
    assert ([], 0) == (shop.deleted(), shop.horizon()["floor"])
    shop.run(
        "update supabase_resilience.followed set floor = %s where table_name = %s",
        future,
        shop.name,
    )
    horizon = shop.horizon()
    assert horizon["xmin"] == horizon["floor"]


def test_pg_cron_prunes_where_it_is_enabled(database, shop):
    """It is told once, and told to stop with the removal."""
    shop.run("create table {} (id int primary key)")
    database.execute("""create schema cron;
        create table cron.job (jobid bigint generated always as identity, jobname text unique,
          schedule text, command text);
        create function cron.schedule(text, text, text) returns bigint language sql as
          'insert into cron.job (jobname, schedule, command) values ($1, $2, $3)
           on conflict (jobname) do update set schedule = $2 returning jobid';
        create function cron.unschedule(bigint) returns boolean language sql as
          'delete from cron.job where jobid = $1 returning true'""")
    try:
        shop.follow()
        shop.follow()
        commands = database.execute("select command from cron.job").fetchall()
        assert [("select public.supabase_resilience_prune()",)] == commands
        database.execute(commands[0][0])
        with database.transaction(force_rollback=True):
            database.execute(sql("listener", "--remove").encode())
            assert [] == database.execute("select * from cron.job").fetchall()
    finally:
        database.execute("drop schema cron cascade")


@pytest.mark.parametrize("log", ["tombstones", "changes"])
@pytest.mark.parametrize("preparation", ["select", "analyze supabase_resilience.{}"])
def test_what_is_older_is_not_looked_at(shop, log, preparation):
    """A catch-up of 10,000 records costs no walk over 30,000 older ones, analyzed or not."""
    shop.create("id int primary key", *(["--recovery", "change-log"] if log == "changes" else []))
    shop.run("insert into {} select generate_series(1, 40000)")
    shop.run("delete from {} where id <= 30000")
    since = shop.horizon()["xmax"]
    shop.run("delete from {}")
    shop.run(preparation.replace("{}", log))
    seen = f"""select (seq_tup_read + idx_tup_fetch)::int from pg_stat_xact_user_tables
        where relid = 'supabase_resilience.{log}'::regclass"""
    query = f"select count(*) from public.supabase_resilience_{log}('public', %s, %s)"
    with shop.database.transaction():
        before = shop.one(seen)
        assert 1000 == shop.one(query, shop.name, since)
        assert shop.one(seen) - before < 25000
