"""SupabaseQueue with our migration, with four versions of pgmq."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from supabase_resilience import CircuitBreaker, RetryConfig, protect
from supabase_resilience.errors import QueueError
from supabase_resilience.queues._jobs import ENVELOPE, QueueMetrics, Settlement
from supabase_resilience.queues._migrated import VERSION
from supabase_resilience.queues._store import Abilities, Exchange

from .worlds import (
    MIGRATION,
    REMOVAL,
    SyncWorld,
    job,
    letter_for,
    migrate,
    rows,
    settle,
    sql_of,
    take,
)

EXCHANGE = "/rpc/supabase_resilience_queue_exchange"
SEND = "/rpc/supabase_resilience_queue_send"


@pytest.fixture(scope="module", autouse=True)
def _migrated(local):
    """The whole module has the migration."""
    migrate(local, MIGRATION)


@pytest.fixture
def queue(world, client, name):
    """The queue with its index of priorities."""
    queue = world.queue(client, name)
    queue.create()
    return queue


def ours(database, name):
    """Our part of each envelope."""
    return [row[0][ENVELOPE] for row in rows(database, name)]


def lapse(database, name):
    """Let all leases and delays end."""
    database.execute(f'update pgmq."q_{name}" set vt = now()')


# --- check and create -----------------------------------------------------------------------------


def test_check_finds_the_migration(queue):
    """One that was prepared goes by priority; and pgmq_public is not asked."""
    assert Abilities(is_migrated=True, has_priority=True) == queue.check()


def test_check_of_a_queue_that_was_not_prepared(world, client, name):
    """Without the index there is no priority."""
    queue = world.queue(client, name)
    assert Abilities(is_migrated=True) == queue.check()
    queue.create()
    assert Abilities(is_migrated=True, has_priority=True) == queue.check()


def test_check_tells_the_sql_for_all_that_is_missing(world, client, database, name):
    """It makes queue, lanes and dead letters, priorities included."""
    queue = world.queue(client, f"{name}_new")
    with pytest.raises(QueueError) as refused:
        queue.check(["_high", ""])
    database.execute(sql_of(refused.value))
    assert Abilities(is_migrated=True, has_priority=True) == queue.check(["_high", ""])


def test_create_makes_all_that_is_missing(world, client, database, name):
    """Closed by row level security; a second time changes nothing."""
    queue = world.queue(client, f"{name}_Very New")
    for _ in range(2):
        queue.create(["_high"])
    assert Abilities(is_migrated=True, has_priority=True) == queue.check(["_high"])
    query = """select relname from pg_class where relrowsecurity and relkind = 'r'
        and relname like %s order by 1"""
    made = {row[0] for row in database.execute(query, [f"_\\_{name}\\_very new%"])}
    queues = ("", "_dead", "_high")
    assert {f"{kind}_{name}_very new{each}" for kind in "aq" for each in queues} == made


def test_an_outdated_migration_is_not_used(world, client, name, database):
    """It is told, and stock mode does the work."""
    database.execute(
        MIGRATION[
            MIGRATION.index("create or replace function public.supabase_resilience_queue_check") :
        ]
        .split("end $$;")[0]
        .replace(f"'version', {VERSION}", "'version', 0")
        + "end $$"
    )
    try:
        queue = world.queue(client, name)
        assert Abilities(outdated_version=0) == queue.check()
        queue.send("", [job("works")], 0)
        assert ["works"] == [each.data for each in take(queue)]
    finally:
        database.execute(MIGRATION.encode())


def test_a_key_that_may_not_use_it_falls_back(world, local, database, name):
    """A producer with rights on the table sends in stock mode."""
    database.execute(f'grant select, insert on pgmq."q_{name}" to anon')
    queue = world.queue(world.client(local, local.publishable_key), name)
    sent = job("from afar")
    assert [sent.id] == queue.send("", [sent], 0)
    assert [sent.to_message()] == [row[0] for row in rows(database, name)]


def test_a_producer_may_send_to_a_prepared_queue(world, local, queue, database, name):
    """The index of priorities asks no rights of those who only add messages."""
    database.execute(f'grant select, insert on pgmq."q_{name}" to anon')
    producer = world.queue(world.client(local, local.publishable_key), name)
    producer.send("", [job("low"), job("high", priority=5)], 0)
    assert ["high", "low"] == [each.data for each in take(queue)]


# --- sending --------------------------------------------------------------------------------------


def test_many_are_sent_at_once(queue, local):
    """One call for all; their order is kept."""
    jobs = [job(n) for n in range(50)]
    before = local.requests(match="/rpc/")
    assert [each.id for each in jobs] == queue.send("", jobs, 0)
    assert 1 == local.requests(match="/rpc/") - before
    assert list(range(50)) == [each.data for each in take(queue, 50)]
    assert [] == queue.send("", [], 0)


def test_delays_have_fractions(queue, database, name):
    """Nobody waits for the next whole second."""
    queue.send("", [job()], 0.25)
    ((_, delay, *_),) = rows(database, name)
    assert 0.25 == pytest.approx(delay.total_seconds(), abs=0.1)


def test_a_dedupe_key_belongs_to_one_job(queue, database, name):
    """While it waits or runs another one with the key is not added; the first one's id is told."""
    first, second, other = job(1, dedupe_key="k"), job(2, dedupe_key="k"), job(3, dedupe_key="K")
    assert [first.id] == queue.send("", [first], 0)
    assert [first.id, other.id] == queue.send("", [second, other], 0)
    assert [1, 3] == [each.data for each in take(queue)]
    assert [first.id] == queue.send("", [second], 0)
    assert 2 == len(rows(database, name))


