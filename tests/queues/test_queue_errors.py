"""What can be wrong with a queue, told by the real thing, with the SQL that sets it right."""

from contextlib import contextmanager

import pytest
from postgrest.exceptions import APIError

from supabase_resilience import CircuitBreaker, CircuitOpenError, classify, protect
from supabase_resilience.errors import QueueError
from supabase_resilience.local import LocalSupabase
from supabase_resilience.queues._jobs import Job
from supabase_resilience.queues._queue_errors import explained, missing_queues
from supabase_resilience.queues._rpc import message_of
from supabase_resilience.queues._store import Abilities

from .worlds import MIGRATION, job, migrate, sql_of, take


@pytest.fixture(scope="module")
def local(pgmq_sql):
    """One version is enough: the words are PostgreSQL's and PostgREST's."""
    with LocalSupabase(pgmq_sql=pgmq_sql("installed")) as stack:
        yield stack


@contextmanager
def altered(local, database, sql, back):
    """Something is wrong with the database for a while."""
    database.execute(sql)
    local.rest.reload()
    try:
        yield
    finally:
        database.execute(back)
        local.rest.reload()


def refusal(call, *given, **named):
    """The error of a call, which comes from that of PostgREST."""
    with pytest.raises(QueueError) as refused:
        call(*given, **named)
    return refused.value


# --- a queue that is not there --------------------------------------------------------------------


def test_a_queue_that_does_not_exist(world, client, database, name):
    """Sending, taking, and looking at dead letters all tell how to make it."""
    queue = world.queue(client, f"{name}_new")
    for error in (
        refusal(queue.check),
        refusal(queue.send, "", [job()], 0),
        refusal(queue.send, "", [job(), job()], 0),
        refusal(take, queue),
    ):
        assert f"select pgmq.create('{name}_new');" in sql_of(error)
    error = refusal(queue.dead_letters, 1)
    assert f"select pgmq.create('{name}_new_dead');" == sql_of(error)
    assert isinstance(error.__cause__, APIError)
    error = refusal(queue.send, "_Low", [job()], 0)
    assert f"select pgmq.create('{name}_new_Low');" == sql_of(error)


def test_pgmq_that_is_not_there(world, client, database, name, local):
    """Nobody has switched on Queues."""
    with altered(local, database, "alter schema pgmq rename to x", "alter schema x rename to pgmq"):
        error = refusal(world.queue(client, name).check)
    assert "create extension if not exists pgmq;" == sql_of(error)


@pytest.mark.parametrize("lane", ["_dead", "_DEAD", "x" * 40, "é" * 24, "a;b"])
def test_a_lane_that_pgmq_refuses(queue, name, lane):
    """Its name is told."""
    assert f"{name}{lane}" in str(refusal(queue.check, [lane]))


# --- an API that does not serve it ----------------------------------------------------------------


def test_a_schema_that_is_not_exposed(world):
    """The dashboard's switch, the setting of PostgREST, or the migration, which then works."""
    schema = "select pgmq.create('jobs'); select pgmq.create('jobs_dead')"
    with LocalSupabase(schema=schema, schemas=("public",)) as closed:
        queue = world.queue(world.client(closed), "jobs")
        for error in (refusal(queue.check), refusal(queue.send, "", [job()], 0)):
            assert "Expose Queues" in str(error)
            assert "pgrst.db_schemas" in sql_of(error)
            assert "sql queue" in str(error)
        migrate(closed, MIGRATION)
        assert Abilities(is_migrated=True) == queue.check()
        queue.send("", [job("served")], 0)
        assert ["served"] == [each.data for each in take(queue)]


def test_functions_that_are_missing(queue, database, local):
    """An old or half-made pgmq_public."""
    rename = "alter function pgmq_public.read rename to {}"
    gone = "alter function pgmq_public.gone(text, integer, integer) rename to read"
    with altered(local, database, rename.format("gone"), gone):
        error = refusal(queue.check)
    assert "pgmq_public.read" in str(error)
    assert "Expose Queues" in str(error)
    assert isinstance(error.__cause__, APIError)


# --- rights ---------------------------------------------------------------------------------------


def granted(database, error):
    """Do what an error says; it must be allowed to whoever owns the queues."""
    database.execute(sql_of(error))


@pytest.mark.parametrize(
    ("taken", "given"),
    [
        ("all on pgmq.q_{name} from", "all on pgmq.q_{name} to"),
        ("all on pgmq.q_{name}_dead from", "all on pgmq.q_{name}_dead to"),
        ("usage on schema pgmq from", "usage on schema pgmq to"),
        ("usage on schema pgmq_public from", "usage on schema pgmq_public to"),
    ],
)
def test_a_right_that_is_missing(queue, database, name, taken, given):
    """The grant that is told is the one that was missing."""
    database.execute(f"revoke {taken.format(name=name)} service_role")
    try:
        error = refusal(queue.check)
        assert "secret key" in str(error)
        granted(database, error)
        assert Abilities() == queue.check()
    finally:
        database.execute(f"grant {given.format(name=name)} service_role")


def test_a_function_that_may_not_be_called(queue, database, local):
    """The grants cover pgmq_public and what it calls."""
    function = "pgmq_public.read(text, integer, integer)"
    database.execute(f"revoke execute on function {function} from public, service_role")
    error = refusal(queue.check)
    granted(database, error)
    assert Abilities() == queue.check()


