"""The parts a pass is made of, without a server: sizes, ranges, patience, budgets, decisions."""

import httpx
import pytest
from postgrest.exceptions import APIError

from supabase_resilience import CircuitOpenError, VerificationError
from supabase_resilience._queries import Rpc, Select
from supabase_resilience.testing import FakeClock, RecordingHook
from supabase_resilience.verification import KeyRange, Report, Rule
from supabase_resilience.verification._commands import Read, Write
from supabase_resilience.verification._lease import Lease
from supabase_resilience.verification._lease import explained as lease_explained
from supabase_resilience.verification._paging import PageSize
from supabase_resilience.verification._patience import Patience, explained
from supabase_resilience.verification._stats import Counts
from supabase_resilience.verification._table import Table
from supabase_resilience.verification._tally import Fights, Tally

RULE = Rule("r", check=bool)
PUSHED = Rule("p", violates=bool)
READ = Read(Select())
WRITE = Write({"a": 1}, [("id", "eq", "1")], ["id"])


def api_error(code: str, message: str = "m") -> APIError:
    return APIError({"code": code, "message": message, "hint": None, "details": None})


def drive(plan, *answers):
    """The commands of a plan, which is sent the answers (or thrown them), and its result."""
    commands, given = [], list(answers)
    try:
        command = next(plan)
        while True:
            commands.append(command)
            answer = given.pop(0)
            command = plan.throw(answer) if isinstance(answer, Exception) else plan.send(answer)
    except StopIteration as end:
        assert not given
        return commands, end.value


# --- pages and ranges -----------------------------------------------------------------------------


def test_pages_grow_while_they_are_quick():
    """By half, up to what Supabase returns at most; a larger wish is kept."""
    size, sizes = PageSize(50), []
    for _ in range(9):
        size.took(0.01)
        sizes.append(size.size)
    assert [75, 112, 168, 252, 378, 567, 850, 1000, 1000] == sizes
    large = PageSize(5000)
    large.took(0.01)
    assert 5000 == large.size
    one = PageSize(1)
    one.took(0.01)
    assert 2 == one.size


def test_pages_shrink_while_they_are_slow():
    """To what takes half a second; between that and half of it they stay as they are."""
    size = PageSize(400)
    size.took(1.0)
    assert 200 == size.size
    size.took(0.3)
    assert 200 == size.size
    size.took(100.0)
    assert 10 == size.size
    small = PageSize(4)
    small.took(100.0)
    assert 4 == small.size


def test_pages_halve_at_a_timeout_and_remember_it():
    """Until there is nothing left to halve."""
    size = PageSize(80)
    assert [True] * 3 == [size.timed_out() for _ in range(3)]
    assert 10 == size.size
    size.took(0.01)
    assert 10 == size.size
    assert [True, True, True, False] == [size.timed_out() for _ in range(4)]
    assert 1 == size.size


def test_ranges_lie_between_cuts():
    """Each key is in one of them."""
    ranges = KeyRange.between([10, "a,b"])
    assert [KeyRange(None, 10), KeyRange(10, "a,b"), KeyRange("a,b", None)] == ranges
    assert [KeyRange()] == KeyRange.between([])
    assert [] == KeyRange().conditions("id")
    assert [("id", "gt", "10"), ("id", "lte", "a,b")] == ranges[1].conditions("id")
    assert ranges[1] == KeyRange.from_json(ranges[1].to_json())


# --- patience -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        api_error("57014"),
        api_error("PGRST003"),
        api_error("42501"),
        api_error("PGRST301"),
        api_error("23505"),
        KeyError("x"),
    ],
    ids=str,
)
def test_what_waiting_does_not_heal_is_not_waited_for(error):
    """Timeouts are for the pass to answer, with a smaller page."""
    assert None is Patience().wait_for(READ, error)


def test_an_outage_is_waited_for_with_growing_breaks():
    """Up to half a minute each."""
    patience = Patience()
    waits = [patience.wait_for(READ, httpx.ConnectError("x")).seconds for _ in range(12)]
    assert [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, 30, 30] == waits


def test_an_open_circuit_says_how_long():
    """As long as it stays open, if that is longer."""
    error = CircuitOpenError("b", retry_after=7.0)
    assert (7.0, "the circuit is open") == Patience().wait_for(WRITE, error)
    assert 0.5 == Patience().wait_for(READ, CircuitOpenError("b", retry_after=0.0)).seconds


