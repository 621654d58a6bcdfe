"""Passes that meet outages, are interrupted and resumed, look at changes only, or are held up."""

import copy
import json
from datetime import datetime
from typing import Any

import psycopg
import pytest
from postgrest.exceptions import APIError

from supabase_resilience import CircuitBreaker, VerificationError
from supabase_resilience.cursors import AsyncTableCursor, MemoryCursor, TableCursor
from supabase_resilience.verification import KeyRange, Rule, _async_hands, _sync_hands

from .worlds import DATE, Leaping, dated, eventually, fates, is_dated, is_undated, sql, with_date

PAUSED, RESUMED = "verification.pass_paused", "verification.pass_resumed"
DETECTIONS: list[Any] = [{"check": is_dated}, {"check": None, "violates": is_undated}]


@pytest.fixture(params=DETECTIONS, ids=["check", "violates"])
def detection(request) -> dict[str, Any]:
    """Judged here, row by row, and in the database."""
    return request.param


class Saves(MemoryCursor):
    """A cursor store that can be copied as a killed process would leave it."""

    def __init__(self, saved: dict[str, Any] | None = None) -> None:
        super().__init__()
        if saved is not None:
            self.save(saved)

    def left(self) -> "Saves":
        return Saves(copy.deepcopy(self.load()))


class Death:
    """A `throttle` that ends the pass, and keeps what a killed process would leave behind."""

    def __init__(self, cursor: Saves, when) -> None:
        self.cursor = cursor
        self.left: Saves | None = None
        self._when = when

    def __call__(self) -> None:
        if self._when():
            self.left = self.cursor.left()
            raise RuntimeError("killed")


# --- outages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["rest", "postgres"])
@pytest.mark.parametrize("moment", ["scan", "fix"])
def test_a_server_that_dies_amid_a_pass_is_waited_for(bench, server, moment):
    """The pass goes on where it was; each row is checked once, and fixed once."""
    table = bench.table()
    table.fill(60, [3, 17, 38, 59])
    table.count_writes()
    victim, seen, killed = getattr(bench.local, server), [], []

    def kill_once(key, at):
        if key == at and not killed:
            killed.append(key)
            victim.kill()

    def check(row):
        if moment == "scan":
            kill_once(row["id"], 25)
        if is_dated(row):
            seen.append(row["id"])
        return is_dated(row)

    def fix(row):
        if moment == "fix":
            kill_once(row["id"], 38)
        return with_date(row)

    def revive(event):
        bench.hook(event)
        if event.name == PAUSED:
            victim.start()

    report = bench.verify(
        table, rules=[dated(check=check, fix=fix)], batch_size=10, on_event=revive
    )
    assert {"fixed": 4} == fates(report)
    assert 60 == report.rows
    right = set(range(1, 61)) - {3, 17, 38, 59}
    assert right == {key for key in seen if seen.count(key) == 1 and key in right}
    table.close()  # that connection died, too
    assert {0: 56, 1: 4} == dict(table.run("select writes, count(*) from {} group by writes"))
    assert [PAUSED, RESUMED] == [n for n in bench.hook.names if n in {PAUSED, RESUMED}][:2]


@pytest.mark.parametrize(
    "fault",
    [
        {"drop": "after"},
        {"drop": "body"},
        {"drop": "before"},
        {"status": 503, "headers": {"Retry-After": "0"}},
        {"status": 504},
        {"status": 429, "headers": {"Retry-After": "0"}},
    ],
    ids=str,
)
@pytest.mark.parametrize("lease", [None, "faults"], ids=["plain", "fenced"])
def test_a_write_whose_answer_is_lost_is_looked_after(bench, fault, lease):
    """Whether it was written or not: in the end the row is, once, and the report says so."""
    table = bench.table()
    table.fill(20, [3, 7, 11])
    table.count_writes()
    match = "verification_fix" if lease else table.name
    hit = bench.local.faults.add(match=match, method="POST" if lease else "PATCH", **fault)
    report = bench.verify(table, lease=lease)
    assert 1 == hit.count
    assert {"fixed": 3} == fates(report)
    assert [(3,)] == table.run("select sum(writes) from {}")


