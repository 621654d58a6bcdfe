"""SupabaseQueue on the six functions that every project has, with four versions of pgmq."""

import json
from datetime import timedelta

import pytest

from supabase_resilience import CircuitBreaker, RetryConfig, _clock, idempotent, protect
from supabase_resilience.errors import QueueError
from supabase_resilience.queues._jobs import QueueMetrics, Settlement
from supabase_resilience.queues._store import Abilities, Exchange
from supabase_resilience.queues._supabase import AsyncSupabaseQueue, SupabaseQueue

from .worlds import AsyncWorld, SyncWorld, job, letter_for, rows, settle, sql_of, take

DELETE, READ, SEND = (f"/rpc/{function}$" for function in ("delete", "read", "send"))


def leased(job, seconds=30.0):
    """Write down the lease as a processor does."""
    job.lease_ends_at = _clock.monotonic() + seconds
    return job


# --- sending and reading --------------------------------------------------------------------------


def test_what_is_sent_is_read(queue, name):
    """Ids are told in order; jobs come by age, with all that they were given."""
    first = job({"n": 1}, priority=7, dedupe_key="once")
    others = [job(text) for text in ("ä 😀", None, [1.5, {"deep": []}])]
    assert [first.id] == queue.send("", [first], 0)
    assert [each.id for each in others] == queue.send("", others, 0)
    jobs = take(queue)
    assert [first.id, *(each.id for each in others)] == [each.id for each in jobs]
    assert [{"n": 1}, "ä 😀", None, [1.5, {"deep": []}]] == [each.data for each in jobs]
    got = jobs[0]
    told = (got.priority, got.attempt, got.deliveries, got.dedupe_key, got.queue, got.enqueued_at)
    assert (7, 1, 1, "once", name, first.enqueued_at) == told


def test_nothing_to_send_asks_nobody(queue, local):
    """An empty list costs no request to the queue."""
    before = local.requests(match="/rpc/send")
    assert [] == queue.send("", [], 0)
    assert before == local.requests(match="/rpc/send")


def test_any_json_is_a_job(queue, database, name):
    """A message that somebody else sent is all payload, and its id names it."""
    messages = [{"data": 1}, [1, 2], "text", None, {"supabase_resilience": {"priority": 3}}]
    for message in messages:
        database.execute("select pgmq.send(%s, %s::jsonb)", [name, json.dumps(message)])
    jobs = take(queue)
    assert messages == [each.data for each in jobs]
    assert [f"{name}/{number}" for number in range(1, 6)] == [each.id for each in jobs]


def test_delays_are_rounded_up(queue, database, name):
    """Pgmq knows whole seconds; a job never comes early."""
    queue.send("", [job()], 0.2)
    queue.send("", [job(), job()], 61.0)
    waits = [round(delay.total_seconds()) for _, delay, *_ in rows(database, name)]
    assert [1, 61, 61] == waits
    assert [] == take(queue)


def test_leases_are_rounded_up(queue, database, name):
    """A lease never ends before the worker thinks so."""
    queue.send("", [job()], 0)
    take(queue, lease=29.1)
    ((_, until, *_),) = rows(database, name)
    assert timedelta(seconds=30) <= until


def test_lanes_are_queues(queue, database, name):
    """What travels in a lane is read from it, and knows where it came from."""
    database.execute("select pgmq.create(%s)", [f"{name}_high"])
    queue.send("_high", [job("urgent", priority=9)], 0)
    assert [] == take(queue)
    (got,) = take(queue, lane="_high")
    assert ("urgent", "_high", name) == (got.data, got.lane, got.queue)
    assert [got.message_id] == settle(queue, "done", got)
    assert [] == rows(database, f"{name}_high")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({1, 2}, "set"),
        (object(), "object"),
        ({"at": timedelta(1)}, "timedelta"),
        ({("a", "b"): 1}, "tuple"),
        (float("nan"), "NaN"),
        ("\ud800", "surrogate"),
    ],
)
def test_what_is_no_json_is_refused(queue, database, name, data, problem):
    """The type is named, and not even its neighbours are sent."""
    with pytest.raises(QueueError, match=problem):
        queue.send("", [job(1), job(data)], 0)
    assert [] == rows(database, name)


