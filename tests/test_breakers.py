"""CircuitBreakers: a table or function that is sick alone is refused alone."""

import inspect
import threading
from collections.abc import Callable
from typing import Any

import pytest

from supabase_resilience import (
    BreakersStats,
    CircuitBreaker,
    CircuitBreakers,
    CircuitOpenError,
    Classification,
    FailureRate,
    Target,
)
from supabase_resilience.breakers import BreakerOptions, KeyedPermit
from supabase_resilience.testing import FakeClock, RecordingHook

Make = Callable[..., CircuitBreakers]
SUCCESS = Classification(verdict="success", answered=True)
DOWN = Classification(verdict="failure")
SLOW = Classification(verdict="failure", scope="query", answered=True)
REFUSED = Classification(verdict="neutral", answered=True)
CANCELED = Classification(verdict="neutral")
THROTTLED = Classification(verdict="throttled")


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def hook():
    return RecordingHook()


@pytest.fixture
def make(clock: FakeClock, hook: RecordingHook) -> Make:
    def make(*key: Any, **options: Any) -> CircuitBreakers:
        options = {"failure_threshold": 2, "jitter": 0.0, **options}
        return CircuitBreakers(*key, clock=clock, on_event=hook, **options)

    return make


def table(name: str) -> Target:
    return Target("GET", "public", name, is_rpc=False)


def call(breakers: CircuitBreakers, name: str, outcome: Classification) -> None:
    """Make a call as a driver makes it."""
    permit = breakers.acquire(breakers.project.acquire(), table(name))
    if isinstance(permit, KeyedPermit):
        permit.settle_key(outcome)
        permit = permit.project
    elif outcome.scope == "query":
        breakers.blame(table(name), outcome)
    breakers.project.settle(permit, outcome)


def calls(breakers: CircuitBreakers, name: str, *outcomes: Classification) -> None:
    for outcome in outcomes:
        call(breakers, name, outcome)


def state(breakers: CircuitBreakers, name: str) -> str:
    return breakers.by_key[f"public.{name}"].get_state()


# --- whose failure it is ------------------------------------------------------------------------


def test_sick_table(make: Make) -> None:
    """Statements that time out on one table refuse that table and no other."""
    breakers = make()
    calls(breakers, "orders", SLOW, SLOW)
    with pytest.raises(CircuitOpenError):
        call(breakers, "orders", SUCCESS)
    call(breakers, "profiles", SUCCESS)
    assert ("closed", "open", 1) == (breakers.get_state(), state(breakers, "orders"), len(breakers))


def test_sick_project(make: Make) -> None:
    """Connections that fail refuse everything, and blame no table."""
    breakers = make()
    calls(breakers, "orders", DOWN, DOWN)
    for name in ("orders", "profiles"):
        with pytest.raises(CircuitOpenError):
            call(breakers, name, SUCCESS)
    assert ("open", 0) == (breakers.get_state(), len(breakers))


def test_failures_of_the_project_leave_a_table_alone(make: Make) -> None:
    """A table that has a circuit is not blamed for connections, limits and mistakes."""
    breakers = make(failure_threshold=2)
    call(breakers, "orders", SLOW)
    calls(breakers, "orders", DOWN, REFUSED, CANCELED, THROTTLED)
    stats = breakers.by_key["public.orders"].get_stats()
    assert ("closed", 1, 0) == (stats.state, stats.current_failures, stats.throttled)


def test_success_between_failures(make: Make) -> None:
    """A success of the table forgets its failures; one of another table does not."""
    breakers = make()
    calls(breakers, "orders", SLOW, SUCCESS, SLOW)
    assert "closed" == state(breakers, "orders")
    call(breakers, "profiles", SUCCESS)
    call(breakers, "orders", SLOW)
    assert "open" == state(breakers, "orders")


def test_slow_queries_say_nothing_of_the_project(make: Make) -> None:
    """For the project they are neutral; at half-open they show that it is back."""
    breakers = make(failure_threshold=1)
    calls(breakers, "a", SLOW)
    assert ("closed", 0, 1) == (
        breakers.get_state(),
        breakers.project.get_stats().failures,
        breakers.project.get_stats().neutral,
    )


def test_slow_query_as_a_probe_of_the_project(make: Make, clock: FakeClock) -> None:
    """A probe that ran into its statement_timeout closes the project and blames its table."""
    breakers = make(failure_threshold=1)
    call(breakers, "a", DOWN)
    clock.advance(30.0)
    call(breakers, "a", SLOW)
    assert ("closed", "open") == (breakers.get_state(), state(breakers, "a"))