def test_a_refused_key_is_never_called_clean(bench):
    """At the beginning of a pass it is raised, amid a pass the report has failed."""
    table = bench.table()
    table.fill(60, [3])
    bad = bench.local.jwt(sub="00000000-0000-0000-0000-000000000001")[:-6] + "AAAAAA"
    with pytest.raises(APIError) as raised:
        bench.verify(table, token=bad)
    assert "PGRST301" == raised.value.code
    seen: list[int] = []

    def check(row):
        seen.append(row["id"])
        return is_dated(row)

    verification = bench.verification(
        table,
        token=lambda: bad if len(seen) > 20 else bench.local.secret_key,
        rules=[dated(check=check)],
        batch_size=10,
    )
    report = verification.run_once()
    assert 2 == report.exit_code
    assert report.failure.startswith("APIError")
    assert "failed" in report.headline
    assert 1 == verification.stats.failed_passes
    assert "verification.pass_failed" in bench.hook.names


def test_a_right_that_is_missing_is_told_before_anything_is_fixed(bench):
    """Also if it is that of the columns by which rows are swapped."""
    table = bench.table()
    table.fill(5, [3])
    body = {"code": "42501", "message": "permission denied for table"}
    bench.local.faults.add(match="select=xmin", status=403, body=body)
    with pytest.raises(VerificationError, match="permission denied for table; grant the role"):
        bench.verify(table)
    assert [3] == table.broken()


def test_an_open_circuit_is_waited_out(bench):
    """A protected client lends its breaker; the pass goes on as soon as that closes."""
    table = bench.table()
    table.fill(20, [3])
    breaker = CircuitBreaker(reset_timeout=0.1)
    breaker.force_open()
    client = bench.protected(breaker=breaker, retry=None)
    result = bench.verification(table, client=client).begin("run_once")
    eventually(lambda: PAUSED in bench.hook.names)
    assert {"the circuit is open"} == {e.reason for e in bench.hook.events if e.name == PAUSED}
    breaker.reset()
    assert {"fixed": 1} == fates(result())


def test_a_slow_count_does_not_fail_a_pass(bench):
    """It is good for the progress bar only."""
    table = bench.table()
    table.fill(20, [3])
    body = {"code": "57014", "message": "canceling statement due to statement timeout"}
    slow = bench.local.faults.add(match=r"select=(\*|%2A)&limit=1$", status=500, body=body)
    verification = bench.verification(table)
    assert {"fixed": 1} == fates(verification.run_once())
    assert 1 == slow.count


# --- resumed passes -------------------------------------------------------------------------------


def test_a_new_process_goes_on_from_the_cursor(bench):
    """What was settled is not done again, what was only flagged is."""
    table = bench.table()
    table.fill(1500, [5, 700, 1190, 1400])
    seen: list[int] = []
    fixed: list[int] = []

    def check(row):
        seen.append(row["id"])
        return is_dated(row)

    def fix(row):
        fixed.append(row["id"])
        return with_date(row)

    options = {"rules": [dated(check=check, fix=fix)], "batch_size": 100, "clock": Leaping()}
    cursor = Saves()
    death = Death(cursor, lambda: seen and seen[-1] >= 1200)
    first = bench.verification(table, cursor=cursor, throttle=death, **options)
    assert 2 == first.run_once().exit_code
    assert fixed
    before = list(fixed)
    seen.clear()
    second = bench.verification(table, cursor=death.left, **options)
    report = second.run_once()
    assert [5, 700, 1190, 1400] == sorted(fixed)
    assert [] == table.broken()
    assert report.fixed == 4 - len(before)
    assert min(seen) > before[-1]
    assert death.left.load()["ranges"] is None


