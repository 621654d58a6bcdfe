"""Protected clients with `CircuitBreakers`, slow calls and the retry budget, in both colours."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from postgrest import APIError

from supabase_resilience import (
    CircuitBreaker,
    CircuitBreakers,
    CircuitOpenError,
    FailureRate,
    RetryConfig,
    protect,
)
from supabase_resilience.testing import RecordingHook

from .conftest import Time
from .worlds import Server, World, error, times, usual_reply

SLOW_QUERY = error(500, "57014")
DOWN = httpx.ConnectError("no route")
AT_ONCE = RetryConfig(wait_initial=0.0)

Make = Callable[..., Any]


@pytest.fixture
def make(bare: Any, time: Time) -> Make:
    """Give a maker of protected clients with a set of breakers."""

    def make(*key: Any, retry: RetryConfig | None = None, **options: Any) -> Any:
        options = {"failure_threshold": 1, "jitter": 0.0, "clock": time, "on_event": id, **options}
        return protect(bare, breaker=CircuitBreakers(*key, **options), retry=retry)

    return make


def outcome(world: World, builder: Any) -> Any:
    """Execute it: the code of Postgres, the kind of another error, or the rows."""
    try:
        return world.run(builder.execute()).data
    except APIError as failed:
        return failed.code
    except (httpx.HTTPError, CircuitOpenError) as failed:
        return type(failed)


def read(world: World, client: Any, table: str = "orders") -> Any:
    return outcome(world, client.table(table).select("*"))


# --- one table is sick --------------------------------------------------------------------------


def test_sick_table(world: World, server: Server, make: Make) -> None:
    """A statement_timeout on one table refuses that one, with no request; others are served."""
    client = make()
    server.will(SLOW_QUERY)
    assert "57014" == read(world, client)
    assert CircuitOpenError is read(world, client)
    assert [{"id": 1}] == read(world, client, "profiles")
    assert 2 == server.count
    assert ("closed", ["public.orders"]) == (
        client.breaker.get_state(),
        list(client.breaker.get_stats().by_key),
    )


def test_refusal_names_the_table(world: World, server: Server, make: Make, time: Time) -> None:
    """The refusal says which circuit is open and for how long still."""
    client = make()
    server.will(SLOW_QUERY)
    read(world, client)
    time.advance(10.0)
    with pytest.raises(CircuitOpenError) as refusal:
        world.run(client.table("orders").select("*").execute())
    assert ("supabase:public.orders", 20.0) == (refusal.value.breaker, refusal.value.retry_after)


TARGETS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "read": (lambda c: c.table("t").select("*"), "public.t"),
    "head": (lambda c: c.table("t").select("*", head=True), "public.t"),
    "insert": (lambda c: c.table("t").insert({"id": 1}), "public.t"),
    "update": (lambda c: c.table("t").update({"x": 1}).eq("id", 1), "public.t"),
    "delete": (lambda c: c.table("t").delete().eq("id", 1), "public.t"),
    "another table": (lambda c: c.table("u").select("*"), "public.u"),
    "space": (lambda c: c.table("a t").select("*"), "public.a t"),
    "schema": (lambda c: c.schema("other").table("t").select("*"), "other.t"),
    "schema, write": (lambda c: c.schema("other").table("t").insert({"id": 1}), "other.t"),
    "rpc": (lambda c: c.rpc("f", {}), "public.rpc/f"),
    "rpc get": (lambda c: c.rpc("f", {}, get=True), "public.rpc/f"),
    "schema, rpc": (lambda c: c.schema("other").rpc("f", {}), "other.rpc/f"),
    "table like the function": (lambda c: c.table("f").select("*"), "public.f"),
}


@pytest.mark.parametrize("name", TARGETS)
def test_keys_of_real_builders(world: World, server: Server, make: Make, name: str) -> None:
    """Each builder's request is known by its schema and table or function, and refused by it."""
    client = make()
    build, key = TARGETS[name]
    server.will(SLOW_QUERY)
    assert outcome(world, build(client)) in {"57014", "500"}
    assert [key] == list(client.breaker.by_key)
    for other, (build_other, of_other) in TARGETS.items():
        refused = CircuitOpenError is outcome(world, build_other(client))
        assert (other, of_other == key) == (other, refused)