def test_blame_says_whether_another_try_makes_sense(make: Make, clock: FakeClock) -> None:
    """Blaming tells whether the circuit is closed still."""
    breakers = make()
    assert [True, False, False] == [breakers.blame(table("a"), SLOW) for _ in range(3)]
    assert 2 == breakers.by_key["public.a"].get_stats().failures
    clock.advance(30.0)
    permit = breakers.acquire(breakers.project.acquire(), table("a"))
    assert permit.settle_key(SUCCESS)
    assert not breakers.by_key["public.a"].get_stats().current_failures


def test_disabled_circuit_lets_pass(make: Make) -> None:
    """A table whose circuit was disabled by hand is not refused, nor judged."""
    breakers = make()
    breakers.blame(table("a"), SLOW)
    breakers.by_key["public.a"].disable()
    assert all(breakers.blame(table("a"), SLOW) for _ in range(9))
    call(breakers, "a", SUCCESS)


# --- a table's circuit --------------------------------------------------------------------------


def test_probe_of_a_table(make: Make, clock: FakeClock) -> None:
    """After the open time one call passes as the table's probe; its success closes."""
    breakers = make(failure_threshold=1)
    call(breakers, "orders", SLOW)
    clock.advance(30.0)
    probe = breakers.acquire(breakers.project.acquire(), table("orders"))
    assert (True, False) == (probe.is_probe, probe.project.is_probe)
    with pytest.raises(CircuitOpenError):
        call(breakers, "orders", SUCCESS)
    assert probe.settle_key(SUCCESS)
    assert "closed" == state(breakers, "orders")


def test_failed_probe_of_a_table(make: Make, clock: FakeClock) -> None:
    """A probe that times out again opens the table again."""
    breakers = make(failure_threshold=1)
    call(breakers, "orders", SLOW)
    clock.advance(30.0)
    probe = breakers.acquire(breakers.project.acquire(), table("orders"))
    assert not probe.settle_key(SLOW)
    assert "open" == state(breakers, "orders")


@pytest.mark.parametrize(("outcome", "after"), [(DOWN, "half_open"), (CANCELED, "half_open")])
def test_probe_that_says_nothing_of_its_table(
    make: Make, clock: FakeClock, outcome: Classification, after: str
) -> None:
    """A lost connection or a canceled call gives the table's permit back: the next call probes."""
    breakers = make(failure_threshold=1)
    call(breakers, "orders", SLOW)
    clock.advance(30.0)
    breakers.project.disable()
    call(breakers, "orders", outcome)
    assert after == state(breakers, "orders")
    call(breakers, "orders", SUCCESS)
    assert "closed" == state(breakers, "orders")


def test_probe_refused_by_postgres_closes(make: Make, clock: FakeClock) -> None:
    """A probe that Postgres answered shows that the table is well."""
    breakers = make(failure_threshold=1)
    call(breakers, "orders", SLOW)
    clock.advance(30.0)
    call(breakers, "orders", REFUSED)
    assert "closed" == state(breakers, "orders")


def test_probe_of_the_project_is_a_probe(make: Make, clock: FakeClock) -> None:
    """A call is a probe when it is one for the project, or for its table."""
    breakers = make(failure_threshold=1)
    calls(breakers, "orders", SLOW)
    breakers.by_key["public.orders"].reset()
    call(breakers, "orders", DOWN)
    clock.advance(30.0)
    probe = breakers.acquire(breakers.project.acquire(), table("orders"))
    assert (True, True) == (probe.is_probe, probe.project.is_probe)


def test_table_refuses_the_projects_probe(make: Make, clock: FakeClock) -> None:
    """When the table refuses, the project's permit goes back: the next call is its probe."""
    breakers = make(failure_threshold=1, max_reset_timeout=100.0)
    breakers.blame(table("orders"), Classification(verdict="blocked", scope="query"))
    call(breakers, "profiles", DOWN)
    clock.advance(30.0)
    for _ in range(3):
        with pytest.raises(CircuitOpenError) as refusal:
            call(breakers, "orders", SUCCESS)
        assert (("supabase:public.orders", 70.0)) == (
            refusal.value.breaker,
            refusal.value.retry_after,
        )
    call(breakers, "profiles", SUCCESS)
    assert "closed" == breakers.get_state()


def test_projects_refusal_comes_first(make: Make, clock: FakeClock) -> None:
    """While the project is open, its refusal is what a caller sees."""
    breakers = make(failure_threshold=1, name="db")
    call(breakers, "orders", SLOW)
    call(breakers, "profiles", DOWN)
    with pytest.raises(CircuitOpenError) as refusal:
        call(breakers, "orders", SUCCESS)
    assert "db" == refusal.value.breaker


