"""`sql cursors`: how far a listener's handlers have come, for service_role alone."""

import pytest
from postgrest.exceptions import APIError

from .shops import sql


def test_what_is_saved_is_loaded(api):
    """Under its name; the last one wins; nothing was saved at first."""
    assert api.call("load_cursor", name="a") is None
    for value in ({"since": 1}, {"since": 2}):
        assert not api.call("save_cursor", name="a", value=value)
        assert value == api.call("load_cursor", name="a")
    assert api.call("load_cursor", name="b") is None


@pytest.mark.parametrize("function", ["load_cursor", "save_cursor"])
def test_users_have_no_part_in_it(api, function):
    """They neither read nor write one."""
    value = {"value": {}} if function == "save_cursor" else {}
    with pytest.raises(APIError, match="permission denied"):
        api.call(function, client=api.anon, name="a", **value)


def test_it_may_be_run_again_and_taken_back(api, database):
    """What was saved stays until it is taken back; that may be run again, too."""
    api.call("save_cursor", name="c", value=[1])
    database.execute(sql("cursors").encode())
    assert [1] == api.call("load_cursor", name="c")
    try:
        for _ in range(2):
            database.execute(sql("cursors", "--remove").encode())
            row = database.execute("select to_regclass('supabase_resilience.cursors')").fetchone()
            assert (None,) == row
    finally:
        database.execute(sql("cursors").encode())