def test_a_dedupe_key_twice_in_one_batch(queue):
    """The first of them wins."""
    first, free, second = job(1, dedupe_key="k"), job(2), job(3, dedupe_key="k")
    assert [first.id, free.id, first.id] == queue.send("", [first, free, second], 0)
    assert [1, 2] == [each.data for each in take(queue)]


@pytest.mark.parametrize("kind", ["done", "dead"])
def test_a_key_is_free_again(queue, kind):
    """Once its job is over, or dead, the next one may come."""
    queue.send("", [job(1, dedupe_key="k")], 0)
    (got,) = take(queue)
    settle(queue, kind, got)
    second = job(2, dedupe_key="k")
    assert [second.id] == queue.send("", [second], 0)
    assert [2] == [each.data for each in take(queue)]


@pytest.mark.parametrize("kind", ["retry", "postponed"])
def test_a_key_is_kept_until_then(queue, database, name, kind):
    """A job that comes again keeps its key."""
    first = job(1, dedupe_key="k")
    queue.send("", [first], 0)
    (got,) = take(queue)
    settle(queue, kind, got)
    assert [first.id] == queue.send("", [job(2, dedupe_key="k")], 0)
    assert 1 == len(rows(database, name))


def test_a_stale_key_is_taken_over(queue, database, name):
    """Its message was deleted by somebody else, or is another one by now."""
    queue.send("", [job(1, dedupe_key="k"), job(2, dedupe_key="other")], 0)
    database.execute(f'delete from pgmq."q_{name}"')
    database.execute(f'alter table pgmq."q_{name}" alter msg_id restart')
    queue.send("", [job("unrelated")], 0)
    fresh = [job(3, dedupe_key="k"), job(4, dedupe_key="other")]
    assert [each.id for each in fresh] == queue.send("", fresh, 0)
    assert [fresh[0].id] == queue.send("", [job(5, dedupe_key="k")], 0)
    assert ["unrelated", 3, 4] == [each.data for each in take(queue)]


def test_keys_of_other_queues_do_not_matter(world, client, queue, name):
    """Each queue has its own."""
    other = world.queue(client, f"{name}_b")
    other.create()
    for each in (queue, other):
        sent = job(dedupe_key="k")
        assert [sent.id] == each.send("", [sent], 0)


def test_a_key_too_long_for_an_index(queue, database, name):
    """Refused before anything is sent."""
    with pytest.raises(QueueError, match="1000 bytes"):
        queue.send("", [job(dedupe_key="é" * 501)], 0)
    queue.send("", [job(dedupe_key="é" * 500)], 0)
    assert 1 == len(rows(database, name))


def test_many_send_the_same_keys_at_once(local, database, name):
    """One job for each key, whatever the order they come in; nobody fails."""
    world, start = SyncWorld(), threading.Barrier(8)
    store = world.queue(world.client(local), name).store
    store.create()
    keys = [f"k{n}" for n in range(20)]

    def send(number):
        jobs = [job(key, dedupe_key=key) for key in (keys if number % 2 else keys[::-1])]
        start.wait()
        return dict(zip((each.data for each in jobs), store.send("", jobs, 0), strict=True))

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(8)))
    world.close()
    assert [answers[0]] * 8 == answers
    assert sorted(answers[0].values()) == sorted(each["id"] for each in ours(database, name))


