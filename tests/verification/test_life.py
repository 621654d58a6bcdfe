"""The life of a violation: flagged, read again after the grace, fixed by a swap, and verified."""

from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from supabase_resilience.verification import SKIP, Rule

from .worlds import DATE, dated, fates, is_dated, is_undated, with_date

BROKEN = [3, 7, 11]


class Order(BaseModel):
    """A row as a model."""

    id: int
    note: str | None

    @field_validator("note")
    @classmethod
    def no_shouting(cls, value: str | None) -> str | None:
        if value and value.isupper():
            raise ValueError("is shouted")
        return value


DETECTIONS: list[Any] = [{"check": is_dated}, {"check": None, "violates": is_undated}]


@pytest.fixture(params=DETECTIONS, ids=["check", "violates"])
def detection(request) -> dict[str, Any]:
    """Judged here, row by row, and in the database."""
    return request.param


# --- detection ------------------------------------------------------------------------------------


def test_broken_rows_are_found_and_fixed(bench, detection):
    """Those and no others; and they are seen to be right afterwards."""
    table = bench.table()
    table.fill(20, BROKEN)
    report = bench.verify(table, rules=[dated(**detection)])
    assert {"fixed": 3} == fates(report)
    assert BROKEN == sorted(problem.key for problem in report.problems)
    assert (0, 3, 0) == (report.exit_code, report.violations, report.open)
    assert [] == table.broken()
    assert 3 == sum(date is not None for date in table.rows().values())


def test_a_pushed_rule_fetches_only_broken_rows(bench):
    """A pass without any other rule has checked no row itself."""
    table = bench.table()
    table.fill(20, BROKEN)
    pushed = dated(check=None, violates=is_undated, fix=None)
    assert 0 == bench.verify(table, rules=[pushed]).rows
    assert 20 == bench.verify(table, rules=[dated(fix=None)]).rows


def test_a_model_says_why(bench):
    """Its errors are the reason, without the value itself."""
    table = bench.table()
    table.fill(2)
    table.run("update {} set note = 'HELP' where id = 2")
    (problem,) = bench.verify(table, rules=[Rule("polite", check=Order)]).problems
    assert ("polite", 2, "left") == (problem.rule, problem.key, problem.fate)
    assert "note: " in problem.reason
    assert "is shouted" in problem.reason
    assert "HELP" not in problem.reason


def test_without_a_fix_rows_are_left(bench, detection):
    """They are reported, all of them, and the pass is not clean."""
    table = bench.table()
    table.fill(20, BROKEN)
    report = bench.verify(table, rules=[dated(fix=None, **detection)])
    assert {"left": 3} == fates(report)
    assert BROKEN == list(report.failing_ids("dated"))
    assert 1 == report.exit_code


def test_a_row_that_breaks_several_rules_is_fixed_for_each(bench):
    """Our own writes are not taken for those of somebody else."""
    table = bench.table("id bigint primary key, a int, b int, c int, d int, e int")
    table.run("insert into {} (id) select generate_series(1, 5)")
    table.run("insert into {} select i, 0, 0, 0, 0, 0 from generate_series(6, 30) i")
    rules = [
        Rule(name, check=lambda row, n=name: row[n] is not None, fix=lambda _, n=name: {n: 1})
        for name in "abcde"
    ]
    assert {"fixed": 25} == fates(bench.verify(table, rules=rules))
    assert [(25,)] == table.run("select sum(a + b + c + d + e) from {}")


def test_the_seeds_callables(bench):
    """`data_validator` is a rule of that name, `fix_missing_data` is given the key."""
    table = bench.table()
    table.fill(20, BROKEN)
    repaired = []

    def repair(key):
        repaired.append(key)
        table.run("update {} set done_at = now() where id = %s", key)

    report = bench.verify(table, data_validator=is_dated, fix_missing_data=repair)
    assert {"fixed": 3} == fates(report)
    assert ["data_validator"] == list(report.rules)
    assert BROKEN == repaired