def test_ranges_are_resumed_each_where_it_was(bench):
    """All of the rows are checked in the two processes together."""
    table = bench.table()
    table.fill(400)
    seen: list[int] = []

    def check(row):
        seen.append(row["id"])
        return True

    options = {"rules": [dated(check=check)], "batch_size": 10, "ranges": 3, "clock": Leaping()}
    cursor = Saves()
    death = Death(cursor, lambda: len(seen) > 200)
    bench.verification(table, cursor=cursor, throttle=death, **options).run_once()
    assert 3 == len(death.left.load()["ranges"])
    report = bench.verification(table, cursor=death.left, **options).run_once()
    assert set(range(1, 401)) == set(seen)
    assert report.rows < 400


def test_a_cursor_in_a_table_is_as_good(bench):
    """The stores of the listener are those of a verification."""
    table = bench.table()
    table.fill(20, [3])
    kind = AsyncTableCursor if bench.world.is_async else TableCursor
    cursor = kind(bench.client(), table.name)
    assert {"fixed": 1} == fates(bench.verify(table, cursor=cursor))
    saved = bench.world.do(cursor.load)
    assert (table.full_name, None) == (saved["table"], saved["ranges"])


def test_anothers_cursor_is_refused_and_left_alone(bench):
    """Two verifications that share one would skip each other's rows."""
    cursor = Saves({"format": 1, "table": "public.other", "ranges": None})
    table = bench.table()
    with pytest.raises(
        VerificationError, match=r"saved by another verification, of 'public\.other"
    ):
        bench.verify(table, cursor=cursor)
    assert "public.other" == cursor.load()["table"]


def test_a_pass_that_could_not_begin_keeps_the_place(bench):
    """It is still that of the pass before."""
    table = bench.table()
    table.fill(20)
    place = {"range": {"after": None, "upto": None}, "last": {"id": 10}}
    saved = {"format": 1, "table": table.full_name, "ranges": [place], "is_full": True}
    cursor = Saves(saved)
    with pytest.raises(APIError):
        bench.verify(table, cursor=cursor, token="no token")
    assert saved == cursor.load()
    assert 10 == bench.verify(table, cursor=cursor).rows


def test_a_store_that_fails_does_not_end_the_pass(bench):
    """It is told."""

    class Broken(MemoryCursor):
        def save(self, value):
            raise OSError("disk full")

    table = bench.table()
    table.fill(20, [3])
    assert {"fixed": 1} == fates(bench.verify(table, cursor=Broken()))
    (event,) = {e for e in bench.hook.events if e.name == "cursor.not_saved"}
    assert "OSError" == event.reason


def test_passes_that_do_not_count_leave_the_cursor_alone(bench):
    """A dry run, or one range, of a verification whose pass was interrupted."""
    table = bench.table()
    table.fill(20, [3])
    place = {"range": {"after": None, "upto": None}, "last": {"id": 10}}
    saved = {"format": 1, "table": table.full_name, "ranges": [place], "is_full": True}
    cursor = Saves(saved)
    verification = bench.verification(table, cursor=cursor)
    assert 20 == verification.run_once(dry_run=True).rows
    assert 20 == verification.run_range(KeyRange()).rows
    assert saved == cursor.load()


# --- changes --------------------------------------------------------------------------------------

VERSIONED = "id bigint primary key, status text, done_at timestamptz, ver bigint"


def versioned(bench, rows: int = 20):
    table = bench.table(VERSIONED)
    table.run("insert into {} select i, 'open', null, i from generate_series(1, %s) i", rows)
    return table


def break_row(table, key: int, ver: int) -> None:
    table.run("update {} set status = 'done', done_at = null, ver = %s where id = %s", ver, key)


