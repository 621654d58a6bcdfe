"""A protected client through real outages of a real local Supabase, in both colours."""

import threading
import uuid

import httpx
import pytest
from postgrest import APIError

from supabase_resilience import (
    CircuitBreaker,
    CircuitOpenError,
    RetryConfig,
    classify,
    deadline,
)
from supabase_resilience.testing import FakeClock, RecordingHook

ONCE = RetryConfig(attempts=1)
AT_ONCE = RetryConfig(wait_initial=0.0)


def read(world, client):
    return world.run(client.table("profiles").select("*"))


def add_visit(world, client):
    return world.run(client.table("visits").insert({"note": "here"}))


def visits(world, client):
    return len(world.run(client.table("visits").select("id")).data)


def test_a_stopped_database_opens_the_circuit_and_its_return_closes_it(world, local):
    """Closed, open, refused without a request, half-open, closed."""
    clock, hook = FakeClock(), RecordingHook()
    breaker = CircuitBreaker(failure_threshold=2, clock=clock, on_event=hook)
    client = world.client(local, breaker=breaker, retry=ONCE)
    assert read(world, client).data is not None
    local.postgres.stop()
    for _ in range(2):
        with pytest.raises(APIError) as told:
            read(world, client)
        assert classify(told.value).is_outage
    before = local.requests(match="/rest/v1/profiles")
    with pytest.raises(CircuitOpenError, match="Circuit breaker is OPEN"):
        read(world, client)
    assert before == local.requests(match="/rest/v1/profiles")
    local.postgres.start()
    clock.advance(60.0)
    assert read(world, client).data is not None
    expected = ["circuit.opened", "circuit.call_refused", "circuit.half_opened", "circuit.closed"]
    assert expected == hook.names


def test_a_killed_database_and_a_killed_rest_are_outages_too(world, local):
    """SIGKILL of either part is seen as an outage, and its return as the end of it."""
    client = world.client(local, breaker=CircuitBreaker(failure_threshold=99), retry=ONCE)
    for part in (local.postgres, local.rest):
        part.kill()
        with pytest.raises(APIError) as told:
            read(world, client)
        assert classify(told.value).is_outage
        part.start()
        assert read(world, client).data is not None


def test_retry_after_lengthens_the_open_time(world, local):
    """A server that asks for a minute is not called before."""
    clock = FakeClock()
    breaker = CircuitBreaker(failure_threshold=1, reset_timeout=1.0, jitter=0.0, clock=clock)
    client = world.client(local, breaker=breaker)
    local.faults.add(match="/profiles", status=503, headers={"Retry-After": "60"})
    with pytest.raises(APIError):
        read(world, client)
    clock.advance(59.0)
    with pytest.raises(CircuitOpenError) as refusal:
        read(world, client)
    assert 1.0 == refusal.value.retry_after
    clock.advance(1.0)
    assert read(world, client).data is not None


def test_a_retry_after_beyond_the_deadline_is_not_waited_for(world, local):
    """The error is raised at once instead, after one request."""
    client = world.client(local, breaker=CircuitBreaker())
    fault = local.faults.add(
        match="/profiles", status=503, headers={"Retry-After": "3600"}, times=None
    )
    with pytest.raises(APIError):
        read(world, client)
    assert 1 == fault.count


def test_a_read_is_repeated_until_it_succeeds(world, local):
    """Two lost connections in a row cost a read nothing but a little time."""
    client = world.client(local, breaker=CircuitBreaker(), retry=AT_ONCE)
    fault = local.faults.add(match="/profiles", drop="before", times=2)
    assert read(world, client).data is not None
    assert 2 == fault.count
    assert 2 == client.breaker.get_stats().retries


@pytest.mark.parametrize("drop", ["after", "body"])
def test_a_write_whose_answer_was_lost_is_not_repeated(world, local, drop):
    """The row is there once, and the caller is told that something went wrong."""
    client = world.client(local, breaker=CircuitBreaker(), retry=AT_ONCE)
    before = visits(world, client)
    local.faults.add(match="/visits", method="POST", drop=drop)
    with pytest.raises(httpx.TransportError) as told:
        add_visit(world, client)
    assert "no" != classify(told.value).write_applied
    assert before + 1 == visits(world, client)