def test_callables_may_be_coroutines_where_the_verification_is_async(bench):
    """A `fix` and a `fix_missing_data` are awaited."""
    table = bench.table()
    table.fill(4, [2])
    if not bench.world.is_async:
        pytest.skip("a sync verification awaits nothing")

    async def fix(row):
        return with_date(row)

    async def repair(key):
        table.run("update {} set note = 'done' where id = %s", key)

    rules = [dated(fix=fix), Rule("noted", check=lambda row: row["id"] != 3 or row["note"])]
    report = bench.verify(table, rules=rules, fix_missing_data=repair)
    assert {"fixed": 2} == fates(report)


# --- the grace ------------------------------------------------------------------------------------


def test_what_becomes_right_within_the_grace_is_settled(bench):
    """It is no violation, and its fix is never called."""
    table = bench.table()
    table.fill(5, [3])

    def check(row):
        right = is_dated(row)
        if not right:
            table.run("update {} set done_at = now() where id = 3")
        return right

    def fix(row):
        pytest.fail("it was fixed needlessly")

    report = bench.verify(table, rules=[dated(check=check, fix=fix)])
    assert {} == fates(report)
    assert (1, 1) == (report.rules["dated"].flagged, report.rules["dated"].settled)
    assert 0 == report.exit_code


def test_a_row_that_was_deleted_is_settled(bench):
    """There is nothing left to fix."""
    table = bench.table()
    table.fill(5, [3])

    def check(row):
        if row["id"] == 3:
            table.run("delete from {} where id = 3")
        return is_dated(row)

    report = bench.verify(table, rules=[dated(check=check, fix=pytest.fail)])
    assert {} == fates(report)
    assert 1 == report.rules["dated"].settled


def test_a_row_that_the_database_finds_right_again_is_settled(bench):
    """A pushed rule is confirmed by the database, too."""
    table = bench.table()
    table.fill(5, [3])
    reads = []

    def violates(query):
        reads.append(query)
        if len(reads) == 2:  # the page after the one with the row
            table.run("update {} set done_at = now() where id = 3")
        return is_undated(query)

    report = bench.verify(table, rules=[dated(check=None, violates=violates, fix=pytest.fail)])
    assert {} == fates(report)
    assert 1 == report.rules["dated"].settled


def test_a_row_that_changes_all_the_time_is_unsettled(bench):
    """It is broken each time, and each time another: nobody fixes it."""
    table = bench.table()
    table.fill(5, [3])

    def check(row):
        if row["id"] == 3:
            table.run("update {} set note = coalesce(note, '') || '.' where id = 3")
        return is_dated(row)

    report = bench.verify(table, rules=[dated(check=check)])
    assert {"unsettled": 1} == fates(report)
    assert [3] == table.broken()


def test_a_row_that_changed_once_is_fixed_after_another_grace(bench):
    """A change only puts the fix off."""
    table = bench.table()
    table.fill(5, [3])
    fixed = []

    def check(row):
        if row["id"] == 3 and row["note"] is None:
            table.run("update {} set note = 'x' where id = 3")
        return is_dated(row)

    def fix(row):
        fixed.append(row["note"])
        return with_date(row)

    assert {"fixed": 1} == fates(bench.verify(table, rules=[dated(check=check, fix=fix)]))
    assert ["x"] == fixed


# --- the swap -------------------------------------------------------------------------------------


def test_who_writes_between_confirmation_and_fix_wins(bench, detection):
    """The row keeps what the app wrote, the report says who lost."""
    table = bench.table()
    table.fill(5, [3])

    def fix(_):
        table.run("update {} set note = 'of the app' where id = 3")
        return {"done_at": DATE, "note": "of the fixer"}

    report = bench.verify(table, rules=[dated(fix=fix, **detection)])
    assert {"cas_lost": 1} == fates(report)
    assert "of the app" == table.rows("id, note")[3]
    assert [3] == table.broken()
    assert 1 == report.exit_code