def test_sends_and_acks_of_the_same_keys_at_once(local, database, name):
    """Whoever sends and whoever acks meet at the keys: no deadlock, and each key once at most."""
    world = SyncWorld()
    store = world.queue(world.client(local), name).store
    store.create()
    keys = [f"k{n}" for n in range(10)]

    def produce(number):
        for _ in range(10):
            jobs = [job(key, dedupe_key=key) for key in (keys if number % 2 else keys[::-1])]
            store.send("", jobs, 0)

    def consume(_):
        for _ in range(20):
            jobs = store.exchange("", [], limit=7, oldest=0, lease=30).jobs
            settled = [Settlement(kind="done", job=each) for each in reversed(jobs)]
            store.exchange("", settled, limit=0, oldest=0, lease=30)

    with ThreadPoolExecutor(6) as pool:
        work = [pool.submit(produce, n) for n in range(3)] + [
            pool.submit(consume, n) for n in range(3)
        ]
    world.close()
    assert [None] * 6 == [each.exception() for each in work]
    waiting = [each["dedupe_key"] for each in ours(database, name)]
    assert len(set(waiting)) == len(waiting)


# --- settling -------------------------------------------------------------------------------------


def test_all_kinds_and_a_read_in_one_call(queue, database, name, local):
    """One request settles four jobs and takes the next."""
    queue.send("", [job(n) for n in range(5)], 0)
    done, retry, postponed, dead = take(queue, 4)
    settled = [
        Settlement(kind="done", job=done),
        Settlement(kind="retry", job=retry, delay=60),
        Settlement(kind="postponed", job=postponed, delay=0.5),
        Settlement(kind="dead", job=dead, letter=letter_for(dead)),
    ]
    before = local.requests(match="/rpc/")
    exchange = queue.exchange("", settled, limit=4, oldest=0, lease=30)
    assert 1 == local.requests(match="/rpc/") - before
    assert {each.job.message_id for each in settled} == set(exchange.settled)
    assert [4] == [each.data for each in exchange.jobs]
    assert [1, 2, 4] == [row[0]["data"] for row in rows(database, name)]
    assert [dead.id] == [letter.id for letter in queue.dead_letters(10)]


@pytest.mark.parametrize(("kind", "attempt"), [("retry", 2), ("postponed", 1)])
def test_a_job_that_comes_again_stays_in_place(queue, database, name, kind, attempt):
    """The same message later; its deliveries so far are not counted as lost."""
    sent = job({"n": 1.0}, priority=3, dedupe_key="k")
    queue.send("", [sent], 0)
    (got,) = take(queue)
    assert [got.message_id] == settle(queue, kind, got, delay=60.5)
    ((message, delay, reads, message_id),) = rows(database, name)
    spent = {"attempts": 1} if kind == "retry" else {}
    assert {**sent.to_message()[ENVELOPE], "outlived": 1, **spent} == message[ENVELOPE]
    assert ({"n": 1.0}, 1, got.message_id) == (message["data"], reads, message_id)
    assert 60.5 == pytest.approx(delay.total_seconds(), abs=0.5)
    lapse(database, name)
    (again,) = take(queue)
    assert (sent.id, attempt, 2, 0) == (again.id, again.attempt, again.deliveries, again.lost)


def test_a_lapsed_lease_counts_as_lost(queue, database, name):
    """A delivery that nobody settled."""
    queue.send("", [job()], 0)
    take(queue)
    lapse(database, name)
    (again,) = take(queue)
    assert (2, 1) == (again.deliveries, again.lost)


@pytest.mark.parametrize("kind", ["done", "retry", "postponed", "dead"])
def test_a_late_settlement_changes_nothing(queue, database, name, kind):
    """Its lease had ended and somebody else has the job: their fence holds."""
    queue.send("", [job("contested")], 0)
    (late,) = take(queue)
    lapse(database, name)
    (current,) = take(queue)
    before = rows(database, name)
    assert [] == settle(queue, kind, late, delay=100)
    assert before == rows(database, name)
    assert [] == queue.dead_letters(10)
    assert [current.message_id] == settle(queue, "done", current)


