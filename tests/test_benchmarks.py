"""The benchmarks run as they are, and the outages they play end as the models of them say.

Each one is played small here: what is asserted are facts about queues and circuits, in virtual
time and from one seed. How fast anything is decides no test.
"""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"
NEVER = None


@pytest.fixture(scope="module")
def outage() -> Any:
    """Give the module, and those beside it, as `python outage.py` finds them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        return import_module("outage")


# --- an outage and the time after it ------------------------------------------------------------


def live_through(outage: Any, name: str, **numbers: Any) -> Any:
    """Live through the outage of the issue at a tenth of its rates, unless told otherwise."""
    world = outage.World(**{"demand": 20, "capacity": 30, "ends": 60, **numbers})
    return outage.play(outage.live_through(world, getattr(outage, name)))


def test_without_retries_the_queue_is_gone_when_the_formula_says(outage):
    """(demand * outage - capacity * timeout) / (capacity - demand) seconds, within 10 %."""
    assert pytest.approx(17.0) == outage.World().recovery_without_retries()
    assert live_through(outage, "no_retry").back_to_normal == pytest.approx(17.0, rel=0.1)


@pytest.mark.parametrize("retry", ["naive_retry", "jittered_retry"])
def test_retries_alone_keep_the_server_down_for_ever(outage, retry):
    """Demand times tries exceeds the capacity, and jitter does not change that."""
    result = live_through(outage, retry)
    assert NEVER is result.back_to_normal
    assert 0.0 == result.goodput_after
    assert result.wasted > result.requests / 2


def test_below_the_stability_limit_retries_recover(outage):
    """Demand * (retries + 1) < capacity: it takes its time, but ends."""
    result = live_through(outage, "naive_retry", demand=14, ends=145)
    assert result.back_to_normal is not NEVER
    assert result.back_to_normal > 2 * live_through(outage, "no_retry", demand=14).back_to_normal


def test_a_budget_makes_retries_harmless(outage):
    """Back when a server without retries would be, with next to no request more."""
    result, none = live_through(outage, "budgeted_retry"), live_through(outage, "no_retry")
    assert result.back_to_normal == pytest.approx(none.back_to_normal, abs=2)
    assert result.requests <= 1.1 * none.requests


@pytest.mark.parametrize("who", ["ours", "ours_in_processes"])
def test_protected_clients_are_back_within_ten_seconds(outage, who):
    """At the full rates: the breaker sheds first tries, too, so that the queue can drain."""
    result = live_through(outage, who, demand=200, capacity=300, ends=40)
    assert result.back_to_normal is not NEVER
    assert result.back_to_normal <= 10
    assert result.refused > 0
    assert result.peak <= 2 * 200


def test_a_story_is_the_same_every_time(outage):
    """One seed, one story."""
    assert live_through(outage, "ours", ends=30) == live_through(outage, "ours", ends=30)


# --- the herd, and a server that stays dead -----------------------------------------------------


@pytest.fixture(scope="module")
def herds(outage) -> dict[str, Any]:
    """Give what each row of the table became, with fewer clients."""
    herd = outage.herd
    rows = herd.ROWS.items()
    small = herd.Herd(clients=200)
    return {name: outage.play(herd.Play(small, options).run()) for name, options in rows}


def row(herds: dict[str, Any], start: str) -> Any:
    """Find a row by how its name begins."""
    return next(result for name, result in herds.items() if name.startswith(start))


def test_jitter_spreads_the_herd(herds):
    """Three seconds of it make a third of the peak, or less."""
    assert (
        row(herds, "jitter=0.1, 1").peak_while_sick < row(herds, "no jitter, 1").peak_while_sick / 2
    )
    assert row(herds, "jitter=0.1, who").peak_after < row(herds, "no jitter, who").peak_after / 2


def test_probe_permits_spare_the_sick_server(herds):
    """One probe a client, however many of its workers wait."""
    for jitter in ("no jitter", "jitter=0.1"):
        one, everybody = row(herds, f"{jitter}, 1"), row(herds, f"{jitter}, who")
        assert one.probes_while_sick <= 3 * 200
        assert everybody.probes_while_sick > 1.5 * one.probes_while_sick


def test_growth_trades_time_for_probes(herds):
    """Fewer probes while it lasts, and later back."""
    usual, growing = row(herds, "jitter=0.1, 1"), row(herds, "the defaults and growth")
    assert growing.probes_while_sick < usual.probes_while_sick
    assert growing.closed_after > usual.closed_after


@pytest.mark.parametrize("how", ["refuses connections", "answers 503"])
def test_a_dead_server_is_left_alone(outage, how):
    """At most 1 % of the requests of supabase-py alone, which sends each read four times."""
    dead_server = outage.dead_server
    crowd = dead_server.Crowd(sample=1)

    def requests(make: Any) -> int:
        return outage.play(dead_server.count_requests(crowd, make, how))

    alone = requests(dead_server.bare)
    assert 4 * 100 * 10 * 60 == alone
    assert 0 < requests(dead_server.defaults) <= alone / 100
    assert 0 < requests(dead_server.failure_rate) <= alone / 100


# --- idle workers -------------------------------------------------------------------------------


def test_a_thousand_idle_workers_are_a_light_load():
    """At most 200 requests a second in all, and a new job is found within five seconds."""
    told = run("queues.py", "polling", "--polled-jobs", "20")
    rows = re.findall(r"^\| ([^|]+?) \| (<= \d+) \| [^|]+ \| (yes|NO) \|", told, re.MULTILINE)
    assert 3 == len(rows)
    assert {"yes"} == {verdict for _, _, verdict in rows}


# --- as programs --------------------------------------------------------------------------------


def run(*arguments: str) -> str:
    command = [sys.executable, str(BENCHMARKS / arguments[0]), *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def rows_of(told: str, title: str) -> set[str]:
    """The first cells of the table under a title."""
    table = told.partition(f"### {title}")[2].partition("###")[0]
    return set(re.findall(r"^\| (.+?) \|", table, re.MULTILINE))


def test_the_outage_tables_have_their_rows(outage):
    """One table each, one row for each way to ask."""
    told = run(
        "outage.py", "--demand", "20", "--capacity", "30", "--ends", "30", "--clients", "20",
        "--sample", "1",
    )  # fmt: skip
    assert rows_of(told, "An outage of 10 s") > set(outage.ROWS)
    assert rows_of(told, "20 clients whose breakers") > set(outage.herd.ROWS)
    assert rows_of(told, "A dead server") > set(outage.dead_server.ROWS)
    assert len(rows_of(told, "What ours must reach")) == 1 + 3


def test_the_breaker_tables_have_their_rows():
    """Ours, the floor and the bare call, with or without any peer installed."""
    told = run("breakers.py", "--rounds", "2", "--calls", "100", "--waits", "2")
    ours = {"ours, consecutive: execute(fn)", "ours, FailureRate(window=30.0): execute(fn)"}
    for title in ("Closed: a function", "Closed: a coroutine", "The same while", "Threads", "64"):
        assert rows_of(told, title) >= {"no breaker", "floor: counter under a lock", *ours}
    assert rows_of(told, "Open") >= {"floor: counter under a lock", *ours}
    assert rows_of(told, "A whole query") >= {"sync", "async"}
    assert len(rows_of(told, "What ours must reach")) == 1 + 8


def test_the_queue_tables_have_their_rows():
    """Ours, the floors and the loop, with or without any peer installed."""
    told = run(
        "queues.py", "memory", "durable", "--rounds", "2", "--jobs", "200", "--kept", "2000",
        "--durable-rounds", "1", "--durable-jobs", "100", "--waiting", "300", "--urgent", "20",
    )  # fmt: skip
    assert rows_of(told, "In memory, async") >= {"ours", "bare tasks on asyncio.PriorityQueue"}
    assert rows_of(told, "In memory, sync") >= {"ours", "bare threads on queue.PriorityQueue"}
    assert len(rows_of(told, "Memory, once they are done")) == 1 + 10
    for colour in ("sync", "async"):
        rows = rows_of(told, f"LocalSupabase, {colour}")
        assert rows >= {"hand-written loop", "ours, stock", "ours, migrated"}
    assert rows_of(told, "Priority under load") >= {"lanes, stock", "migrated, no lanes"}
    assert len(rows_of(told, "What ours must reach")) == 1 + 3 + 2 + 6 + 4


def test_the_listener_tables_have_their_rows():
    """Every level beside the bare client, in latency, throughput and memory."""
    told = run(
        "listeners.py", "--latency-rounds", "1", "--changes", "20", "--rounds", "1",
        "--events", "300", "--kept", "1000",
    )  # fmt: skip
    levels = {"live only", "by_column", "versioned", "change_log"}
    assert rows_of(told, "Memory of the process") > levels
    handlers = {f"{level}, async handler" for level in levels}
    assert rows_of(told, "Latency added") > {"a second bare client"} | handlers
    assert rows_of(told, "Throughput") > handlers
    assert len(rows_of(told, "What ours must reach")) == 1 + 2 * 6 + 12 + 5


def test_the_verification_tables_have_their_rows():
    """The loop and our passes find the same broken rows, or the program says that they do not."""
    told = run("verification.py", "--rows", "20000", "--rounds", "1")
    for colour in ("sync", "async"):
        rows = rows_of(told, f"A pass, {colour}")
        assert rows > {"hand-written loop", "one range", "four ranges", "in the database"}
    assert rows_of(told, "Memory of the process") > {"sync, ranges=4", "async, ranges=4"}
    assert len(rows_of(told, "What ours must reach")) == 1 + 2 * 3 + 2 * 2


def test_the_hook_tables_have_their_rows():
    """Each hook beside none, in both colours."""
    told = run("hooks.py", "--rounds", "2", "--queries", "5")
    hooks = {"none", "logging", "Prometheus", "OpenTelemetry, metrics", "OpenTelemetry, spans"}
    for colour in ("sync", "async"):
        assert rows_of(told, f"A protected query, {colour}") > hooks
    assert len(rows_of(told, "What ours must reach")) == 1 + 2 * 4
