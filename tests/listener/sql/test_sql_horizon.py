"""The horizon: how a table is followed, and where a reader goes on."""

import psycopg
import pytest
from postgrest.exceptions import APIError

LOG = ("--recovery", "change-log")


def test_the_horizon_of_a_followed_table(shop):
    """All that a reader needs, before it reads."""
    shop.create()
    horizon = shop.horizon()
    expected = {
        "migration": 1,
        "recovery": "versioned",
        "key": ["id"],
        "floor": 0,
        "xmin": horizon["xmin"],
        "xmax": horizon["xmax"],
        "now": horizon["now"],
        "history": horizon["history"],
        "started": horizon["started"],
        "xip": [],
    }
    assert expected == horizon
    assert 0 < horizon["xmin"] <= horizon["xmax"]
    assert horizon["now"].endswith("+00:00")


def test_the_horizon_of_another_table(shop):
    """It is not followed, and that is no error."""
    horizon = shop.horizon()
    assert (None, None, 0) == (horizon["recovery"], horizon["key"], horizon["floor"])


def test_the_horizon_waits_for_an_open_writer(shop, local):
    """What that writes has an xid from xmin on; all that is below is visible."""
    shop.create()
    with psycopg.connect(local.dsn) as writer:
        writer.execute(f"insert into {shop.table} values (1)")
        (own,) = writer.execute("select pg_current_xact_id()::text::bigint").fetchone()
        shop.run("insert into {} values (2)")
        held = shop.horizon()
        assert (True, True) == (held["xmin"] <= own, own < held["xmax"])
        assert own in held["xip"]
    after = shop.horizon()
    assert after["xmin"] > own
    rows = shop.run("select id from {} where sync_xid >= %s order by id", held["xmin"])
    assert [(1,), (2,)] == rows


def test_reading_the_horizon_moves_nothing(shop):
    """It takes no transaction id, so an idle listener costs none."""
    shop.create()
    assert shop.horizon()["xmax"] == shop.horizon()["xmax"]


def test_history_changes_when_there_may_be_a_hole(shop):
    """Not when the SQL is run again; but with triggers that were gone, or a table made anew."""
    shop.create()
    seen = [shop.horizon()["history"]]
    shop.follow()
    assert seen == [shop.horizon()["history"]]
    shop.run("drop trigger supabase_resilience_bury on {}")
    assert shop.horizon()["recovery"] is None
    shop.follow()
    seen.append(shop.horizon()["history"])
    shop.run("drop table {}")
    shop.create()
    seen.append(shop.horizon()["history"])
    shop.follow(*LOG)
    seen.append(shop.horizon()["history"])
    shop.follow()
    seen.append(shop.horizon()["history"])
    assert len(set(seen)) == len(seen) == 5


def test_history_is_the_servers_too(shop):
    """Whose role may read the identifier of the server; it is the same for all roles of the API."""
    shop.create()
    anon = shop.horizon(client=shop.api.anon)
    assert shop.horizon()["history"] == anon["history"]
    query = "select has_function_privilege('pg_control_system()', 'execute')"
    assert shop.one(query) is True


def test_a_disabled_trigger_is_no_trigger(shop):
    """A table with one is not followed."""
    shop.create()
    shop.run("alter table {} disable trigger zzz_supabase_resilience_stamp")
    assert shop.horizon()["recovery"] is None


@pytest.mark.parametrize("recovery", ["versioned", "change-log"])
def test_what_is_not_followed_that_way_cannot_be_read(shop, recovery):
    """The error says what to run."""
    shop.create("id int primary key", "--recovery", recovery)
    other = {"versioned": shop.changes, "change-log": shop.tombstones}[recovery]
    with pytest.raises(APIError) as refused:
        other()
    assert "is not followed" in refused.value.message
    assert "sql listener" in str(refused.value.hint)