def test_incremental_passes_look_at_what_has_changed(bench, detection):
    """After a first full pass, and again at everything each `full_every` passes."""
    table = versioned(bench)
    rules = [dated(**detection), Rule("any", check=lambda row: True)]
    verification = bench.verification(
        table, rules=rules, changed_since="ver", overlap=0, full_every=3
    )
    told = []
    for ver in range(21, 25):
        report = verification.run_once()
        told.append((report.is_incremental, report.rows, report.fixed))
        break_row(table, 3, ver)
    # The newest row of the pass before is looked at again: others may have its version.
    assert [(False, 20, 0), (True, 2, 1), (True, 1, 1), (False, 20, 1)] == told
    full = [e.is_full for e in bench.hook.events if e.name == "verification.pass_started"]
    assert [True, False, False, True] == full


def test_a_column_of_times_is_read_with_an_overlap(bench):
    """For what was committed late."""
    table = bench.table("id bigint primary key, status text, done_at timestamptz, at timestamptz")
    table.run(
        "insert into {} select i, 'open', null, timestamptz '2026-01-01' + i * interval '1 second'"
        " from generate_series(1, 100) i"
    )
    verification = bench.verification(table, changed_since="at", overlap=30)
    assert [100, 31] == [verification.run_once().rows for _ in range(2)]


def test_a_column_of_neither_times_nor_numbers_is_told(bench):
    """There is no overlap for it."""
    table = bench.table()
    table.fill(5)
    table.run("update {} set note = 'x'")
    verification = bench.verification(table, changed_since="note")
    verification.run_once()
    with pytest.raises(VerificationError, match="'note' must be a column of times or numbers"):
        verification.run_once()


def test_an_empty_table_has_nothing_to_begin_from(bench):
    """The next pass is a full one, too."""
    table = versioned(bench, rows=0)
    verification = bench.verification(table, changed_since="ver")
    assert 0 == verification.run_once().rows
    table.run("insert into {} values (1, 'open', null, 1)")
    report = verification.run_once()
    assert (False, 1) == (report.is_incremental, report.rows)


def test_a_transaction_that_outlasts_a_pass_is_not_missed(bench):
    """By the listener's migration: each change is found, however late it was committed."""
    table = bench.table()
    table.fill(20)
    table.run(sql("listener", "--table", table.name))
    table.local.rest.reload()
    verification = bench.verification(table, changed_since="sync_xid")
    assert 20 == verification.run_once().rows
    with psycopg.connect(table.local.dsn) as slow:
        slow.execute(f"update {table.name} set status = 'done' where id = 3".encode())
        table.run("update {} set note = 'x' where id = 5")
        assert (0, True) == (
            (report := verification.run_once()).violations,
            report.is_incremental,
        )
        table.run("update {} set note = 'y' where id = 5")
        verification.run_once()
        slow.commit()
    report = verification.run_once()
    assert ({"fixed": 1}, True) == (fates(report), report.is_incremental)
    assert report.rows < 20


def test_what_changes_behind_an_interrupted_pass_is_found(bench):
    """Between the two processes a row is broken that the first one had found right."""
    table = versioned(bench, 60)
    seen: list[int] = []

    def check(row):
        seen.append(row["id"])
        return is_dated(row)

    options = {
        "rules": [dated(check=check)],
        "batch_size": 10,
        "changed_since": "ver",
        "overlap": 0,
        "clock": Leaping(),
    }
    cursor = Saves()
    death = Death(cursor, lambda: len(seen) >= 30)
    bench.verification(table, cursor=cursor, throttle=death, **options).run_once()
    break_row(table, 3, 61)
    table.run("insert into {} values (61, 'open', null, 62)")
    second = bench.verification(table, cursor=death.left, **options)
    assert {} == fates(second.run_once())
    assert {"fixed": 1} == fates(second.run_once())