def test_a_guard_lets_other_columns_change(bench):
    """Only the columns it names have to be what they were."""
    table = bench.table()
    table.fill(5, [3])

    def fix(_):
        table.run("update {} set note = 'of the app' where id = 3")
        return {"done_at": DATE}

    report = bench.verify(table, rules=[dated(fix=fix, guard=("status", "done_at"))])
    assert {"fixed": 1} == fates(report)
    assert "of the app" == table.rows("id, note")[3]


def test_a_guarded_row_that_changed_is_not_written(bench):
    """Also if the column was NULL, and is a string that looks like one."""
    for value in ("x", "null", "", 'a,b."c"(d):'):
        table = bench.table()
        table.fill(5, [3])

        def fix(_, table=table, value=value):
            table.run("update {} set note = %s where id = 3", value)
            return {"done_at": DATE, "note": "of the fixer"}

        report = bench.verify(table, rules=[dated(fix=fix, guard=("note",))])
        assert {"cas_lost": 1} == fates(report)
        assert value == table.rows("id, note")[3]


def test_a_deleted_row_is_not_made_again(bench):
    """The swap finds nothing to write."""
    table = bench.table()
    table.fill(5, [3])

    def fix(_):
        table.run("delete from {} where id = 3")
        return {"done_at": DATE}

    assert {"cas_lost": 1} == fates(bench.verify(table, rules=[dated(fix=fix)]))
    assert [1, 2, 4, 5] == sorted(table.rows())


# --- fixes that fail ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fix", "fate", "reason"),
    [
        (lambda _: SKIP, "skipped", "fix returned SKIP"),
        (lambda _: {}, "fix_failed", "fix returned no columns to set but dict"),
        (lambda _: None, "fix_failed", "fix returned no columns to set but NoneType"),
        (lambda _: 1 / 0, "fix_failed", "fix raised ZeroDivisionError"),
        (lambda _: {"nope": 1}, "fix_failed", "the write was refused: PGRST204"),
        (lambda _: {"done_at": "soon"}, "fix_failed", "the write was refused: 22007"),
        (lambda _: {"note": "other"}, "fix_failed", "it is still broken"),
    ],
)
def test_a_fix_that_does_not_fix_is_told(bench, fix, fate, reason):
    """And the pass goes on with the other rows."""
    table = bench.table()
    table.fill(20, BROKEN)
    report = bench.verify(
        table, rules=[dated(fix=lambda row: with_date(row) if row["id"] != 7 else fix(row))]
    )
    assert {"fixed": 2, fate: 1} == fates(report)
    assert [(7, reason)] == [(p.key, p.reason) for p in report.problems if p.fate == fate]
    assert [7] == table.broken()


def test_a_repair_that_raises_is_told(bench):
    """So is one that repairs nothing."""
    table = bench.table()
    table.fill(20, BROKEN)

    def repair(key):
        if key == 7:
            raise KeyError(key)

    report = bench.verify(table, data_validator=is_dated, fix_missing_data=repair)
    told = {problem.key: problem.reason for problem in report.problems}
    still = "it is still broken"
    assert {3: still, 7: "fix_missing_data raised KeyError", 11: still} == told
    assert {"fix_failed": 3} == fates(report)


def test_a_repair_may_delete_the_row(bench):
    """What is gone breaks no rule."""
    table = bench.table()
    table.fill(20, BROKEN)

    def repair(key):
        table.run("delete from {} where id = %s", key)

    report = bench.verify(table, data_validator=is_dated, fix_missing_data=repair)
    assert {"fixed": 3} == fates(report)


def test_a_check_that_raises_is_an_error_of_that_row(bench):
    """The pass goes on, and is not clean."""
    table = bench.table()
    table.fill(20, BROKEN)

    def check(row):
        if row["id"] == 5:
            raise KeyError("x")
        return is_dated(row)

    report = bench.verify(table, rules=[dated(check=check)])
    assert {"fixed": 3, "error": 1} == fates(report)
    assert [(5, "check raised KeyError")] == [
        (problem.key, problem.reason) for problem in report.problems if problem.fate == "error"
    ]
    assert (20, 1) == (report.rows, report.exit_code)


