"""What a breaker costs: ours, its peers and a hand-written floor, side by side in one run.

`make bench-breaker` installs the peers into a throw-away environment and prints the tables. All
candidates take turns within each round and the garbage collector is off, so that ratios hold on a
noisy machine. Overhead is what a breaker adds to the bare call in its fastest round; `x floor`
compares that with the overhead of a counter under a lock, written by hand.
"""

import argparse
import asyncio
import gc
import itertools
import os
import platform
import statistics
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import candidates
import protect
from candidates import Candidate
from virtual_time import pause

Call = Callable[[], Any]
Times = dict[str, list[float]]

PLAIN, FLOOR = candidates.plain().name, candidates.floor().name
CONSECUTIVE, WINDOWED = candidates.consecutive().name, candidates.windowed().name
A_MILLISECOND = 0.001
THREADS, TASKS = 8, 64


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured."""

    rounds: int
    calls: int
    waits: int

    def few_rounds(self) -> range:
        return range(max(2, self.rounds // 3))


# --- what is called -----------------------------------------------------------------------------


def do_nothing() -> None:
    return None


async def do_nothing_async() -> None:
    return None


def wait_a_millisecond() -> None:
    """Blocking I/O, as far as a breaker can tell: the thread waits, others run."""
    threading.Event().wait(A_MILLISECOND)


async def wait_a_millisecond_async() -> None:
    await pause(A_MILLISECOND)


# --- measuring ----------------------------------------------------------------------------------


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def nanoseconds(call: Call, calls: int) -> float:
    begun = time.perf_counter_ns()
    for _ in itertools.repeat(None, calls):
        call()
    return (time.perf_counter_ns() - begun) / calls


async def nanoseconds_async(call: Call, calls: int) -> float:
    begun = time.perf_counter_ns()
    for _ in itertools.repeat(None, calls):
        await call()
    return (time.perf_counter_ns() - begun) / calls


def nanoseconds_refused(call: Call, calls: int) -> float:
    begun = time.perf_counter_ns()
    for _ in itertools.repeat(None, calls):
        with suppress(Exception):
            call()
    return (time.perf_counter_ns() - begun) / calls


def calls_per_second(call: Call, threads: int, calls: int) -> float:
    """Of all threads together, once all have started."""
    ready = threading.Barrier(threads + 1)

    def work() -> None:
        ready.wait()
        for _ in itertools.repeat(None, calls):
            call()

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    ready.wait()
    begun = time.perf_counter()
    for worker in workers:
        worker.join()
    return threads * calls / (time.perf_counter() - begun)


async def calls_per_second_async(call: Call, calls: int) -> float:
    async def work() -> None:
        for _ in itertools.repeat(None, calls):
            await call()

    begun = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(TASKS)))
    return TASKS * calls / (time.perf_counter() - begun)


def take_turns(calls: dict[str, Call], rounds: range, measure: Callable[[Call], float]) -> Times:
    times: Times = {name: [] for name in calls}
    with no_garbage_collection():
        for number in rounds:
            for name, call in list(calls.items())[:: 1 if number % 2 else -1]:
                times[name].append(measure(call))
    return times


async def take_turns_async(
    calls: dict[str, Call], rounds: range, measure: Callable[[Call], Awaitable[float]]
) -> Times:
    times: Times = {name: [] for name in calls}
    with no_garbage_collection():
        for number in rounds:
            for name, call in list(calls.items())[:: 1 if number % 2 else -1]:
                times[name].append(await measure(call))
    return times


def wrapped(all_of_them: list[Candidate], fn: Call) -> dict[str, Call]:
    return {each.name: each.sync(fn) for each in all_of_them if each.sync}


def wrapped_async(all_of_them: list[Candidate], fn: Call) -> dict[str, Call]:
    return {each.name: each.for_async(fn) for each in all_of_them if each.for_async}


def opened(all_of_them: list[Candidate]) -> dict[str, Call]:
    """Those whose circuit is open for sure: what they guard is not called any more."""
    calls: dict[str, Call] = {}
    for each in all_of_them:
        reached = itertools.count()

        def fail(reached: Iterator[int] = reached) -> None:
            next(reached)
            raise ConnectionError("the service is down")

        if each.sync is None or each.name == PLAIN:
            continue
        call = each.sync(fail)
        nanoseconds_refused(call, 500)
        before = next(reached)
        nanoseconds_refused(call, 100)
        if next(reached) == before + 1:
            calls[each.name] = call
        else:
            print(f"\n{each.name} lets calls through after 500 failures: not in the table.")
    return calls


# --- the tables ---------------------------------------------------------------------------------


def overhead(times: Times, name: str) -> float:
    return min(times[name]) - min(times[PLAIN])


def to_floor(times: Times, name: str) -> float:
    return overhead(times, name) / overhead(times, FLOOR)


def show_overhead(title: str, times: Times) -> None:
    print(f"\n### {title}\n")
    print("| breaker | min ns | median ns | overhead ns | x floor |\n|---|---:|---:|---:|---:|")
    for name, row in sorted(times.items(), key=lambda item: min(item[1])):
        ratio = "" if name == PLAIN else f"{to_floor(times, name):.2f}"
        print(
            f"| {name} | {min(row):.0f} | {statistics.median(row):.0f} "
            f"| {overhead(times, name):.0f} | {ratio} |"
        )


def show_refused(times: Times) -> None:
    print("\n### Open: a refused call, raised and caught\n")
    print("| breaker | min ns | median ns | x floor |\n|---|---:|---:|---:|")
    for name, row in sorted(times.items(), key=lambda item: min(item[1])):
        ratio = min(row) / min(times[FLOOR])
        print(f"| {name} | {min(row):.0f} | {statistics.median(row):.0f} | {ratio:.2f} |")


def show_throughput(title: str, columns: dict[str, Times]) -> None:
    """Each cell: the best round, and the median of the rounds' shares of no breaker."""
    print(f"\n### {title}\n")
    print(f"| breaker | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for name in next(iter(columns.values())):
        cells = (f"{max(col[name]):,.0f} ({share(col, name):.2f})" for col in columns.values())
        print(f"| {name} | {' | '.join(cells)} |")


def share(rates: Times, name: str) -> float:
    """What is left of the calls per second without a breaker, each round by itself."""
    return statistics.median(a / b for a, b in zip(rates[name], rates[PLAIN], strict=True))


def show_judged(rows: list[tuple[str, float, str, float]]) -> None:
    print("\n### What ours must reach\n")
    print("| measure | must reach | here | |\n|---|---:|---:|---|")
    for measure, here, relation, limit in rows:
        is_met = here <= limit if relation == "<=" else here >= limit
        print(f"| {measure} | {relation} {limit} | {here:.3f} | {'yes' if is_met else 'NO'} |")


# --- the run ------------------------------------------------------------------------------------


def run(effort: Effort) -> None:
    peers, missing = candidates.installed_peers()
    if missing:
        print(f"Not installed, so not measured: {', '.join(missing)} (tests/benchmarks/peers.txt)")
    ours = [candidates.consecutive(), candidates.windowed()]
    everybody = [candidates.plain(), candidates.floor(), *ours, *peers]
    closed = take_turns(
        wrapped(everybody, do_nothing),
        range(effort.rounds),
        lambda call: nanoseconds(call, effort.calls),
    )
    show_overhead("Closed: a function that does nothing", closed)
    closed_async = asyncio.run(
        take_turns_async(
            wrapped_async(everybody, do_nothing_async),
            range(effort.rounds),
            lambda call: nanoseconds_async(call, effort.calls),
        )
    )
    show_overhead("Closed: a coroutine function that does nothing", closed_async)
    amid = asyncio.run(run_amid(effort, everybody))
    show_overhead("The same while another call of that breaker is in flight", amid)
    show_refused(
        take_turns(
            opened(everybody),
            effort.few_rounds(),
            lambda call: nanoseconds_refused(call, effort.calls // 10),
        )
    )
    waiting = run_threads(effort, everybody)
    run_tasks(effort, everybody)
    clients = run_protect(effort)
    show_judged(
        [
            ("consecutive, sync, x floor", to_floor(closed, CONSECUTIVE), "<=", 0.6),
            ("consecutive, async, x floor", to_floor(closed_async, CONSECUTIVE), "<=", 0.7),
            ("FailureRate, sync, x floor", to_floor(closed, WINDOWED), "<=", 1.0),
            ("FailureRate, async, x floor", to_floor(closed_async, WINDOWED), "<=", 1.15),
            (
                "consecutive, 8 threads x 1 ms, x no breaker",
                share(waiting, CONSECUTIVE),
                ">=",
                0.95,
            ),
            ("FailureRate, 8 threads x 1 ms, x no breaker", share(waiting, WINDOWED), ">=", 0.95),
            *((f"protect, {colour}, x bare", here, "<=", 1.03) for colour, here in clients.items()),
        ]
    )


async def run_amid(effort: Effort, everybody: list[Candidate]) -> Times:
    """Calls one after the other, while one more hangs: no app in use has a breaker to itself."""
    to_hang: list[asyncio.Future[None]] = []

    async def hang_or_do_nothing() -> None:
        if to_hang:
            await to_hang.pop()

    async def measure(call: Call) -> float:
        over = asyncio.get_running_loop().create_future()
        to_hang.append(over)
        hanging = asyncio.ensure_future(call())
        while to_hang:
            await pause(0.0)
        spent = await nanoseconds_async(call, effort.calls)
        over.set_result(None)
        await hanging
        return spent

    calls = wrapped_async(everybody, hang_or_do_nothing)
    return await take_turns_async(calls, effort.few_rounds(), measure)


def run_threads(effort: Effort, everybody: list[Candidate]) -> Times:
    """Returns what 8 threads with 1 ms of I/O reach."""
    columns: dict[str, Times] = {}
    for what, fn, calls in (
        ("nothing", do_nothing, effort.calls),
        ("1 ms of I/O", wait_a_millisecond, effort.waits),
    ):
        for threads in (1, THREADS):
            columns[f"{what}, {threads} threads"] = take_turns(
                wrapped(everybody, fn),
                effort.few_rounds(),
                lambda call, threads=threads, calls=calls: calls_per_second(call, threads, calls),
            )
    show_throughput("Threads: calls/s, best round (median share of no breaker)", columns)
    return columns[f"1 ms of I/O, {THREADS} threads"]


def run_tasks(effort: Effort, everybody: list[Candidate]) -> None:
    rates = asyncio.run(
        take_turns_async(
            wrapped_async(everybody, wait_a_millisecond_async),
            effort.few_rounds(),
            lambda call: calls_per_second_async(call, effort.waits),
        )
    )
    title = f"{TASKS} tasks: calls/s, best round (median share of no breaker)"
    show_throughput(title, {"1 ms of waiting": rates})


def run_protect(effort: Effort) -> dict[str, float]:
    """How much longer a whole query takes on an in-memory transport, by colour."""
    rounds = min(protect.ROUNDS, 10 * effort.rounds)
    with no_garbage_collection():
        colours = {
            "sync": protect.measure_sync(rounds),
            "async": asyncio.run(protect.measure_async(rounds)),
        }
    protect.show(colours)
    return protect.ratios(colours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=20_000, help="per candidate and round")
    parser.add_argument("--waits", type=int, default=100, help="calls that wait 1 ms, per round")
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # some peers use what Python has deprecated
    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores")
    run(Effort(rounds=given.rounds, calls=given.calls, waits=given.waits))


if __name__ == "__main__":
    main()