def test_stale_result_of_a_table(make: Make, clock: FakeClock) -> None:
    """A result from before the table's circuit opened changes nothing after it has closed."""
    breakers = make()
    call(breakers, "orders", SLOW)
    stale = breakers.acquire(breakers.project.acquire(), table("orders"))
    call(breakers, "orders", SLOW)
    clock.advance(30.0)
    call(breakers, "orders", SUCCESS)
    stale.settle_key(SLOW)
    assert 0 == breakers.by_key["public.orders"].get_stats().current_failures


# --- keys ---------------------------------------------------------------------------------------


def test_made_at_the_first_failure(make: Make) -> None:
    """Successes make no circuits, so a healthy app pays for none."""
    breakers = make()
    for number in range(1000):
        call(breakers, f"t{number}", SUCCESS)
    assert 0 == len(breakers)


def test_least_recently_used_goes_first(make: Make) -> None:
    """Beyond the limit the circuit not used for longest goes; use by any call counts."""
    breakers = make(limit=2)
    calls(breakers, "a", SLOW)
    calls(breakers, "b", SLOW)
    call(breakers, "a", SUCCESS)
    calls(breakers, "c", SLOW)
    assert ["public.a", "public.c"] == list(breakers.by_key)
    calls(breakers, "a", SLOW)
    calls(breakers, "d", SLOW)
    assert ["public.a", "public.d"] == list(breakers.by_key)


def test_failure_is_use(make: Make) -> None:
    """A failure that was begun before its table had a circuit counts as use, too."""
    breakers = make(limit=2)
    for name in ("a", "b", "a", "c"):
        breakers.blame(table(name), SLOW)
    assert ["public.a", "public.c"] == list(breakers.by_key)


@pytest.mark.parametrize("limit", [1, 3, 256])
def test_limit(make: Make, limit: int) -> None:
    """There never are more circuits than the limit."""
    breakers = make(limit=limit)
    for number in range(limit * 3):
        call(breakers, f"t{number}", SLOW)
        assert min(number + 1, limit) == len(breakers)


def test_circuit_that_was_dropped(make: Make) -> None:
    """A table whose circuit was dropped starts anew; its calls in flight end in peace."""
    breakers = make(limit=1, failure_threshold=1)
    breakers.blame(table("a"), Classification(verdict="neutral", scope="query"))
    flying = breakers.acquire(breakers.project.acquire(), table("a"))
    call(breakers, "b", SLOW)
    assert ["public.b"] == list(breakers.by_key)
    flying.settle_key(SLOW)
    call(breakers, "a", SUCCESS)


def test_key_of_your_own(make: Make) -> None:
    """`key` says what has a circuit of its own: here each schema."""
    breakers = make(lambda target: target.schema, failure_threshold=1)
    call(breakers, "a", SLOW)
    with pytest.raises(CircuitOpenError, match="'supabase:public'"):
        call(breakers, "b", SUCCESS)
    other = Target("GET", "other", "b", is_rpc=False)
    breakers.acquire(breakers.project.acquire(), other)


def test_key_of_any_kind(make: Make) -> None:
    """Whatever can be a dict's key can be a circuit's."""
    breakers = make(lambda target: (target.method, target.is_rpc))
    call(breakers, "a", SLOW)
    assert [("GET", False)] == list(breakers.by_key)
    assert {("GET", False)} == breakers.get_stats().by_key.keys()


def test_no_key(make: Make) -> None:
    """None as a key means: no circuit but the project's."""
    breakers = make(lambda target: None if target.name == "a" else target.name)
    assert breakers.blame(table("a"), SLOW)
    calls(breakers, "b", SLOW)
    calls(breakers, "a", SLOW, SLOW, SLOW, SUCCESS)
    assert ["b"] == list(breakers.by_key)