def test_a_write_that_may_have_been_done_is_not_done_again():
    """One that was not is."""
    assert None is Patience().wait_for(WRITE, httpx.ReadError("x"))
    assert 0.5 == Patience().wait_for(WRITE, httpx.ConnectError("x")).seconds
    assert 0.5 == Patience().wait_for(READ, httpx.ReadError("x")).seconds


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("42P01", "create the table"),
        ("PGRST205", "create the table"),
        ("PGRST106", "expose the schema"),
        ("42703", "check id_column"),
        ("42501", "use the secret key"),
    ],
)
def test_an_error_says_what_to_do(code, remedy):
    """Where a person can do something about it."""
    told = explained(api_error(code), "public.orders")
    assert isinstance(told, VerificationError)
    assert str(told).startswith("cannot verify public.orders: m; ")
    assert remedy in str(told)


@pytest.mark.parametrize("error", [KeyError("x"), api_error("23505"), APIError({})], ids=repr)
def test_other_errors_are_told_as_they_are(error):
    """They say it themselves."""
    assert error is explained(error, "t")
    if isinstance(error, APIError):
        assert error is lease_explained(error)


# --- tables ---------------------------------------------------------------------------------------


def test_a_row_is_recognised_by_its_guard_or_as_a_whole():
    """`xmin` is no part of what its owner knows."""
    table = Table("public", "t", ["a", "b"])
    row = {"a": 1, "b": 2, "c": None, "xmin": "7"}
    guarded = Rule("r", check=bool, guard=("c", "b"))
    assert "public.t" == str(table)
    assert (1, 2) == table.key_of(row)
    assert [None, 2] == table.stamp(row, guarded)
    assert {"a": 1, "b": 2, "c": None} == table.stamp(row, RULE) == table.visible(row)
    key = [("a", "eq", "1"), ("b", "eq", "2")]
    assert [*key, ("c", "is", "null"), ("b", "eq", "2")] == table.unchanged(row, guarded)
    assert [*key, ("xmin", "eq", "7")] == table.unchanged(row, RULE)


@pytest.mark.parametrize(
    ("value", "condition"),
    [
        (None, ("is", "null")),
        (True, ("is", "true")),
        (False, ("is", "false")),
        (0, ("eq", "0")),
        (1.5, ("eq", "1.5")),
        ("null", ("eq", "null")),
        ({"a": [1, None]}, ("eq", '{"a": [1, null]}')),
        ([1, "x"], ("eq", '[1, "x"]')),
    ],
)
def test_a_value_is_compared_as_what_it_is(value, condition):
    """NULL equals nothing."""
    rule = Rule("r", check=bool, guard=("v",))
    found = Table("s", "t", ["id"]).unchanged({"id": 1, "v": value}, rule)
    assert ("v", *condition) == found[1]


