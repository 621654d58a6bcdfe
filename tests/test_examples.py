"""The programs in examples/ run as they are, and show what they promise to show."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *, exit_code: int = 0) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SUPABASE_")}
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], capture_output=True, text=True, check=False, env=clean
    )
    assert exit_code == done.returncode, done.stdout + done.stderr
    return done.stdout


def positions(text: str, *facts: str) -> list[int]:
    """Where each fact is told for the first time after the one before it."""
    found = [0]
    for fact in facts:
        assert fact in text[found[-1] :], f"{fact!r} is not told after that:\n{text}"
        found.append(text.index(fact, found[-1]))
    return found[1:]


@pytest.mark.parametrize("name", ["01_survive_an_outage.py", "01_survive_an_outage_async.py"])
def test_the_first_example_survives_an_outage(name):
    """Saved, opened, refused, half-open, closed, saved: in this order."""
    told = run(name)
    positions(
        told,
        "saved as",
        "the database stops",
        "circuit.opened",
        "kept for later; the circuit is open",
        "the database is back",
        "circuit.half_opened",
        "circuit.closed",
        "saved as",
    )


def test_the_queue_example_onboards_every_user_once():
    """Through refusals, an outage that costs no attempt, and a dead letter that is replayed."""
    told = run("03_onboarding_queue.py")
    positions(
        told,
        "the mail service goes down",
        "the mail service is back",
        "a dead letter: failed 3 times, KeyError; fixed, and replayed",
        "40 profiles",
        "40 preferences",
        "40 mails",
    )
    failed, postponed = re.search(r"(\d+) attempts failed, (\d+) met the outage", told).groups()
    assert int(failed) >= 3
    assert int(postponed) >= 1


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        (
            "04_follow_changes.py",
            ["Realtime is killed", "DELETE of project 3, catch_up", "the connection is cut"],
        ),
        (
            "04_follow_changes_async.py",
            ["drops every change", "INSERT of project 2, catch_up", "Realtime had lost: 1"],
        ),
    ],
)
def test_the_list_of_projects_becomes_right_again(name, facts):
    """What Realtime has lost is found, told and counted."""
    positions(run(name), *facts, "the list is right")


def test_the_search_index_survives_its_process():
    """Killed three times, it goes on where it was, and hears of what was deleted meanwhile."""
    told = run("04_search_index.py")
    positions(told, "round 1: the index is right", "round 3: the index is right", "12 documents")


def test_the_demo_compares_a_protected_app_with_a_plain_one():
    """The sick server is spared most requests, nobody waits as long, and nothing is lost."""
    told = run("demo.py")
    for what in ("the database stops", "503, Retry-After", "connections drop"):
        positions(told, what, "circuit opened", "well again", "circuit closed", "first success")

    def row(label: str) -> list[float]:
        line = next(line for line in told.splitlines() if line.strip().startswith(label))
        return [float(number) for number in re.findall(r"(\d+(?:\.\d+)?)(?: s)?(?=\s|$)", line)]

    protected, plain = row("requests to the sick server")
    assert protected < plain / 2
    protected, plain = row("the longest wait of a visitor")
    assert protected < plain
    assert row("profiles lost, or overwritten by older ones")[0] == 0
    assert row("of these refused by the circuit, at once")[0] > 0
    assert "is closed now" in told
    assert row("jobs taken") >= [50]
    for nothing in ("jobs lost", "rows that the page shows wrong", "rows wrong in the end"):
        assert row(nothing) == [0]
    assert row("jobs taken") == row("of these handled")
    assert row("changes missed by Realtime") >= [15]
    assert [15] == row("rows broken") == row("of these fixed")
    assert "ok" == told.split("health in the end")[1].split()[0]


def test_orders_are_verified_and_fixed_while_the_app_writes():
    """Looked at, fixed, looked at again: what the app was completing meanwhile is left alone."""
    told = run("05_verify_orders.py")
    positions(
        told,
        "dry run: 70 violations, nothing written",
        "public.orders: 4 open; 2,000 rows",
        "meanwhile: 40 of 40 as it wrote them",
        "a page to forward: orders.html",
        "afterwards: 4 open, exit code 1",
    )
    fates = re.findall(
        r"^(completed orders .+?)  error\s+(\d+)\s+(\d+)\s+(\d+)$", told, re.MULTILINE
    )
    expected = [
        ("completed orders have a date", "50", "50", "0"),
        ("completed orders are paid", "20", "16", "4"),
    ]
    assert expected == [(name.strip(), *counts) for name, *counts in fates]


def test_the_nightly_pass_tells_a_chat_and_ends_with_its_exit_code():
    """What is fixed one night is not told the next one; what a person has to do is, again."""
    told = run("05_verify_nightly.py", exit_code=1)
    positions(
        told,
        "the first night",
        "chat | public.orders: 1 open;",
        "11 violations, 10 fixed",
        "chat |   still broken: 123",
        "the second night",
        "1 violations, 0 fixed",
        "exit code 1",
    )


def test_workers_verify_the_ranges_of_one_table():
    """Their reports add up to that of one who verifies all of it."""
    positions(
        run("05_verify_with_workers.py"),
        "12 ranges",
        "rows: 6,000 by one alone, 6,000 by all together",
        "violations: 60 by one alone, 60 by all together",
        "they found the same orders, and fixed 60",
        "afterwards: 0 open, exit code 0",
    )


def test_the_payments_example_charges_each_order_once():
    """Through lost answers and an outage of everything it needs: none lost, none charged twice."""
    told = run("06_payments.py")
    positions(
        told,
        "health before: ok",
        "20 customers are told: being charged",
        "the provider goes down",
        "the database stops, Realtime is killed",
        "20 customers are told: accepted, will be confirmed",
        "health during the outage: degraded",
        "breaker:supabase: the circuit is",
        "breaker:provider: the circuit is",
        "queue:charges: ",
        "listener:payments: ",
        "all but Realtime is back",
        "listener.ready listener='public.payments'",
        "health afterwards: ok",
        "orders completed: 63 of 63",
        "charges: 63 for 63 orders",
        "mails: 63 for 63 orders",
        "broken orders: 113 found, 0 left",
    )

    def number(before: str) -> int:
        return int(re.search(rf"{before}: (\d+)", told).group(1))

    assert number("payments") == 63
    assert number("asked for later") >= 20
    assert number("changes that Realtime did not tell") >= 1
    for what in ("charges", "mails"):
        assert int(re.search(rf"{what}: 63 for 63 orders, asked for again: (\d+)", told)[1]) >= 3
    positions(told, "alert.fired alert='charges", "alert.cleared alert='charges")
    fired, over = map(int, re.search(r"alerts: (\d+) fired, (\d+) over", told).groups())
    assert fired - over == 1  # problems are counted since the start
    assert "alert.fired alert='orders'" in told