def test_a_late_settlement_frees_no_key(queue, database, name):
    """The job that has the key is still at it."""
    first = job(dedupe_key="k")
    queue.send("", [first], 0)
    (late,) = take(queue)
    lapse(database, name)
    take(queue)
    settle(queue, "done", late)
    assert [first.id] == queue.send("", [job(dedupe_key="k")], 0)


def test_nothing_to_do_asks_nobody(queue, local):
    """An exchange of nothing costs no request."""
    before = local.requests(match="/rpc/")
    assert Exchange([], []) == queue.exchange("", [], limit=0, oldest=0, lease=30)
    assert before == local.requests(match="/rpc/")


def test_a_message_of_somebody_else(queue, database, name):
    """It gets an envelope when it comes again, and its payload stays what it was."""
    database.execute("select pgmq.send(%s, %s::jsonb)", [name, '{"big": 1e400}'])
    query = f"select message->'data'->>'big' = (1e400::numeric)::text from pgmq.\"q_{name}\""
    (got,) = take(queue)
    assert [got.message_id] == settle(queue, "retry", got)
    assert (True,) == database.execute(query).fetchone()
    (again,) = take(queue)
    assert (got.id, 2) == (again.id, again.attempt)
    assert [again.message_id] == settle(queue, "dead", again)
    assert [(got.id, 2)] == [(letter.id, letter.attempts) for letter in queue.dead_letters(1)]


def test_letters_hold_what_postgres_refuses(queue):
    """Characters of no use in SQL are replaced; the letter is kept."""
    queue.send("", [job()], 0)
    (got,) = take(queue)
    assert [got.message_id] == settle(queue, "dead", got, reason="a\0b", traceback="\ud800")
    (letter,) = queue.dead_letters(1)
    assert ("a\ufffdb", "?") == (letter.reason, letter.traceback)


def test_without_the_queue_of_dead_letters_nothing_is_lost(queue, database, name):
    """The whole exchange is refused, and the error says what is missing."""
    queue.send("", [job()], 0)
    (got,) = take(queue)
    database.execute(f'drop table pgmq."q_{name}_dead"')
    with pytest.raises(QueueError, match=f"{name}_dead"):
        settle(queue, "dead", got)
    assert [got.message_id] == [row[3] for row in rows(database, name)]


def test_a_heartbeat_extends_what_is_still_ours(queue, database, name):
    """Those of another fence stay as they are."""
    queue.send("", [job(1), job(2)], 0)
    lost, kept = take(queue)
    database.execute(f'update pgmq."q_{name}" set read_ct = 2 where msg_id = %s', [lost.message_id])
    before = {row[3]: row[1] for row in rows(database, name)}
    assert [kept.message_id] == queue.extend("", [lost, kept], 120.5)
    after = {row[3]: row[1] for row in rows(database, name)}
    assert before[lost.message_id] == after[lost.message_id]
    assert 90 < (after[kept.message_id] - before[kept.message_id]).total_seconds() < 100
    assert [] == queue.extend("", [], 30)


# --- order ----------------------------------------------------------------------------------------


def test_the_most_urgent_first(queue):
    """By priority, then by age; negative ones last."""
    priorities = [0, 5, -1, 9, 5]
    queue.send("", [job(n, priority=priority) for n, priority in enumerate(priorities)], 0)
    assert [3, 1] == [each.data for each in take(queue, 2)]
    assert [4, 0, 2] == [each.data for each in take(queue, 5)]


def test_a_share_for_the_oldest(queue):
    """`oldest` of those taken go by age, so that nothing waits for ever."""
    queue.send("", [job("old")], 0)
    queue.send("", [job(n, priority=9) for n in range(6)], 0)
    assert [0, 1, "old"] == [each.data for each in take(queue, 3, oldest=1)]
    assert [2, 3] == [each.data for each in take(queue, 2, oldest=2)]
    assert [4, 5] == [each.data for each in take(queue, 5, oldest=2)]


def test_without_the_index_by_age(world, client, name):
    """A queue that was not prepared is read as ever."""
    queue = world.queue(client, name)
    queue.check()
    queue.send("", [job(0), job(1, priority=9)], 0)
    assert [0] == [each.data for each in take(queue, 1)]