def test_a_list_in_itself_is_refused(queue):
    """It has no end, so it is no JSON."""
    data = []
    data.append(data)
    with pytest.raises(QueueError, match="itself"):
        queue.send("", [job(data)], 0)


def test_a_secret_in_what_is_no_json_is_not_told(queue):
    """The error names types, never values."""
    with pytest.raises(QueueError) as refused:
        queue.send("", [job({"password": b"hunter2"})], 0)
    assert "bytes" in str(refused.value)
    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None


# --- settling -------------------------------------------------------------------------------------


def test_done_deletes(queue, database, name):
    """A job that is done is gone; the others stay."""
    queue.send("", [job(1), job(2)], 0)
    first, second = take(queue)
    assert [first.message_id] == settle(queue, "done", first)
    assert [second.message_id] == [row[3] for row in rows(database, name)]


def test_retry_sends_the_job_anew(queue, database, name):
    """Same id, one attempt more, in `delay` seconds; the message is another one."""
    queue.send("", [job({"n": 1}, priority=3, dedupe_key="k")], 0)
    (got,) = take(queue)
    assert [got.message_id] == settle(queue, "retry", got, delay=2.5)
    ((message, delay, reads, message_id),) = rows(database, name)
    ours = message["supabase_resilience"]
    assert {"n": 1} == message["data"]
    assert (got.id, 1, 3, "k") == tuple(
        ours[key] for key in ("id", "attempts", "priority", "dedupe_key")
    )
    assert got.enqueued_at == ours["enqueued_at"]
    assert (3, 0) == (round(delay.total_seconds()), reads)
    assert got.message_id != message_id


def test_postponed_within_the_lease_lets_it_lapse(queue, database, name, local):
    """Nothing is sent: the lease ends in time by itself."""
    queue.send("", [job()], 0)
    (got,) = take(queue)
    before = local.requests(match="/rpc/")
    assert [got.message_id] == settle(queue, "postponed", leased(got), delay=5)
    assert before == local.requests(match="/rpc/")
    assert [(got.message_id, 1)] == [(row[3], row[2]) for row in rows(database, name)]


@pytest.mark.parametrize(("deliveries", "delay"), [(1, 100), (3, 5)])
def test_postponed_otherwise_sends_the_job_anew(queue, database, name, deliveries, delay):
    """Beyond the lease, or before too many deliveries: with as many attempts as before."""
    sent = job("later")
    queue.send("", [sent], 0)
    (got,) = take(queue)
    got.deliveries = deliveries
    assert [got.message_id] == settle(queue, "postponed", leased(got), delay=delay)
    ((message, wait, reads, message_id),) = rows(database, name)
    assert sent.to_message() == message
    assert (delay, 0, True) == (round(wait.total_seconds()), reads, message_id != got.message_id)


def test_dead_becomes_a_letter(queue, database, name):
    """It moves to the queue of dead letters with a note, characters of no use in SQL replaced."""
    queue.send("", [job({"n": 1}, priority=2)], 0)
    (got,) = take(queue)
    assert [got.message_id] == settle(queue, "dead", got, reason="a\0b", traceback="\ud800")
    assert [] == rows(database, name)
    (letter,) = queue.dead_letters(10)
    assert (got.id, {"n": 1}, name, 2, 1) == (
        letter.id,
        letter.data,
        letter.queue,
        letter.priority,
        letter.attempts,
    )
    assert ("a\ufffdb", "ValueError", "?", 1_800_000_000.0) == (
        letter.reason,
        letter.error,
        letter.traceback,
        letter.died_at,
    )


def test_dead_needs_a_letter(queue, database, name):
    """Without one nothing is deleted."""
    queue.send("", [job()], 0)
    (got,) = take(queue)
    with pytest.raises(ValueError, match="letter"):
        queue.exchange("", [Settlement(kind="dead", job=got)], limit=0, oldest=0, lease=30)
    assert 1 == len(rows(database, name))


