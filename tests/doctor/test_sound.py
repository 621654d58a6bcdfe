"""A sound project has no finding; the doctor changes nothing, and shows no secret."""

import asyncio
import json
import sys

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from supabase import create_async_client

from supabase_resilience import (
    AsyncQueueProcessor,
    AsyncRealtimeListener,
    AsyncServerSideVerification,
    AsyncSupabaseQueue,
    CircuitBreaker,
    QueueProcessor,
    Recovery,
    Rule,
    protect,
    queue_processor,
    realtime_listener,
)
from supabase_resilience.doctor import DoctorError, _dsn, diagnose
from supabase_resilience.together import Resilience


def wrong(diagnosis):
    return [*diagnosis.problems, *diagnosis.warnings]


def checks(diagnosis, severity):
    return {each.check for each in diagnosis.findings if each.severity == severity}


def test_a_sound_project_has_no_finding(sound, parts):
    """With one of each pattern, each with all that it can need."""
    diagnosis = sound.diagnose(*parts)

    assert [] == wrong(diagnosis)
    assert 0 == diagnosis.exit_code
    looked_at = "clock index key migration policy publication queue realtime_connections "
    looked_at += "realtime_rate replica_identity statement_timeout table versions"
    assert set(looked_at.split()) == checks(diagnosis, "ok")


def test_what_cannot_be_seen_is_said(sound, parts):
    """Without a DSN the project is sound as far as one can see, and how to see more is said."""
    diagnosis = sound.diagnose(*parts, dsn=None)

    assert [] == wrong(diagnosis)
    assert {"dsn", "versions"} == checks(diagnosis, "unseen")
    unseen = next(each for each in diagnosis.unseen if each.check == "dsn")
    assert "publication" in unseen.what
    assert "--dsn" in unseen.fix


def test_a_resilience_tells_its_parts(sound, parts):
    """Together they are looked at as they are alone; what needs nothing is passed over."""
    protected = protect(sound.client, breaker=CircuitBreaker("here"))
    memory = QueueProcessor(print)
    resilience = Resilience(*parts[:-1], protected, memory)

    assert sound.diagnose(*parts).findings == sound.diagnose(resilience).findings


def test_a_publishable_key_is_enough_for_who_only_sends_or_reads(sound):
    """A producer, and a listener that recovers by a column."""
    client = sound.client
    producer = queue_processor(client, "mails", None)
    listener = realtime_listener(client, "orders", recovery=Recovery.by_column())

    assert [] == wrong(sound.diagnose(producer, listener, key=sound.local.publishable_key))


async def looked_at(sound):
    local = sound.local
    client = await create_async_client(local.url, local.secret_key)
    return sound.diagnose(
        AsyncRealtimeListener(client, "unheard", recovery=Recovery.by_column()),
        AsyncServerSideVerification(client, "unchecked", rules=[Rule("a", check=bool)]),
        AsyncQueueProcessor(print, store=AsyncSupabaseQueue(client, "unsent")),
    )


def test_parts_of_the_other_colour_tell_as_much(sound):
    """Async parts are looked at as sync ones, though nothing of theirs runs."""
    diagnosis = asyncio.run(looked_at(sound))

    assert ["public.unchecked", "public.unheard", "unsent", "unsent_dead"] == sorted(
        each.subject for each in diagnosis.problems
    )


def test_nothing_is_written(sound, parts):
    """Neither a transaction of the database that writes, nor a request that could."""
    local = sound.local
    newest = "select pg_snapshot_xmax(pg_current_snapshot())::text"
    before = sound.ask(newest), local.requests(), local.requests(method="GET")

    sound.diagnose(*parts)

    after = sound.ask(newest), local.requests(), local.requests(method="GET")
    assert before[0] == after[0]
    assert after[2] > before[2]
    assert after[1] - before[1] == after[2] - before[2]