def test_keys_are_listed_in_reads_that_are_short_enough():
    """All of them, in order."""
    table = Table("public", "t", ["id"])
    assert [] == list(table.reads_of([]))
    assert 1 == len(list(table.reads_of([f"{n:036}" for n in range(100)])))
    table.reads_xmin = True
    long = list(table.reads_of(["é" * 1000, "b" * 5000, "c" * 5000, "d"]))
    assert [1, 1, 2] == [read.where[0][2].count('"') // 2 for read in long]
    assert {("*", "xmin")} == {tuple(read.columns) for read in long}
    pairs = list(Table("public", "t", ["a", "b"]).reads_of([("x" * 5000, 1), ("y" * 5000, 2)]))
    assert ["and(", "and("] == [read.any_of[:4] for read in pairs]


# --- budgets --------------------------------------------------------------------------------------


def tally(hook=None, *, max_fixes=100, max_share=0.2, fights=None):
    return Tally(
        Report("t"),
        fights or Fights(),
        max_fixes=max_fixes,
        max_share=max_share,
        tell=hook or RecordingHook(),
    )


def flag(made, rule, count):
    for _ in range(count):
        made.flagged(rule)


def test_twenty_rows_are_a_handful():
    """They may be fixed, however large their share is; one more may not."""
    made = tally(max_share=0.0)
    made.checked(20)
    flag(made, RULE, 20)
    assert None is made.refusal(RULE, 1)
    flag(made, RULE, 1)
    assert "over_budget" == made.refusal(RULE, 2)


def test_a_share_is_that_of_rows_that_still_look_broken():
    """Those that have settled say nothing against the rule."""
    made = tally()
    made.checked(200)
    flag(made, RULE, 50)
    for _ in range(10):
        made.settled(RULE)
    assert None is made.refusal(RULE, 1)
    flag(made, RULE, 1)
    assert "over_budget" == made.refusal(RULE, 2)
    assert "41 of 200 rows seem to break 'r', more than max_share=0.2" in made.report.aborted


def test_a_pushed_rule_is_compared_with_all_rows():
    """Which nobody may have counted: then only `max_fixes` holds."""
    made = tally()
    flag(made, PUSHED, 90)
    assert None is made.refusal(PUSHED, 1)
    made.total = 1000
    assert None is made.refusal(PUSHED, 1)
    made.total = 100
    assert "over_budget" == made.refusal(PUSHED, 2)


def test_an_abort_is_told_once_and_holds_for_all_rules():
    """Nothing more is fixed in this pass."""
    hook = RecordingHook()
    made = tally(hook, max_fixes=1)
    flag(made, RULE, 1)
    flag(made, PUSHED, 1)
    assert [None, "over_budget", "over_budget"] == [
        made.refusal(rule, 1) for rule in (RULE, RULE, PUSHED)
    ]
    assert ["verification.fixing_aborted"] == hook.names


def test_fights_are_remembered_of_so_many_rows(monkeypatch):
    """The oldest is forgotten first; each rule has its own."""
    monkeypatch.setattr("supabase_resilience.verification._tally._REMEMBERED", 2)
    fights = Fights()
    for _ in range(3):
        fights.fixed("r", 1)
    assert fights.is_lost("r", 1)
    assert not fights.is_lost("p", 1)
    fights.fixed("r", 2)
    fights.fixed("r", 3)
    assert not fights.is_lost("r", 1)


def test_keys_are_the_same_from_memory_and_from_a_file(monkeypatch):
    """Of composite ones a list of values."""
    monkeypatch.setattr("supabase_resilience.verification._report._IN_MEMORY", 2)
    made = tally()
    for number in range(3):
        made.fate(RULE, ("a", number), "left")
    try:
        assert [["a", 0], ["a", 1], ["a", 2]] == list(made.report.failing_ids())
    finally:
        made.report.problems.path.unlink()


def test_a_sample_is_enough_from_a_thousand_rows_on():
    """Below that a share says little."""
    made = tally()
    made.checked(999)
    assert not made.is_sample_enough()
    made.checked(1)
    assert made.is_sample_enough()


# --- leases ---------------------------------------------------------------------------------------


def test_a_lease_is_held_a_little_less_long_than_it_lasts():
    """By our clock, from when it was asked for."""
    clock, hook = FakeClock(), RecordingHook()
    lease = Lease("l", clock=clock, tell=hook, seconds=60.0)
    assert (False, False) == (lease.is_held, lease.is_renewal_due)
    assert [([], False), ([], None)] == [drive(lease.renew()), drive(lease.release())]
    assert not drive(lease.acquire(), None)[1]
    ((asked,), taken) = drive(lease.acquire(), 5)
    assert ("supabase_resilience_lease_acquire", True) == (asked.function, taken)
    assert lease.is_held
    clock.advance(14.0)
    assert not lease.is_renewal_due
    clock.advance(1.0)
    assert lease.is_renewal_due
    ((renewed,), _) = drive(lease.renew(), 5)
    assert {"p_name": "l", "p_seconds": 60.0, "p_token": 5} == renewed.arguments
    clock.advance(53.9)
    assert lease.is_held
    clock.advance(0.1)
    assert not lease.is_held
    assert ["verification.lease_taken"] == hook.names


def test_a_lost_lease_is_told_once():
    """Whoever notices it."""
    hook = RecordingHook()
    lease = Lease("l", clock=FakeClock(), tell=hook)
    drive(lease.acquire(), 1)
    assert not drive(lease.renew(), None)[1]
    lease.lose()
    assert ["verification.lease_taken", "verification.lease_lost"] == hook.names
    drive(lease.acquire(), 2)
    ((released,), _) = drive(lease.release(), None)
    assert Rpc("supabase_resilience_lease_release", {"p_name": "l", "p_token": 2}) == released
    assert not lease.is_held


# --- numbers --------------------------------------------------------------------------------------


def test_failed_passes_are_counted_apart():
    """The age is that of the last complete one."""
    counts = Counts()
    good, bad = Report("t", rows=5), Report("t", rows=3, failure="x")
    counts.ended(good, 10.0)
    counts.ended(bad, 20.0)
    stats = counts.snapshot(table="t", state="waiting", progress=None, now=25.0)
    assert (1, 1, 8, 15.0) == (stats.passes, stats.failed_passes, stats.rows, stats.last_pass_age)
    assert bad is stats.last_report
    assert 0 == Counts().snapshot(table="t", state="stopped", progress=None, now=0.0).open