def test_row_level_security(world, local, database, name):
    """A policy for those who send, which works; or the secret key."""
    database.execute(f"alter table pgmq.q_{name} enable row level security")
    database.execute(f"grant select, insert on pgmq.q_{name} to authenticated")
    client = world.client(local, local.publishable_key)
    queue = world.queue(client, name, token=local.jwt(sub=None))
    error = refusal(queue.send, "", [job()], 0)
    assert "row level security" in str(error)
    assert "secret key" in str(error)
    granted(database, error)
    sent = job()
    assert [sent.id] == queue.send("", [sent], 0)


# --- data -----------------------------------------------------------------------------------------


def test_a_nul_in_the_data(queue, database, name):
    """PostgreSQL has no place for it; the value is not told, and nothing was sent."""
    error = refusal(queue.send, "", [job("fine"), job({"text": "secret\0"})], 0)
    assert "\\u0000" in str(error)
    assert "secret" not in str(error)
    assert [] == take(queue)


def test_json_that_postgres_refuses():
    """Whatever else it has against it."""
    error = APIError({"code": "22P02", "message": "invalid input syntax for type json"})
    assert "invalid input syntax" in str(explained(error, {}))
    other = APIError({"code": "22P02", "message": 'invalid input syntax for type bigint: "x"'})
    assert explained(other, {}) is None


# --- what is not explained ------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["PGRST000", "57P01", "53300", "PGRST003"])
def test_an_outage_passes_through(queue, local, code):
    """It is nobody's mistake and ends by itself."""
    queue.check()
    body = {"code": code, "message": "no", "details": None, "hint": None}
    local.faults.add(match="/rpc/read", status=503, body=body)
    with pytest.raises(APIError) as failed:
        take(queue)
    assert classify(failed.value).is_outage


def test_a_lost_connection_passes_through(queue, local):
    """The probe of `check` included."""
    local.faults.add(match="/rpc/", drop="before")
    with pytest.raises(Exception, match="disconnected") as failed:
        queue.check()
    assert classify(failed.value).is_outage


def test_an_open_circuit_passes_through(world, client, name):
    """The breaker of a protected client guards the queue, too."""
    breaker = CircuitBreaker()
    queue = world.queue(protect(client, breaker=breaker), name)
    breaker.force_open()
    with pytest.raises(CircuitOpenError):
        queue.check()


def test_a_wrong_key_passes_through(world, local, name):
    """Supabase's own error says it best."""
    with pytest.raises(APIError):
        world.queue(world.client(local), name, token="not.a.token").check()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("42883", 'function "their_own" does not exist'),
        ("P0001", "a trigger says: the queue is full"),
        ("23505", "duplicate key"),
        ("22023", "a trigger says: no such customer"),
        ("P0001", "the body is too long"),
        (None, ""),
    ],
)
def test_errors_of_others_are_not_explained(code, message):
    """A trigger on the queue may raise what it likes; that is for its author."""
    assert explained(APIError({"code": code, "message": message}), {}) is None


@pytest.mark.parametrize(
    ("what", "sql"),
    [
        ("schema pgmq", "grant usage on schema pgmq to service_role;"),
        (
            "function supabase_resilience_queue_check",
            "grant execute on function public.supabase_resilience_queue_check to service_role;",
        ),
        (
            "function read",
            "grant execute on all functions in schema pgmq_public, pgmq to service_role;",
        ),
        (
            "sequence q_jobs_msg_id_seq",
            "grant usage on all sequences in schema pgmq to service_role;",
        ),
        ("table q_jobs", 'grant all on table pgmq."q_jobs" to service_role;'),
        ("table meta", 'grant all on table pgmq."q_mails" to service_role;'),
    ],
)
def test_a_right_is_granted_where_it_is_missing(what, sql):
    """By what PostgreSQL says is denied, the queue being that of the call where it names none."""
    error = APIError({"code": "42501", "message": f"permission denied for {what}"})
    assert sql in str(explained(error, {"queue_name": "mails"}))


def test_names_in_sql_are_quoted():
    """A name with a quote breaks nothing."""
    assert sql_of(missing_queues(["it's"])) == "select pgmq.create('it''s');"


def test_a_broken_migration_is_told():
    """A table of ours that is gone is no queue."""
    message = 'relation "supabase_resilience.job_keys" does not exist'
    error = APIError({"code": "42P01", "message": message})
    assert "sql queue" in str(explained(error, {"queue_name": "jobs"}))


def _loop():
    made = []
    made.append(made)
    return made


def _nested():
    made = []
    for _ in range(100_000):
        made = [made]
    return made


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (object(), "Object of type object is not JSON serializable"),
        ("\ud800", "half a character"),
        (float("nan"), "infinite or NaN"),
        (_loop(), "contains itself"),
        (_nested(), "nested too deeply"),
    ],
    ids=["object", "surrogate", "nan", "loop", "nested"],
)
def test_what_is_no_json_is_refused_before_it_is_sent(data, said):
    """In words that do not show it."""
    with pytest.raises(QueueError, match=f"must be JSON: .*{said}"):
        message_of(Job("1", data))


def test_a_key_that_fits_into_no_index_is_refused():
    """PostgreSQL would fail with a message about pages."""
    with pytest.raises(QueueError, match="use a hash"):
        message_of(Job("1", None, dedupe_key="é" * 1500))