@pytest.mark.parametrize("kind", ["retry", "dead"])
def test_a_crash_in_between_loses_nothing(queue, database, name, local, kind):
    """The new message is sent before the old one is deleted."""
    queue.send("", [job("dear")], 0)
    (got,) = take(queue)
    local.faults.add(match=DELETE, status=503)
    with pytest.raises(Exception, match="503"):
        settle(queue, kind, got)
    waiting = [*rows(database, name), *rows(database, f"{name}_dead")]
    assert [got.id, got.id] == [row[0]["supabase_resilience"]["id"] for row in waiting]


def test_a_message_that_is_gone_is_settled(queue, database, name):
    """Whoever deleted it: there is nothing left to do."""
    queue.send("", [job()], 0)
    (got,) = take(queue)
    database.execute("select pgmq.delete(%s, %s)", [name, got.message_id])
    assert [got.message_id] == settle(queue, "done", got)


def test_settle_and_take_in_one_exchange(queue):
    """All are settled before new jobs are taken."""
    queue.send("", [job(n) for n in range(4)], 0)
    first, second = take(queue, 2)
    settled = [Settlement(kind="done", job=first), Settlement(kind="retry", job=second)]
    exchange = queue.exchange("", settled, limit=10, oldest=0, lease=30)
    assert [first.message_id, second.message_id] == exchange.settled
    assert [2, 3, 1] == [each.data for each in exchange.jobs]


def test_nothing_to_do_asks_nobody(queue, local):
    """An exchange of nothing costs no request once the server is known."""
    queue.check()
    before = local.requests(match="/rpc/")
    assert Exchange([], []) == queue.exchange("", [], limit=0, oldest=0, lease=30)
    assert before == local.requests(match="/rpc/")


def test_a_lease_cannot_be_extended(queue, database, name):
    """What is ours is what has not run out."""
    queue.send("", [job(), job()], 0)
    first, second = take(queue)
    before = rows(database, name)
    held = queue.extend("", [leased(first), leased(second, -1.0)], 60)
    assert [first.message_id] == held
    assert before == rows(database, name)


# --- dead letters ---------------------------------------------------------------------------------


def bury(queue, *jobs):
    """Send jobs and give up on them."""
    queue.send("", jobs, 0)
    for each in take(queue, len(jobs)):
        settle(queue, "dead", each)


def test_dead_letters_stay_in_sight(queue):
    """The oldest first, as many as asked for, again and again."""
    bury(queue, job(1), job(2), job(3))
    assert [1, 2] == [letter.data for letter in queue.dead_letters(2)]
    assert [1, 2, 3] == [letter.data for letter in queue.dead_letters(10)]


def test_replay_starts_over(queue, database, name):
    """The same id and data, as young as new, all attempts before it; the letter is gone."""
    buried = job("again", priority=4, dedupe_key="k")
    buried.enqueued_at -= 1000
    bury(queue, buried)
    assert queue.replay(buried.id, [])
    assert [] == queue.dead_letters(10)
    (got,) = take(queue)
    assert (buried.id, "again", 4, "k", 1) == (
        got.id,
        got.data,
        got.priority,
        got.dedupe_key,
        got.attempt,
    )
    assert "dead" not in rows(database, name)[0][0]["supabase_resilience"]
    assert buried.enqueued_at + 999 < got.enqueued_at


@pytest.mark.parametrize(("priority", "lane"), [(10, "_high"), (12, "_high"), (5, "_mid"), (4, "")])
def test_replay_goes_to_its_lane(queue, database, name, priority, lane):
    """The first whose threshold the priority reaches, else the queue itself."""
    for suffix in ("_high", "_mid"):
        database.execute("select pgmq.create(%s)", [name + suffix])
    buried = job(priority=priority)
    bury(queue, buried)
    assert queue.replay(buried.id, [(10, "_high"), (5, "_mid")])
    assert [buried.id] == [each.id for each in take(queue, lane=lane)]


def test_replay_one_after_another(queue):
    """A replay hides no other letter from the next one."""
    jobs = [job(n) for n in range(3)]
    bury(queue, *jobs)
    assert [True] * 3 == [queue.replay(each.id, []) for each in reversed(jobs)]
    assert [2, 1, 0] == [each.data for each in take(queue)]


def test_replay_of_an_unknown_one(queue):
    """It is told, and the others stay."""
    bury(queue, job())
    assert not queue.replay("nobody", [])
    assert not queue.replay("", [])