def test_no_secret_is_shown(sound, parts):
    """Neither a key nor a password nor a row is in what is found, whatever is wrong."""
    sound.run("create table private (id text primary key); insert into private values ('a-row')")
    user = sound.local.jwt(sub="3b5c4b7e-0d6d-4a0e-9a43-0d3f6c0d7c11")
    dsn = make_conninfo(sound.local.dsn, password="hunter2")

    for key in (sound.local.secret_key, sound.local.publishable_key, user, "sb_secret_wrong"):
        diagnosis = sound.diagnose(*parts, key=key, dsn=dsn, tables=["private"])
        text = json.dumps(diagnosis.to_dict())
        assert not any(secret in text for secret in (key, "hunter2", "a-row"))


@pytest.mark.parametrize(
    ("dsn", "said"),
    [
        ("postgresql://someone:hunter2@127.0.0.1:1/postgres", "OperationalError"),
        ("postgresql://someone:hunter2@[", "ProgrammingError"),
        ("password=hunter2 what is this", "ProgrammingError"),
        ("someone:hunter2", "ProgrammingError"),
    ],
)
def test_a_dsn_that_leads_nowhere_is_told_without_its_password(sound, dsn, said):
    """It cannot be looked at; the error says so and shows no password."""
    with pytest.raises(DoctorError, match=rf"the DSN .*\({said}\)") as error:
        sound.diagnose(dsn=dsn)

    assert "hunter2" not in str(error.value)
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__


def test_the_database_would_refuse_a_write(sound, monkeypatch):
    """Whatever is asked of it is asked in a read-only transaction."""
    monkeypatch.setattr(_dsn, "_PUBLICATION", "create table proof (id int)")

    with pytest.raises(DoctorError, match="CREATE TABLE in a read-only transaction, 25006"):
        sound.diagnose()


def test_who_does_not_answer_cannot_be_looked_at(sound):
    """An outage is no finding about the project."""
    with pytest.raises(DoctorError, match="ConnectError"):
        sound.diagnose(url="http://127.0.0.1:1")
    sound.local.faults.add(match="queue_check", status=503, body="upstream is down")
    with pytest.raises(DoctorError, match="HTTP 503"):
        sound.diagnose()


def test_a_refused_key_leaves_the_rest_unseen(sound, parts):
    """One finding says why; nothing else is guessed."""
    diagnosis = sound.diagnose(*parts, key="sb_secret_wrong")

    assert ["key"] == [each.check for each in diagnosis.problems]
    assert "api" in checks(diagnosis, "unseen")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"url": ""}, "url"),
        ({"key": ""}, "key"),
        ({"timeout": 0}, "timeout"),
        ({"processes": 0}, "processes"),
        ({"realtime_rate": -1}, "realtime_rate"),
        ({"realtime_connections": 0}, "realtime_connections"),
    ],
)
def test_arguments_that_make_no_sense_are_named(options, named):
    """Before anything is looked at."""
    with pytest.raises((TypeError, ValueError), match=named):
        diagnose(**({"url": "http://127.0.0.1:1", "key": "k"} | options))


def test_what_is_no_part_is_refused():
    """By its type."""
    with pytest.raises(TypeError, match="nothing to look at in a dict"):
        diagnose({}, url="http://127.0.0.1:1", key="k")


def test_psycopg_is_asked_for_by_its_extra(sound, monkeypatch):
    """Without it, whoever gives a DSN is told what to install."""
    monkeypatch.setitem(sys.modules, "psycopg", None)

    with pytest.raises(DoctorError, match=r"supabase-resilience\[doctor\]"):
        sound.diagnose()


def test_the_catalogue_is_open_to_a_role_that_may_do_nothing(sound, parts):
    """A DSN for the doctor needs no right on any table."""
    sound.as_admin("create role onlooker login")
    with psycopg.connect(make_conninfo(sound.local.dsn, user="onlooker")) as connection:
        refused = "select has_table_privilege('orders', 'select') or false"
        assert connection.execute(refused).fetchone() == (False,)

    diagnosis = sound.diagnose(*parts, dsn=make_conninfo(sound.local.dsn, user="onlooker"))

    assert [] == wrong(diagnosis)
    sound.as_admin("drop role onlooker")