def test_two_readers_get_different_jobs(queue, database, name):
    """What another transaction is about to take is skipped, not waited for."""
    queue.send("", [job(n) for n in range(4)], 0)
    with database.transaction():
        query = f'select msg_id from pgmq."q_{name}" order by msg_id limit 2 for update'
        database.execute(query)
        assert [2, 3] == [each.data for each in take(queue)]
    assert [0, 1] == [each.data for each in take(queue)]


# --- dead letters ---------------------------------------------------------------------------------


def bury(queue, *jobs):
    """Send jobs and give up on them."""
    queue.send("", jobs, 0)
    for each in take(queue, len(jobs)):
        settle(queue, "dead", each)


def test_dead_letters_oldest_first(queue, database, name):
    """As many as asked for; looking changes nothing."""
    bury(queue, job(1), job(2), job(3))
    assert [1, 2] == [letter.data for letter in queue.dead_letters(2)]
    assert [0] * 3 == [row[2] for row in rows(database, f"{name}_dead")]


def test_replay_starts_over(queue, database, name):
    """The same id and data, as young as new, all attempts before it; the letter is gone."""
    buried = job("again", priority=4)
    buried.enqueued_at -= 1000
    bury(queue, buried)
    assert queue.replay(buried.id, [])
    assert [] == queue.dead_letters(10)
    (envelope,) = ours(database, name)
    assert {"id", "priority", "enqueued_at"} == envelope.keys()
    assert (buried.id, 4) == (envelope["id"], envelope["priority"])
    assert buried.enqueued_at + 999 < envelope["enqueued_at"]


@pytest.mark.parametrize(("priority", "lane"), [(10, "_high"), (12, "_high"), (5, "_mid"), (4, "")])
def test_replay_goes_to_its_lane(queue, priority, lane):
    """The first whose threshold the priority reaches, else the queue itself."""
    queue.create(["_high", "_mid"])
    buried = job(priority=priority)
    bury(queue, buried)
    assert queue.replay(buried.id, [(10, "_high"), (5, "_mid")])
    assert [buried.id] == [each.id for each in take(queue, lane=lane)]


def test_replay_of_an_unknown_one(queue):
    """It is told, and the others stay."""
    bury(queue, job())
    assert not queue.replay("nobody", [])
    assert 1 == len(queue.dead_letters(10))


def test_replay_takes_the_copies_along(queue, database, name):
    """Letters of stock mode may be there twice; the job comes back once."""
    buried = job()
    bury(queue, buried)
    table = f'pgmq."q_{name}_dead"'
    database.execute(f"insert into {table} (vt, message) select vt, message from {table}")
    assert queue.replay(buried.id, [])
    assert ([], 1) == (rows(database, f"{name}_dead"), len(rows(database, name)))


def test_replay_of_a_message_of_somebody_else(queue, database, name):
    """Its id is made of its place among the letters."""
    database.execute("select pgmq.send(%s, '[1]')", [f"{name}_dead"])
    (letter,) = queue.dead_letters(1)
    assert queue.replay(letter.id, [])
    assert [[1]] == [each.data for each in take(queue)]


def test_replay_claims_its_key_again(queue):
    """Unless another job has it by now: both are wanted then."""
    first, second = job(1, dedupe_key="k"), job(2, dedupe_key="k")
    bury(queue, first)
    assert queue.replay(first.id, [])
    assert [first.id] == queue.send("", [second], 0)
    (got,) = take(queue)
    settle(queue, "dead", got)
    queue.send("", [second], 0)
    assert queue.replay(first.id, [])
    for each in take(queue):
        if each.id == first.id:
            settle(queue, "done", each)
    assert [second.id] == queue.send("", [job(3, dedupe_key="k")], 0)


def test_purge_deletes_all_dead_letters(queue, database, name):
    """And tells how many there were; jobs stay."""
    bury(queue, *(job(n) for n in range(3)))
    queue.send("", [job()], 0)
    assert (3, 0) == (queue.purge_dead_letters(), queue.purge_dead_letters())
    assert ([], 1) == (rows(database, f"{name}_dead"), len(rows(database, name)))


# --- metrics --------------------------------------------------------------------------------------


def test_metrics_of_an_empty_queue(queue, name):
    """Nothing waits, so nothing has an age."""
    expected = QueueMetrics(queue=name, ready=0, delayed=0, oldest_age=None, dead=0)
    assert expected == queue.metrics()