# --- bounds ---------------------------------------------------------------------------------------


def test_a_dry_run_writes_nothing(bench, detection):
    """No request but reads is sent; the report says what would be fixed."""
    table = bench.table()
    table.fill(20, BROKEN)
    writes = [
        bench.local.faults.add(method=method, status=500, times=None)
        for method in ("POST", "PATCH", "PUT", "DELETE")
    ]
    verification = bench.verification(table, rules=[dated(**detection)])
    report = verification.run_once(dry_run=True)
    assert ({"would_fix": 3}, True, 1) == (fates(report), report.is_dry_run, report.exit_code)
    always = bench.verify(table, rules=[dated(**detection)], dry_run=True)
    assert ({"would_fix": 3}, True) == (fates(always), always.is_dry_run)
    assert [0, 0, 0, 0] == [fault.count for fault in writes]
    assert BROKEN == table.broken()


def test_a_dry_run_repairs_nothing(bench):
    """`fix_missing_data` is not called."""
    table = bench.table()
    table.fill(20, BROKEN)
    report = bench.verify(
        table, data_validator=is_dated, fix_missing_data=pytest.fail, dry_run=True
    )
    assert {"would_fix": 3} == fates(report)


def test_a_row_whose_fixes_are_undone_is_quarantined(bench):
    """After three fixes nobody tries a fourth one; a person is told which row it is."""
    table = bench.table()
    table.fill(5, [3])
    verification = bench.verification(table)
    told = []
    for _ in range(5):
        told.append(fates(verification.run_once()))
        table.run("update {} set done_at = null where id = 3")
    assert [{"fixed": 1}] * 3 + [{"quarantined": 1}] * 2 == told
    quarantined = [e for e in bench.hook.events if e.name == "verification.row_quarantined"]
    assert [("dated", "3")] * 2 == [(event.rule, event.key) for event in quarantined]


def test_no_more_than_max_fixes_are_made(bench, detection):
    """The rest is over budget, and it is told once."""
    table = bench.table()
    table.fill(20, BROKEN)
    report = bench.verify(table, rules=[dated(**detection)], max_fixes=2)
    assert {"fixed": 2, "over_budget": 1} == fates(report)
    assert "fixing stopped after max_fixes=2" == report.aborted
    assert [11] == table.broken()
    assert 1 == bench.hook.names.count("verification.fixing_aborted")


def test_a_rule_that_most_rows_break_is_taken_for_wrong(bench, detection):
    """Before it is let loose on any row."""
    table = bench.table()
    table.fill(100, range(1, 61))
    report = bench.verify(table, rules=[dated(**detection)], max_share=0.5)
    assert "60 of 100 rows seem to break 'dated'" in report.aborted
    assert {"over_budget": 60} == fates(report)
    assert list(range(1, 61)) == table.broken()
    assert 1 == report.exit_code


def test_a_handful_of_rows_is_always_fixed(bench, detection):
    """However large a share of a small table it is."""
    table = bench.table()
    table.fill(20, range(1, 21))
    report = bench.verify(table, rules=[dated(**detection)], max_share=0.1)
    assert {"fixed": 20} == fates(report)


def test_what_happened_is_told_without_what_is_in_the_rows(bench):
    """Events name the table, the rule and the key."""
    table = bench.table()
    table.fill(5, [3])
    table.run("update {} set note = 'secret'")
    report = bench.verify(table)
    begun, fixed, ended = bench.hook.events
    assert "verification.pass_started" == begun.name
    assert begun.is_full
    assert ("verification.violation_fixed", "dated", "3") == (fixed.name, fixed.rule, fixed.key)
    assert (table.full_name, 5, 1, 1, 0) == (
        ended.table,
        ended.rows,
        ended.violations,
        ended.fixed,
        ended.open,
    )
    assert "secret" not in repr(bench.hook.events) + str(report) + report.to_html()