def test_replay_finds_what_is_behind_a_full_page(queue, database, name):
    """The API shows 1,000 rows at once; a letter behind them is found all the same."""
    database.execute(
        "select pgmq.send_batch(%s, array(select to_jsonb(n) from generate_series(1, 1500) n))",
        [f"{name}_dead"],
    )
    buried = job("deep down")
    bury(queue, buried)
    assert queue.replay(buried.id, [])
    assert ["deep down"] == [each.data for each in take(queue)]


def test_replay_takes_the_copies_along(queue, database, name):
    """A crash can leave a letter twice; the job comes back once."""
    buried = job()
    bury(queue, buried)
    (message,) = (row[0] for row in rows(database, f"{name}_dead"))
    database.execute("select pgmq.send(%s, %s::jsonb)", [f"{name}_dead", json.dumps(message)])
    assert queue.replay(buried.id, [])
    assert [] == rows(database, f"{name}_dead")
    assert 1 == len(rows(database, name))


def test_purge_deletes_all_dead_letters(queue, database, name):
    """And tells how many there were; jobs stay."""
    bury(queue, *(job(n) for n in range(3)))
    queue.send("", [job()], 0)
    assert (3, 0) == (queue.purge_dead_letters(), queue.purge_dead_letters())
    assert ([], 1) == (rows(database, f"{name}_dead"), len(rows(database, name)))


def test_metrics_are_not_known(queue, name):
    """None of the six functions tells them."""
    expected = QueueMetrics(queue=name, ready=None, delayed=None, oldest_age=None, dead=None)
    assert expected == queue.metrics()


# --- check and create -----------------------------------------------------------------------------


def test_check_finds_stock_mode(queue, database, name):
    """Nothing but what every project has; and nothing is taken."""
    queue.send("", [job()], 0)
    assert Abilities() == queue.check()
    assert [0] == [row[2] for row in rows(database, name)]


def test_check_tells_the_sql_for_all_that_is_missing(world, client, database, name):
    """Queue, lanes, dead letters: the SQL that is told makes them all."""
    new = f"{name}_new"
    queue = world.queue(client, new)
    with pytest.raises(QueueError) as refused:
        queue.check(["_high", ""])
    for missing in (new, f"{new}_high", f"{new}_dead"):
        assert f"select pgmq.create('{missing}');" in str(refused.value)
    database.execute(sql_of(refused.value))
    assert Abilities() == queue.check(["_high", ""])


def test_create_needs_the_migration(world, client, database, name):
    """No key may make queues, so the SQL is told; there is nothing to do when it was run."""
    queue = world.queue(client, f"{name}_new")
    with pytest.raises(QueueError) as refused:
        queue.create()
    database.execute(sql_of(refused.value))
    queue.create()


# --- identity -------------------------------------------------------------------------------------


def test_signing_in_on_the_client_changes_nothing(world, client, queue, local):
    """A user's session on the shared client would have none of the queue's rights."""
    queue.send("", [job()], 0)
    email = f"{job().id}@example.test"
    world.run(client.auth.sign_up({"email": email, "password": "long enough"}))
    (got,) = take(queue)
    assert [got.message_id] == settle(queue, "done", got)


def test_a_key_may_not_be_enough(world, local, name):
    """The publishable key's role has no rights on queues; the error says which key has."""
    queue = world.queue(world.client(local, local.publishable_key), name)
    with pytest.raises(QueueError, match="secret key"):
        queue.check()


def test_a_token_replaces_the_key(world, local, name):
    """It goes with each request instead of the client's key, also through a function."""
    secret, anon = local.jwt(role="service_role"), local.jwt(role="anon")
    client = world.client(local, local.publishable_key)
    world.queue(client, name, token=secret).check()
    tokens = [anon, secret]
    queue = world.queue(client, name, token=lambda: tokens[-1])
    queue.check()
    tokens.append(anon)
    with pytest.raises(QueueError):
        queue.check()


def test_the_identity_of_as_user_is_kept(world, local, name):
    """Who was pinned before the queue was made is not given the client's own rights."""
    client = protect(world.client(local)).as_user(local.jwt(role="anon"))
    with pytest.raises(QueueError, match="secret key"):
        world.queue(client, name).check()


