"""How the local Realtime refuses, limits, goes silent and comes back, as it is told to."""

import asyncio
import itertools
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from supabase_resilience.local import LocalSupabase
from supabase_resilience.local.realtime._settings import Settings

from .phoenix import PATIENCE, Connect, Phoenix, opener, sql, system, table, websocket_url

pytestmark = pytest.mark.anyio

SCHEMA = """
create table orders (id int8 primary key);
create table other (id int8 primary key);
alter publication supabase_realtime add table orders;
"""
SUBSCRIBED = system("Subscribed to PostgreSQL", status="ok")
TIMEOUTS = system('{:error, "Too many database timeouts"}', status="error")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalSupabase]:
    with LocalSupabase(schema=SCHEMA) as local:
        yield local


@pytest.fixture
def local(stack: LocalSupabase) -> Iterator[LocalSupabase]:
    """Yield the stack; its settings are those of the beginning afterwards."""
    yield stack
    stack.realtime.configure(**asdict(Settings()))


@pytest.fixture
def phoenix(local: LocalSupabase) -> Connect:
    """Return what opens a socket on the stack's URL."""
    return opener(local)


@pytest.fixture
def ids() -> Iterator[int]:
    """Yield keys that no other test uses."""
    return itertools.count(time.time_ns() // 1000)


def insert(local: LocalSupabase, key: int) -> None:
    sql(local, "insert into orders values (%s)", key)


async def is_silent(local: LocalSupabase, client: Phoenix) -> bool:
    """Tell whether the client is sent nothing for what is committed so far."""
    local.realtime.catch_up()
    ref = await client.push("heartbeat", topic="phoenix")
    return ref == (await client.frame())["ref"]


async def closed_with(client: Phoenix) -> int:
    """Return the code with which the socket is closed, which is the next to come."""
    with pytest.raises(ConnectionClosed) as closed:
        await client.text()
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code


# --- the death of the stream of changes ---


async def test_a_dead_stream_lives_again_for_who_joins_only(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """After the stream's death old channels hear nothing, in spite of a new one that does."""
    key = next(ids)
    async with phoenix() as old, phoenix() as new:
        await old.subscribe(table("orders"))
        local.realtime.kill_cdc()
        local.realtime.kill_cdc()
        assert local.realtime.subscriptions == 0
        insert(local, key)
        assert await is_silent(local, old)
        await new.subscribe(table("orders"))
        assert local.realtime.subscriptions == 1
        insert(local, key + 1)
        assert key + 1 == (await new.change())["record"]["id"]
        assert await is_silent(local, old)
        await old.subscribe(table("orders"), topic="realtime:again")
        insert(local, key + 2)
        assert "realtime:again" == (await old.frame())["topic"]


async def test_what_was_committed_before_the_death_arrives(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """The fault begins after everything that is committed has been told."""
    keys = [next(ids) for _ in range(50)]
    async with phoenix() as a:
        await a.subscribe(table("orders"))
        for key in keys:
            insert(local, key)
        local.realtime.kill_cdc()
        assert keys == [(await a.change())["record"]["id"] for _ in keys]


async def test_a_changed_publication_revives_no_dead_channel(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """Subscriptions are made anew for those who have one, and the dead have none."""
    async with phoenix() as old, phoenix() as new:
        await old.subscribe(table("orders"))
        local.realtime.kill_cdc()
        await new.subscribe(table("orders"))
        local.realtime.configure(publication_check=0.02)
        sql(local, "alter publication supabase_realtime add table other")
        assert SUBSCRIBED == await new.frame()
        insert(local, next(ids))
        await new.change()
        assert await is_silent(local, old)


async def test_a_long_outage_is_the_death_of_the_stream(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """Who joins when PostgreSQL is still away is told so, and is subscribed when it is back."""
    key = next(ids)
    local.realtime.configure(cdc_patience=0.0)
    async with phoenix() as old, phoenix() as new:
        await old.subscribe(table("orders"))
        local.postgres.kill()
        async with asyncio.timeout(PATIENCE):
            while local.realtime.subscriptions:
                assert await is_silent(local, old)
        await new.join(table("orders"))
        assert TIMEOUTS == await new.frame()
        local.postgres.start()
        while (frame := await new.frame()) == TIMEOUTS:
            pass
        assert SUBSCRIBED == frame
        insert(local, key)
        assert key == (await new.change())["record"]["id"]
        assert await is_silent(local, old)


# --- rates ---


async def test_changes_above_the_rate_are_lost_in_silence(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """A transaction comes whole; after it all changes are lost, and nobody is told."""
    local.realtime.configure(max_events_per_second=10, rate_window=12.0)
    first = next(ids)
    async with phoenix() as a:
        await a.subscribe(table("orders"))
        sql(local, "insert into orders select %s + g from generate_series(0, 999) g", first)
        heard = [(await a.change())["record"]["id"] for _ in range(1000)]
        assert list(range(first, first + 1000)) == heard
        key = first + 1000
        insert(local, key)
        while not await is_silent(local, a):
            await a.frame()  # the heartbeat's reply, after the change
            key += 1
            insert(local, key)
        local.realtime.configure(max_events_per_second=None)
        insert(local, key + 1)
        assert key + 1 == (await a.change())["record"]["id"]


async def test_a_transaction_is_not_cut_when_it_goes_over_the_rate(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """The rate is looked at when a transaction begins, and not again before its end."""
    # Its rows take longer to tell than the whole window.
    local.realtime.configure(max_events_per_second=10, rate_window=0.012)
    first = next(ids)
    async with phoenix() as a:
        await a.subscribe(table("orders"))
        sql(local, "insert into orders select %s + g from generate_series(0, 999) g", first)
        heard = [(await a.change())["record"]["id"] for _ in range(1000)]
    assert list(range(first, first + 1000)) == heard


async def test_too_many_joins_close_the_socket(local: LocalSupabase, phoenix: Connect) -> None:
    """The join is refused, its channel and its socket are closed, and so is the door."""
    local.realtime.configure(max_joins_per_second=1, rate_window=12.0)
    joined = ""
    async with phoenix() as a:
        while (frame := await a.join())["payload"]["status"] == "ok":
            joined = frame["ref"]
            if joined != "1":
                await a.frame()  # the end of the join before
        closed = await a.frame()
        code = await closed_with(a)
    reason = "ClientJoinRateLimitReached: Too many joins per second"
    assert {"response": {"reason": reason}, "status": "error"} == frame["payload"]
    assert {"event": "phx_close", "payload": {}, "ref": joined, "topic": "realtime:t"} == closed
    assert 1001 == code
    with pytest.raises(InvalidStatus) as refused:
        await connect(websocket_url(local, local.publishable_key))
    assert 429 == refused.value.response.status_code
    assert b'{"error": "Too many joins per second"}' == refused.value.response.body


async def test_joining_a_topic_again_takes_no_further_place(
    local: LocalSupabase, phoenix: Connect
) -> None:
    """Who has as many channels as may be can still renew one of them."""
    local.realtime.configure(max_channels=1)
    async with phoenix() as a:
        replies = [await a.join(), await a.join()]
    assert ["ok", "ok"] == [reply["payload"]["status"] for reply in replies]


# --- refusals ---


async def test_a_refusing_server_accepts_and_closes_at_once(
    local: LocalSupabase, phoenix: Connect
) -> None:
    """Every new socket is closed with the code, old ones stay; both are counted."""
    before = local.realtime.connects
    async with phoenix() as old:
        local.realtime.refuse(1013)
        for _ in range(3):
            async with phoenix() as refused:
                assert 1013 == await closed_with(refused)
        local.realtime.refuse(None)
        async with phoenix() as new:
            assert "ok" == (await new.join())["payload"]["status"]
            assert "ok" == (await old.join())["payload"]["status"]
            assert 2 == local.realtime.connections
    assert 5 == local.realtime.connects - before


async def test_a_refused_join_ends_the_one_before(
    local: LocalSupabase, phoenix: Connect, ids: Iterator[int]
) -> None:
    """Joining a joined topic ends its channel, even if the new join is refused."""
    async with phoenix() as a:
        await a.subscribe(table("orders"))
        refused = await a.join(access_token="abc")
        closed = await a.frame()
        insert(local, next(ids))
        assert await is_silent(local, a)
    assert ("2", "error") == (refused["ref"], refused["payload"]["status"])
    assert ("phx_close", "1") == (closed["event"], closed["ref"])


async def test_refused_joins_block_one_after_the_other(
    local: LocalSupabase, phoenix: Connect
) -> None:
    """A blocked socket does what has come meanwhile in its order, and may be blocked again."""
    local.realtime.configure(join_error_delay=0.1)
    bad = {"config": {}, "access_token": "abc"}
    async with phoenix() as a:
        await a.push("phx_join", bad)
        await a.push("phx_join", bad)
        await a.push("heartbeat", topic="phoenix")
        refs = [(await a.frame())["ref"] for _ in range(3)]
    assert ["1", "2", "3"] == refs


async def test_a_socket_may_go_while_it_is_blocked(local: LocalSupabase, phoenix: Connect) -> None:
    """What waits in a blocked socket that closes is never done."""
    local.realtime.configure(join_error_delay=0.05)
    async with phoenix() as a:
        await a.push("phx_join", {"config": {}, "access_token": "abc"})
        good = {"config": {"postgres_changes": [table("orders")]}}
        await a.push("phx_join", good, topic="realtime:b")
    async with phoenix() as b:
        # It takes as long, and comes after.
        assert "error" == (await b.join(access_token="abc"))["payload"]["status"]
    assert 0 == local.realtime.subscriptions


async def test_a_bad_key_is_refused_after_a_pause(local: LocalSupabase, phoenix: Connect) -> None:
    """The pause concerns who is refused, and nobody else."""
    local.realtime.configure(connect_error_delay=2 * PATIENCE)
    refused = asyncio.ensure_future(connect(websocket_url(local, "nonsense")))
    async with phoenix() as a, phoenix() as b:
        await a.join()
        await b.join()
        assert not refused.done()
    refused.cancel()
    await asyncio.gather(refused, return_exceptions=True)


async def test_a_frame_over_five_megabytes_closes_the_socket(phoenix: Connect) -> None:
    """As in the real server the code is 1009."""
    async with phoenix() as a:
        await a.socket.send("x" * 5_000_001)
        assert 1009 == await closed_with(a)


async def test_an_idle_socket_is_closed_but_pings_count(
    local: LocalSupabase, phoenix: Connect
) -> None:
    """Who sends nothing is closed with 1000; who sends websocket pings is not."""
    async with phoenix() as silent, phoenix() as pinging:
        local.realtime.configure(idle_timeout=1.0)
        closing = asyncio.create_task(closed_with(silent))
        while not closing.done():
            await (await pinging.socket.ping())
        assert 1000 == await closing
        assert "ok" == (await pinging.join())["payload"]["status"]


# --- settings ---


async def test_settings_outlive_the_process_and_faults_do_not(
    local: LocalSupabase, phoenix: Connect
) -> None:
    """A killed server comes back with its settings, and with nothing that was wrong with it."""
    local.realtime.configure(max_channels=1)
    local.realtime.refuse()
    local.realtime.kill()
    local.realtime.configure(join_error_delay=0.01)
    local.realtime.start()
    async with phoenix() as a:
        await a.join()
        second = await a.join(topic="realtime:second")
    reason = "ChannelRateLimitReached: Too many channels"
    assert {"reason": reason} == second["payload"]["response"]
    assert 1 == local.realtime.connects


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"idle_timeout": 0}, "idle_timeout must be a number above 0, got 0"),
        ({"cdc_patience": -1}, "cdc_patience must be a number from 0 on, got -1"),
        ({"max_events_per_second": 0}, "max_events_per_second must be a number above 0, got 0"),
        ({"subscribe_delay": float("nan")}, "subscribe_delay must be a number from 0 on, got nan"),
        ({"rate_window": "1"}, "rate_window must be a number above 0, got '1'"),
        ({"max_channels": None}, "max_channels must be a number above 0, got None"),
    ],
)
def test_a_senseless_setting_is_refused(
    local: LocalSupabase, settings: dict[str, Any], error: str
) -> None:
    """The error names the setting and what it may be."""
    with pytest.raises(ValueError, match=error):
        local.realtime.configure(**settings)


def test_an_unknown_setting_is_refused(local: LocalSupabase) -> None:
    """A name with a typo does not do nothing in silence."""
    misspelt: Any = {"idle_time": 1.0}
    with pytest.raises(TypeError, match="idle_time"):
        local.realtime.configure(**misspelt)
