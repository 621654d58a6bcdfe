"""`sql listener` as a command: what it prints, and what it does not take."""

import pytest

from supabase_resilience.__main__ import main

from .shops import sql


def test_tables_may_be_several_and_each_is_printed_once():
    """With the schema public where none is named; names are taken as they are spelled."""
    printed = sql(
        "listener", "--table", "orders", "--table", "public.orders", "--table", "Shop.Lines"
    )
    assert 1 == printed.count('alter table "public"."orders"')
    assert 1 == printed.count('alter table "Shop"."Lines"')
    assert "create schema if not exists supabase_resilience;" in printed


def test_a_plain_index_is_the_default():
    """So that all of it can be run at once."""
    assert "concurrently" not in sql("listener", "--table", "orders")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "name at least one table"),
        (["--table", ""], "not the name of a table"),
        (["--table", "a.b.c"], "not the name of a table"),
        (["--table", "."], "not the name of a table"),
        (["--table", 'a"b"'], "not the name of a table"),
        (["--table", '"a'], "not the name of a table"),
        (["--table", "x" * 64], "not a name"),
        (["--table", "a\nb"], "not a name"),
        (["--table", '"a\u2028b"'], "not a name"),
        (["--table", "t", "--key", ""], "not a list of columns"),
        (["--table", "t", "--key", "a,"], "not a list of columns"),
        (["--table", "t", "--key", "a, "], "not a name"),
        (["--table", "t", "--key", "a,a"], "twice"),
        (["--table", "t", "--retention", "soon"], "not an interval"),
        (["--table", "t", "--retention", "0 days"], "not an interval"),
        (["--table", "t", "--retention", "-1 days"], "not an interval"),
        (["--table", "t", "--retention", "1 day'; --"], "not an interval"),
        (["--table", "t", "--recovery", "none"], "invalid choice"),
    ],
)
def test_misuse_is_told(capsys, arguments, reason):
    """With exit code 2 and a sentence."""
    with pytest.raises(SystemExit) as ended:
        main(["sql", "listener", *arguments])
    assert 2 == ended.value.code
    assert reason in capsys.readouterr().err