def test_sick_project(world: World, server: Server, make: Make) -> None:
    """A lost connection refuses every table, and gives none a circuit."""
    client = make()
    server.will(DOWN)
    assert httpx.ConnectError is read(world, client)
    assert CircuitOpenError is read(world, client, "profiles")
    assert (1, 0) == (server.count, len(client.breaker))


def test_project_fails_at_a_known_table(world: World, server: Server, make: Make) -> None:
    """A table that has a circuit is not blamed for the project's failure."""
    client = make(failure_threshold=2)
    server.will(SLOW_QUERY, DOWN, DOWN)
    read(world, client)
    assert httpx.ConnectError is read(world, client)
    assert httpx.ConnectError is read(world, client)
    assert CircuitOpenError is read(world, client)
    stats = client.breaker.get_stats()
    assert ("open", "closed", 1) == (
        stats.project.state,
        stats.by_key["public.orders"].state,
        stats.by_key["public.orders"].current_failures,
    )


def test_life_of_a_tables_circuit(world: World, server: Server, make: Make, time: Time) -> None:
    """Open, a probe that fails, open, a probe that succeeds, closed; the project stays closed."""
    client = make()
    server.will(SLOW_QUERY, SLOW_QUERY)
    read(world, client)
    time.advance(30.0)
    assert "57014" == read(world, client)
    assert CircuitOpenError is read(world, client)
    time.advance(30.0)
    assert [{"id": 1}] == read(world, client)
    assert [{"id": 1}] == read(world, client)
    stats = client.breaker.get_stats()
    own = stats.by_key["public.orders"]
    assert ("closed", 2, 1, 0) == (own.state, own.opened, own.closed, stats.project.opened)
    assert 4 == server.count


@pytest.mark.parametrize("answer", [error(409, "23505"), error(400, "22P02"), error(403, "42501")])
def test_probe_that_postgres_refuses(
    world: World, server: Server, *, make: Make, time: Time, answer: Any
) -> None:
    """A mistake of the caller shows that the table answers again."""
    client = make()
    server.will(SLOW_QUERY, answer)
    read(world, client)
    time.advance(30.0)
    read(world, client)
    assert "closed" == client.breaker.by_key["public.orders"].get_state()


def test_probe_of_a_table_is_one_request(
    world: World, server: Server, make: Make, time: Time
) -> None:
    """The probe of a table is not repeated, whatever comes back."""
    client = make(retry=AT_ONCE)
    server.will(SLOW_QUERY, error(500, "40001"), SLOW_QUERY)
    read(world, client)
    time.advance(30.0)
    assert "40001" == read(world, client)
    assert 2 == server.count