def test_an_interrupted_look_at_changes_is_resumed_as_one(bench):
    """It was no full pass, and does not become one."""
    table = versioned(bench, 60)
    seen: list[int] = []

    def check(row):
        seen.append(row["id"])
        return is_dated(row)

    options = {
        "rules": [dated(check=check)],
        "batch_size": 10,
        "changed_since": "ver",
        "overlap": 40,
        "full_every": 2,
        "clock": Leaping(),
    }
    cursor = Saves()
    death = Death(cursor, lambda: len(seen) >= 80)
    first = bench.verification(table, cursor=cursor, throttle=death, **options)
    assert [0, 2] == [first.run_once().exit_code for _ in range(2)]
    second = bench.verification(table, cursor=death.left, **options)
    resumed, full = second.run_once(), second.run_once()
    assert (True, False) == (resumed.is_incremental, full.is_incremental)
    assert (True, 60) == (0 < resumed.rows < 41, full.rows)


def test_passes_that_do_not_count_are_no_reason_to_look_at_changes_only(bench):
    """Neither one range nor a dry run has seen to it that everything older is right."""
    table = versioned(bench)
    table.run("update {} set status = 'done' where id = 3")
    verification = bench.verification(table, changed_since="ver", overlap=0)
    assert {"would_fix": 1} == fates(verification.run_once(dry_run=True))
    verification.run_range(KeyRange(after=10))
    report = verification.run_once()
    assert (False, {"fixed": 1}) == (report.is_incremental, fates(report))
    always_dry = bench.verification(table, changed_since="ver", overlap=0, dry_run=True)
    assert [False, True] == [always_dry.run_once().is_incremental for _ in range(2)]


def test_a_nightly_process_looks_at_changes_only_too(bench):
    """The cursor knows what was verified, and how many passes ago all of it was."""
    table = versioned(bench)
    cursor = MemoryCursor()
    told = [
        bench.verify(table, changed_since="ver", full_every=3, cursor=cursor).is_incremental
        for _ in range(4)
    ]
    assert [False, True, True, False] == told


# --- ranges ---------------------------------------------------------------------------------------


def test_ranges_side_by_side_find_the_same(bench, detection):
    """Each row once."""
    table = bench.table()
    broken = list(range(5, 400, 40))
    table.fill(400, broken)
    report = bench.verify(table, rules=[dated(**detection)], ranges=4, batch_size=20)
    assert {"fixed": 10} == fates(report)
    assert broken == sorted(problem.key for problem in report.problems)
    assert report.rows in {0, 400}


def test_an_error_of_one_range_is_the_error_of_the_pass(bench):
    """Whichever range it is; the others are ended."""
    table = bench.table()
    table.fill(400)
    body = {"code": "42703", "message": "column nope does not exist"}
    for match in (r"id=lte\.", r"id=gt\.3\d\d"):
        bench.local.faults.add(match=match, status=400, body=body, times=None)
        with pytest.raises(VerificationError, match="nope does not exist; check id_column"):
            bench.verify(table, ranges=4, batch_size=10)
        bench.local.faults.clear()


def test_key_ranges_add_up(bench):
    """They travel as JSON, and may be verified anywhere."""
    table = bench.table()
    broken = list(range(1, 100, 7))
    table.fill(100, broken)
    verification = bench.verification(table)
    ranges = verification.key_ranges(4)
    assert 4 == len(ranges)
    assert (None, None) == (ranges[0].after, ranges[-1].upto)
    sent = [KeyRange.from_json(json.loads(json.dumps(each.to_json()))) for each in ranges]
    assert ranges == sent
    reports = [bench.verification(table).run_range(each) for each in sent]
    assert all(10 < report.rows < 40 for report in reports)
    total = sum(reports[1:], start=reports[0])
    assert (100, len(broken), 0) == (total.rows, total.fixed, total.open)
    assert broken == sorted(problem.key for problem in total.problems)