@pytest.mark.parametrize("wrong", [None, "https://project.supabase.co", object()])
def test_no_client(wrong):
    """The error names what is wanted."""
    for cls, wanted in ((SupabaseQueue, "Client"), (AsyncSupabaseQueue, "AsyncClient")):
        with pytest.raises(TypeError, match=f"must be a supabase {wanted}, got"):
            cls(wrong, "jobs")


def test_the_client_of_the_other_colour(world, client):
    """The error says which class to use."""
    other = AsyncWorld if isinstance(world, SyncWorld) else SyncWorld
    with pytest.raises(TypeError, match=f"use {world.queue_class.__name__} for it"):
        other.queue_class(client, "jobs")


@pytest.mark.parametrize("wrong", ["", "a" * 43, "é" * 22, "a;b", "a$b", "a--b", "a'b", "a\0b"])
def test_a_name_that_pgmq_refuses(world, client, wrong):
    """Told when the queue is made, before anything is lost."""
    with pytest.raises(ValueError, match="name"):
        world.queue(client, wrong)


def test_the_longest_name_works(world, client, database):
    """42 bytes, and five for the dead letters; odd characters are quoted."""
    longest = 'An "odd" né'.ljust(41, "x")
    for queue_name in (longest, f"{longest}_dead"):
        database.execute("select pgmq.create(%s)", [queue_name])
    queue = world.queue(client, longest)
    assert Abilities() == queue.check()
    bury(queue, job("odd"))
    assert ["odd"] == [letter.data for letter in queue.dead_letters(1)]


@pytest.mark.parametrize("token", ["", 7])
def test_no_token(world, client, token):
    """A token that is none is refused."""
    with pytest.raises((TypeError, ValueError), match="token"):
        world.queue(client, "jobs", token=token)


def test_repr_tells_no_key(queue, local, name):
    """The name is enough."""
    assert f"{type(queue.store).__name__} {name!r}" in repr(queue.store)
    assert local.secret_key not in repr(queue.store)


# --- with a client that repeats -------------------------------------------------------------------


@pytest.fixture
def repeating(world, client, name):
    """The queue, for a protected client that tries up to three times."""
    patient = CircuitBreaker(failure_threshold=1000)
    queue = world.queue(protect(client, breaker=patient, retry=RetryConfig(wait_max=0.01)), name)
    queue.check()
    return queue


def test_reads_and_acks_are_repeated(repeating, local, database, name):
    """A lost answer is asked for again: that costs nothing but time."""
    repeating.send("", [job(1), job(2)], 0)
    local.faults.add(match=READ, drop="before")
    first, second = take(repeating)
    local.faults.add(match=DELETE, drop="after")
    assert [first.message_id] == settle(repeating, "done", first)
    local.faults.add(match=SEND, drop="after")
    assert [second.message_id] == settle(repeating, "retry", second)
    # The copy was sent twice, with the same id: a duplicate, and no loss.
    assert {second.id} == {row[0]["supabase_resilience"]["id"] for row in rows(database, name)}


def test_an_enqueue_is_not_repeated(repeating, local, database, name):
    """A lost answer may mean that it was sent; only its caller knows whether twice is harmless."""
    local.faults.add(match=SEND, drop="after")
    with pytest.raises(Exception, match="disconnected"):
        repeating.send("", [job()], 0)
    assert 1 == len(rows(database, name))
    local.faults.add(match=SEND, drop="after")
    with idempotent():
        repeating.send("", [job()], 0)
    assert 3 == len(rows(database, name))


def test_an_unprotected_client_is_not_repeated_for(queue, local):
    """Without protect() each call is made once."""
    queue.check()
    fault = local.faults.add(match=READ, drop="before", times=None)
    with pytest.raises(Exception, match="disconnected"):
        take(queue)
    assert 1 == fault.count


def test_letters_keep_their_envelope(queue, database, name):
    """A letter is the job's own envelope and the note beside it."""
    sent = job({"n": 1})
    bury(queue, sent)
    ((message, *_),) = rows(database, f"{name}_dead")
    assert sent.to_message(attempts=1, dead=letter_for(sent).note()) == message