def test_a_write_that_was_never_sent_on_is_repeated(world, local):
    """503 from the gateway says that nothing was applied."""
    client = world.client(local, breaker=CircuitBreaker(), retry=AT_ONCE)
    before = visits(world, client)
    fault = local.faults.add(match="/visits", method="POST", status=503, times=2)
    add_visit(world, client)
    assert 2 == fault.count
    assert before + 1 == visits(world, client)


def test_mistakes_of_the_caller_never_open_the_circuit(world, local):
    """Unique violations, unknown tables and bad filters are no fault of the service."""
    client = world.client(local, breaker=CircuitBreaker(failure_threshold=1), retry=ONCE)
    world.run(client.table("profiles").upsert({"id": 1, "name": "Ada"}))
    for builder in (
        client.table("profiles").insert({"id": 1, "name": "again"}),
        client.table("no_such_table").select("*"),
        client.table("profiles").select("*").eq("id", "not a number"),
        client.table("profiles").select("*").eq("id", -1).single(),
        client.rpc("no_such_function", {}),
    ):
        with pytest.raises(APIError):
            world.run(builder)
    stats = client.breaker.get_stats()
    assert ("closed", 0) == (stats.state, stats.failures)


def test_a_host_that_never_answers_ends_every_call(world, local):
    """The total timeout ends it, however many attempts would be left."""
    patience = RetryConfig(attempts=5, attempt_timeout=0.2, total_timeout=0.3)
    client = world.client(local, breaker=CircuitBreaker(), retry=patience)
    fault = local.faults.add(match="/profiles", stall=True, times=None)
    with pytest.raises(httpx.TimeoutException):
        read(world, client)
    assert fault.count in {1, 2}


def test_a_deadline_is_shared_by_all_calls_inside(world, local):
    """What is left of it is all that the next call gets."""
    client = world.client(local, breaker=CircuitBreaker())
    fault = local.faults.add(match="/profiles", stall=True, times=None)
    with deadline(0.2):
        for _ in range(2):
            with pytest.raises(httpx.TimeoutException):
                read(world, client)
    assert 1 == fault.count


def test_as_user_sees_what_row_level_security_lets_the_user_see(world, local):
    """One pool and one breaker, each user's own rows."""
    ada, bob = str(uuid.uuid4()), str(uuid.uuid4())
    client = world.client(local, breaker=CircuitBreaker())
    rows = [{"id": 1, "owner": ada}, {"id": 2, "owner": bob}]
    world.run(client.table("notes").upsert(rows))
    for user, expected in ((ada, [1]), (bob, [2])):
        own = client.as_user(local.jwt(sub=user))
        assert own.breaker is client.breaker
        assert expected == [row["id"] for row in world.run(own.table("notes").select("*")).data]
    assert 2 == len(world.run(client.table("notes").select("*")).data)


def test_twenty_threads_on_one_client_share_one_circuit(sync_world, local):
    """A silent host ends every thread's call with a timeout, and opens the circuit for all."""
    patience = RetryConfig(attempts=1, attempt_timeout=0.5, total_timeout=0.5)
    breaker = CircuitBreaker(failure_threshold=20)
    client = sync_world.client(local, breaker=breaker, retry=patience)
    local.faults.add(match="/profiles", stall=True, times=None)
    together = threading.Barrier(20)
    ends: list[type[Exception]] = []

    def call():
        together.wait()
        try:
            client.table("profiles").select("*").execute()
        except httpx.HTTPError as error:
            ends.append(type(error))

    threads = [threading.Thread(target=call) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [httpx.ReadTimeout] * 20 == ends
    assert "open" == client.breaker.get_state()
    with pytest.raises(CircuitOpenError):
        client.table("profiles").select("*").execute()