def test_key_that_fails(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """A `key` that fails is logged, and fails no call."""
    for broken in (lambda target: target.no_such, lambda target: [target]):
        caplog.clear()
        breakers = make(broken)
        breakers.by_key["x"] = CircuitBreaker()
        calls(breakers, "a", SLOW, SUCCESS)
        assert ["x"] == list(breakers.by_key)
        assert "key failed" in caplog.text


# --- names, options, statistics -----------------------------------------------------------------


def test_names(make: Make) -> None:
    """A refusal names the table's circuit: the project's name and the key."""
    breakers = make(failure_threshold=1, name="db")
    call(breakers, "orders", SLOW)
    with pytest.raises(CircuitOpenError, match=r"'db:public\.orders' refused the call") as refusal:
        call(breakers, "orders", SUCCESS)
    assert ("db:public.orders", 30.0) == (refusal.value.breaker, refusal.value.retry_after)


def test_options_reach_every_breaker(make: Make, clock: FakeClock) -> None:
    """Each breaker of the set has the same options; the retry budget is the project's alone."""
    opened: list[int] = []
    rule = FailureRate(minimum_calls=3)
    breakers = make(
        trip=rule,
        reset_timeout=5.0,
        half_open_permits=3,
        max_reset_timeout=50.0,
        retry_budget=0.5,
        on_open=lambda: opened.append(1),
    )
    calls(breakers, "a", SLOW, SLOW, SLOW)
    own, project = breakers.by_key["public.a"], breakers.project
    assert "open" == own.get_state()
    assert [1] == opened
    for name in ("trip", "reset_timeout", "half_open_permits", "max_reset_timeout"):
        assert getattr(project._circuit.settings, name) == getattr(own._circuit.settings, name)
    assert (None, 10.0) == (own.get_stats().budget_left, project.get_stats().budget_left)


def test_options_are_those_of_a_breaker() -> None:
    """Every option of `CircuitBreaker` is one of the set."""
    taken = set(inspect.signature(CircuitBreaker).parameters)
    assert taken == BreakerOptions.__annotations__.keys()


def test_options_are_checked_at_once() -> None:
    """A bad option is refused when the set is made, not at the first failure of a table."""
    with pytest.raises(ValueError, match="failure_threshold must be >= 1, got 0"):
        CircuitBreakers(failure_threshold=0)
    with pytest.raises(ValueError, match="limit must be >= 1, got 0"):
        CircuitBreakers(limit=0)
    with pytest.raises(TypeError, match=r"key must be callable, got 'public\.a'"):
        CircuitBreakers("public.a")  # type: ignore[arg-type]


def test_events_name_their_circuit(make: Make, hook: RecordingHook) -> None:
    """Events of a table's circuit say whose they are."""
    breakers = make(failure_threshold=1)
    call(breakers, "a", SLOW)
    assert [("supabase:public.a", "circuit.opened")] == [(e.breaker, e.name) for e in hook.events]


def test_stats(make: Make) -> None:
    """Statistics of all at one moment, and they stay as they were."""
    breakers = make()
    calls(breakers, "a", SLOW, SUCCESS)
    before = breakers.get_stats()
    assert isinstance(before, BreakersStats)
    assert (1, 1) == (before.project.successes, before.project.neutral)
    [(key, stats)] = before.by_key.items()
    assert ("public.a", 1, 1) == (key, stats.failures, stats.successes)
    calls(breakers, "b", SLOW)
    assert ["public.a"] == list(before.by_key)
    with pytest.raises(AttributeError):
        before.project = before.project  # type: ignore[misc]


def test_reset(make: Make) -> None:
    """reset() closes the project's circuit and forgets the others."""
    breakers = make(failure_threshold=1)
    by_key = breakers.by_key
    call(breakers, "a", SLOW)
    call(breakers, "b", DOWN)
    breakers.reset()
    assert ("closed", 0) == (breakers.get_state(), len(breakers))
    assert by_key is breakers.by_key
    call(breakers, "a", SUCCESS)


def test_words(make: Make) -> None:
    """It says what the project's state is and how many others there are; empty, it still is."""
    breakers = make(name="db")
    assert "<CircuitBreakers <CircuitBreaker 'db' closed> +0>" == repr(breakers)
    assert breakers
    call(breakers, "a", SLOW)
    assert "<CircuitBreakers <CircuitBreaker 'db' closed> +1>" == repr(breakers)


def test_two_sets_share_nothing(make: Make) -> None:
    """Each set has breakers of its own."""
    one, two = make(failure_threshold=1), make(failure_threshold=1)
    call(one, "a", SLOW)
    call(one, "b", DOWN)
    call(two, "a", SUCCESS)
    assert ("open", "closed", 0) == (one.get_state(), two.get_state(), len(two))


def test_threads(make: Make) -> None:
    """However many threads fail on a table at once, it has one circuit and every failure in it."""
    breakers = make(failure_threshold=10**6, limit=3)
    barrier = threading.Barrier(8)

    def work() -> None:
        barrier.wait(60.0)
        for number in range(200):
            call(breakers, f"t{number % 3}", SLOW)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = breakers.get_stats()
    assert 1600 == sum(each.failures for each in stats.by_key.values())
    assert (1600, 3) == (stats.project.neutral, len(stats.by_key))