def test_metrics_sum_up_queue_and_lanes(queue, database, name):
    """The age is that of the longest wait of a ready job; a delayed one has not waited yet."""
    queue.create(["_high"])
    bury(queue, job(), job())
    queue.send("", [job(), job()], 0)
    queue.send("", [job()], 1000)
    queue.send("_high", [job(), job(), job()], 0)
    take(queue, 1, lane="_high")
    earlier = "vt = vt - interval '50 s', enqueued_at = now() - interval '1 h'"
    database.execute(f'update pgmq."q_{name}" set {earlier}')
    for lanes in (["_high"], ["_high", ""]):
        metrics = queue.metrics(lanes)
        assert (4, 2, 2) == (metrics.ready, metrics.delayed, metrics.dead)
        assert 50 == pytest.approx(metrics.oldest_age, abs=10)


# --- when answers get lost ------------------------------------------------------------------------


@pytest.fixture
def repeating(world, client, queue, name):
    """The queue, for a protected client that tries up to three times."""
    patient = CircuitBreaker(failure_threshold=1000)
    made = world.queue(protect(client, breaker=patient, retry=RetryConfig(wait_max=0.01)), name)
    made.check()
    return made


def test_a_repeated_exchange_settles_once(repeating, local, database, name):
    """The first try was carried out: the second finds nothing to settle and takes the next jobs."""
    repeating.send("", [job("dead"), job(1), job(2)], 0)
    (got,) = take(repeating, 1)
    local.faults.add(match=EXCHANGE, drop="after")
    settled = [Settlement(kind="dead", job=got, letter=letter_for(got))]
    exchange = repeating.exchange("", settled, limit=1, oldest=0, lease=30)
    assert ([], [2]) == ([*exchange.settled], [each.data for each in exchange.jobs])
    assert 1 == len(repeating.dead_letters(10))
    assert [1, 1] == [row[2] for row in rows(database, name)]


def test_a_repeated_retry_is_settled_twice(repeating, local, database, name):
    """It moves the same message to the same time."""
    repeating.send("", [job()], 0)
    (got,) = take(repeating)
    local.faults.add(match=EXCHANGE, drop="after")
    assert [got.message_id] == settle(repeating, "retry", got, delay=60)
    assert [1] == [each["attempts"] for each in ours(database, name)]


def test_an_enqueue_with_keys_is_repeated(repeating, local, database, name):
    """With a key on each job twice is as good as once; with one left out it is not."""
    sent = [job(1, dedupe_key="a"), job(2, dedupe_key="b")]
    local.faults.add(match=SEND, drop="after")
    assert [each.id for each in sent] == repeating.send("", sent, 0)
    assert 2 == len(rows(database, name))
    local.faults.add(match=SEND, drop="after")
    with pytest.raises(Exception, match="disconnected"):
        repeating.send("", [job(3, dedupe_key="c"), job(4)], 0)
    assert 4 == len(rows(database, name))


def test_the_same_exchange_twice_at_once(local, database, name):
    """A retried request may overtake its first try: they wait for each other in one order."""
    world = SyncWorld()
    store = world.queue(world.client(local), name).store
    store.create()
    store.send("", [job(n, dedupe_key=str(n)) for n in range(50)], 0)
    jobs = store.exchange("", [], limit=50, oldest=0, lease=30).jobs
    orders = [jobs, jobs[::-1], jobs[25:] + jobs[:25], jobs]
    start = threading.Barrier(len(orders))

    def ack(order):
        settled = [Settlement(kind="done", job=each) for each in order]
        start.wait()
        return store.exchange("", settled, limit=0, oldest=0, lease=30).settled

    with ThreadPoolExecutor(len(orders)) as pool:
        settled = [number for answer in pool.map(ack, orders) for number in answer]
    world.close()
    assert sorted(each.message_id for each in jobs) == sorted(settled)
    assert [] == rows(database, name)


# --- when the migration goes away -----------------------------------------------------------------


def test_a_migration_that_was_removed(queue, local, database):
    """A worker that runs is told what to do; a new one goes on in stock mode."""
    queue.send("", [job("kept")], 0)
    migrate(local, REMOVAL)
    try:
        with pytest.raises(QueueError, match="sql queue"):
            take(queue)
        assert Abilities() == queue.check()
        assert ["kept"] == [each.data for each in take(queue)]
    finally:
        migrate(local, MIGRATION)