def test_key_ranges_of_composite_keys_cut_between_values_of_the_first_column(bench):
    """No row falls between them, however often a value comes."""
    table = bench.table("tenant text, id int, done_at date, primary key (tenant, id)")
    table.run("insert into {} select 'a,b', i from generate_series(1, 80) i")
    table.run("insert into {} select 'c.' || i, i from generate_series(1, 20) i")
    rule = Rule(
        "dated", violates=lambda q: q.is_("done_at", "null"), fix=lambda _: {"done_at": DATE}
    )
    verification = bench.verification(table, id_column=("tenant", "id"), rules=[rule])
    ranges = verification.key_ranges(5)
    assert 1 < len(ranges) <= 5
    assert 100 == sum(verification.run_range(each).fixed for each in ranges)


def test_a_table_of_few_rows_is_one_range(bench):
    """There is nothing to cut."""
    table = bench.table()
    assert [KeyRange()] == bench.verification(table).key_ranges(4)
    table.fill(3, [3])
    assert [KeyRange()] == bench.verification(table).key_ranges(4)
    assert {"fixed": 1} == fates(bench.verify(table, ranges=4))


# --- held up --------------------------------------------------------------------------------------


def test_a_paused_pass_waits(bench):
    """No page is read until `resume()`."""
    table = bench.table()
    table.fill(20, [3])
    verification = bench.verification(table)
    verification.pause()
    result = verification.begin("run_once")
    event = eventually(lambda: next((e for e in bench.hook.events if e.name == PAUSED), None))
    assert ("pause()", table.full_name) == (event.reason, event.table)
    assert "paused" == verification.stats.state
    assert [3] == table.broken()
    verification.resume()
    assert {"fixed": 1} == fates(result())
    assert RESUMED in bench.hook.names


def test_a_pass_goes_on_also_where_waiting_did_not_help(bench):
    """Whoever was told of the pause is told of its end, whatever became of the write."""
    table = bench.table()
    table.fill(20, [3])
    body = {"code": "PGRST002", "message": "no schema cache"}
    bench.local.faults.add(method="PATCH", status=503, body=body)
    bench.local.faults.add(method="PATCH", drop="after")
    report = bench.verify(table, clock=Leaping())
    assert (1, []) == (report.fixed, table.broken())
    told = [name for name in bench.hook.names if name in {PAUSED, RESUMED}]
    assert [PAUSED, RESUMED] == told


def test_a_throttle_holds_pages_up(bench):
    """As long as it says so, in seconds or by True."""
    table = bench.table()
    table.fill(20, [3])
    answers = [0.001, True, 0, None, False]

    def throttle():
        return answers.pop(0) if answers else None

    async def throttle_async():
        return throttle()

    given = throttle_async if bench.world.is_async else throttle
    report = bench.verify(table, throttle=given, clock=Leaping())
    assert {"fixed": 1} == fates(report)
    assert ["throttle"] == [e.reason for e in bench.hook.events if e.name == PAUSED]
    assert not answers[1:]


def test_a_throttle_that_raises_fails_the_pass(bench):
    """It is the user's own."""
    table = bench.table()
    table.fill(20, [3])

    def throttle():
        raise KeyError("secret")

    report = bench.verify(table, throttle=throttle)
    assert (2, [3]) == (report.exit_code, table.broken())
    assert "secret" not in report.failure


def test_pages_are_read_within_their_hours_only(bench, monkeypatch):
    """By this machine's clock; also when they begin before midnight."""
    table = bench.table()
    table.fill(20, [3])
    times = ["12:00", "21:59", "22:00"]

    class Watch:
        @staticmethod
        def now():
            return datetime.fromisoformat(f"2026-01-01T{times[0] if times else '23:59'}")

    for hands in (_sync_hands, _async_hands):
        monkeypatch.setattr(hands, "datetime", Watch)
        monkeypatch.setattr(hands, "_SLICE", 0.001)
    clock = Leaping()

    def ticking():
        if times and bench.hook.names[-1:] == [PAUSED]:
            del times[0]
        return clock()

    report = bench.verify(table, only_between=("22:00", "02:00"), clock=ticking)
    assert {"fixed": 1} == fates(report)
    assert ["only_between"] == [e.reason for e in bench.hook.events if e.name == PAUSED]