def test_interrupted_probe(world: World, server: Server, make: Make, time: Time) -> None:
    """A probe that is interrupted gives both permits back."""
    client = make()
    server.will(SLOW_QUERY, DOWN)
    read(world, client)
    time.advance(30.0)
    read(world, client)
    time.advance(30.0)
    server.will(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        read(world, client)
    assert [{"id": 1}] == read(world, client)
    assert ("closed", "closed") == (
        client.breaker.get_state(),
        client.breaker.by_key["public.orders"].get_state(),
    )


def test_table_that_refuses_keeps_no_permit(
    world: World, server: Server, make: Make, time: Time
) -> None:
    """At half-open, calls that a table refuses leave the project's permit to others."""
    client = make(reset_timeout=10.0)
    server.will(SLOW_QUERY)
    read(world, client)
    client.breaker.by_key["public.orders"].force_open()
    server.will(DOWN)
    read(world, client, "profiles")
    time.advance(10.0)
    for _ in range(5):
        assert CircuitOpenError is read(world, client)
    assert [{"id": 1}] == read(world, client, "profiles")
    assert "closed" == client.breaker.get_state()


def test_retry_that_its_own_failure_forbids(
    world: World, server: Server, make: Make, time: Time
) -> None:
    """When a failure opens its table, it is raised at once: no wait, and no retry is paid."""
    client = make(retry=RetryConfig())
    server.will(*times(9, SLOW_QUERY))
    assert "57014" == read(world, client)
    stats = client.breaker.get_stats()
    assert (1, 0, 10.0) == (server.count, stats.project.retries, stats.project.budget_left)
    assert [] == time.naps


def test_retry_that_a_known_table_forbids(
    world: World, server: Server, make: Make, time: Time
) -> None:
    """The same holds for a table that had a circuit before."""
    client = make(retry=RetryConfig(), failure_threshold=3)
    server.will(*times(9, SLOW_QUERY))
    read(world, client)
    assert (2, 1) == (server.count, len(time.naps))
    assert "57014" == read(world, client)
    assert (3, 1) == (server.count, len(time.naps))
    assert 1 == client.breaker.get_stats().project.retries


def test_table_opened_during_the_wait(world: World, server: Server, make: Make, time: Time) -> None:
    """When others open the table meanwhile, the last real error is raised."""
    client = make(retry=RetryConfig(), failure_threshold=9)
    server.will(*times(9, SLOW_QUERY))

    def others_fail() -> None:
        client.breaker.by_key["public.orders"].force_open()

    time.during_a_nap = others_fail
    assert "57014" == read(world, client)
    assert 1 == server.count


def test_success_of_a_known_table(world: World, server: Server, make: Make) -> None:
    """Once a table has a circuit its successes count there, and once for the project."""
    client = make(failure_threshold=2)
    server.will(SLOW_QUERY)
    for _ in range(3):
        read(world, client)
    stats = client.breaker.get_stats()
    own = stats.by_key["public.orders"]
    assert (2, 2, 0) == (stats.project.successes, own.successes, own.current_failures)


def test_clients_share_the_circuits(world: World, server: Server, make: Make, bare: Any) -> None:
    """One set serves many clients, and as_user() belongs to its own."""
    client = make()
    other = protect(bare, breaker=client.breaker, retry=None)
    server.will(SLOW_QUERY)
    read(world, client)
    for each in (client, other, client.as_user("jwt")):
        assert each.breaker is client.breaker
        assert CircuitOpenError is read(world, each)


def test_default_of_protect(world: World, server: Server, bare: Any, time: Time) -> None:
    """Without a breaker a client has a set of its own; a lone breaker knows no tables."""
    client = protect(bare, retry=None)
    assert isinstance(client.breaker, CircuitBreakers)
    lone = protect(bare, breaker=CircuitBreaker(failure_threshold=1, clock=time), retry=None)
    server.will(SLOW_QUERY)
    read(world, lone)
    assert [{"id": 1}] == read(world, lone)


def test_key_per_method(world: World, server: Server, make: Make) -> None:
    """A `key` of your own may tell reads from writes."""
    client = make(lambda target: (target.method == "GET", target.name))
    server.will(SLOW_QUERY)
    assert "57014" == read(world, client)
    assert CircuitOpenError is read(world, client)
    assert [{"id": 1}] == outcome(world, client.table("orders").insert({"id": 1}))


def test_nested_in_the_projects_breaker(world: World, server: Server, make: Make) -> None:
    """Within a call of the project's breaker, a query's table is judged by itself."""
    client = make()
    server.will(SLOW_QUERY)
    project = client.breaker.project
    with pytest.raises(APIError):
        world.run(project.execute(client.table("orders").select("*").execute))
    assert ("closed", "open") == (
        project.get_state(),
        client.breaker.by_key["public.orders"].get_state(),
    )
    with pytest.raises(CircuitOpenError):
        world.run(project.execute(client.table("orders").select("*").execute))
    world.run(project.execute(client.table("profiles").select("*").execute))
    assert 1 == project.get_stats().successes


# --- slow answers -------------------------------------------------------------------------------


def test_slow_answers(world: World, server: Server, bare: Any, time: Time) -> None:
    """Answers that take too long open the circuit, though each of them was a success."""
    rule = FailureRate(minimum_calls=2, slow_after=2.0)
    breaker = CircuitBreaker(trip=rule, clock=time, on_event=id)
    client = protect(bare, breaker=breaker, retry=None)

    def late(seconds: float) -> Callable[[httpx.Request], httpx.Response]:
        def reply(request: httpx.Request) -> httpx.Response:
            time.advance(seconds)
            return usual_reply(request)

        return reply

    server.will(late(2.0), late(2.5), late(2.5))
    assert [[{"id": 1}]] * 2 == [read(world, client) for _ in range(2)]
    assert ("open", 1, 1) == (
        breaker.get_state(),
        breaker.get_stats().failures,
        breaker.get_stats().successes,
    )
    assert CircuitOpenError is read(world, client)


def test_failure_rate(world: World, server: Server, bare: Any, time: Time) -> None:
    """A share of failures opens, each attempt being a call of its own."""
    rule = FailureRate(minimum_calls=4, threshold=0.75)
    breaker = CircuitBreaker(trip=rule, clock=time, on_event=id)
    client = protect(bare, breaker=breaker, retry=AT_ONCE)
    read(world, client)
    server.will(*times(3, error(503)))
    assert "503" == str(read(world, client))
    assert ("open", 3) == (breaker.get_state(), breaker.get_stats().current_failures)


# --- the budget ---------------------------------------------------------------------------------


def test_refused_retry(world: World, server: Server, bare: Any, time: Time) -> None:
    """Without budget the last real error is raised at once: no wait, no event."""
    hook = RecordingHook()
    breaker = CircuitBreaker(failure_threshold=99, clock=time, on_event=hook, retry_budget=0.0)
    client = protect(bare, breaker=breaker)
    server.will(DOWN)
    assert httpx.ConnectError is read(world, client)
    stats = breaker.get_stats()
    assert (1, [], []) == (server.count, time.naps, hook.names)
    assert (0, 1, 0.0) == (stats.retries, stats.retries_refused, stats.budget_left)


@pytest.mark.parametrize("fault", [DOWN, error(503, "PGRST000")], ids=["exception", "response"])
def test_all_failing(world: World, server: Server, *, bare: Any, time: Time, fault: Any) -> None:
    """When everything fails, retries add the reserve and no more."""
    breaker = CircuitBreaker(failure_threshold=10**6, clock=time, on_event=id)
    client = protect(bare, breaker=breaker, retry=AT_ONCE)
    server.will(*times(999, fault))
    for _ in range(50):
        read(world, client)
    assert (60, 10) == (server.count, breaker.get_stats().retries)


def test_clients_share_the_budget(world: World, server: Server, bare: Any, time: Time) -> None:
    """The budget belongs to the breaker: all clients of it draw on one reserve."""
    breaker = CircuitBreaker(failure_threshold=10**6, clock=time, on_event=id)
    clients = [protect(bare, breaker=breaker, retry=AT_ONCE) for _ in range(3)]
    server.will(*times(999, DOWN))
    for _ in range(10):
        for client in clients:
            read(world, client)
    assert 40 == server.count
    server.replies.clear()
    for _ in range(10):
        read(world, clients[0])
    server.will(DOWN)
    assert [{"id": 1}] == read(world, clients[1])
    server.will(DOWN)
    assert httpx.ConnectError is read(world, clients[2])


def test_budget_of_a_set(world: World, server: Server, make: Make) -> None:
    """Failures of tables draw on the project's one budget."""
    client = make(retry=AT_ONCE, failure_threshold=10**6)
    server.will(*times(999, SLOW_QUERY))
    for number in range(30):
        read(world, client, f"t{number}")
    assert 40 == server.count
    assert 0.0 == client.breaker.get_stats().project.budget_left


def test_without_limit(world: World, server: Server, bare: Any, time: Time) -> None:
    """`retry_budget=None` repeats as often as `attempts` says."""
    breaker = CircuitBreaker(failure_threshold=10**6, clock=time, on_event=id, retry_budget=None)
    client = protect(bare, breaker=breaker, retry=AT_ONCE)
    server.will(*times(999, DOWN))
    for _ in range(50):
        read(world, client)
    assert 150 == server.count
