"""The command `verify`, as a person and cron run it."""

import io
import json
import os
import re
import signal
import subprocess
import sys

import pytest

from supabase_resilience.__main__ import main
from supabase_resilience.cli.verify import _Progress, bar

from .worlds import Bench, SyncWorld, eventually

MODULE = """
import os
from supabase import acreate_client, create_client
from supabase_resilience import Rule, server_side_verification

ARGUMENTS = os.environ["SUPABASE_URL"], os.environ["SUPABASE_KEY"]
TABLE = os.environ["ORDERS"]
OPTIONS = dict(
    grace=0.02,
    max_share=1.0,
    rules=[
        Rule(
            "dated",
            check=lambda row: row["status"] != "done" or row["done_at"],
            fix=lambda row: {"done_at": "2026-01-01T00:00:00+00:00"},
        )
    ],
)

def sync():
    return server_side_verification(create_client(*ARGUMENTS), TABLE, **OPTIONS)

async def later():
    return server_side_verification(await acreate_client(*ARGUMENTS), TABLE, **OPTIONS)

def left():
    options = OPTIONS | {"rules": [Rule("dated", check=OPTIONS["rules"][0].check)]}
    return server_side_verification(create_client(*ARGUMENTS), TABLE, **options)

def failing():
    def throttle():
        raise KeyError("x")
    return server_side_verification(create_client(*ARGUMENTS), TABLE, throttle=throttle, **OPTIONS)

def unknown():
    return server_side_verification(create_client(*ARGUMENTS), "nope", **OPTIONS)

def raising():
    raise KeyError("x")

number = 1
"""


@pytest.fixture
def table(local, tmp_path, monkeypatch):
    """A table with two broken rows, and a module that verifies it in the current directory."""
    bench = Bench(SyncWorld(), local)
    made = bench.table()
    made.fill(20, [3, 7])
    (tmp_path / "shop.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUPABASE_URL", local.url)
    monkeypatch.setenv("SUPABASE_KEY", local.secret_key)
    monkeypatch.setenv("ORDERS", made.name)
    yield made
    bench.close()


def verify(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "supabase_resilience", "verify", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("made", ["sync", "later"])
def test_a_pass_prints_its_report(table, made):
    """And ends with its exit code."""
    done = verify(f"shop:{made}", "--once")
    assert (0, "") == (done.returncode, "".join(re.findall(r"Traceback", done.stderr)))
    assert done.stdout.startswith(f"{table.full_name}: clean; 20 rows in ")
    assert [] == table.broken()


@pytest.mark.parametrize("made", ["sync", "later"])
def test_a_dry_run_is_one_pass_that_writes_nothing(table, made):
    """Its exit code says that there is something to do."""
    done = verify(f"shop:{made}", "--dry-run")
    assert 1 == done.returncode
    assert "2 open (dry run)" in done.stdout
    assert [3, 7] == table.broken()


@pytest.mark.parametrize(("made", "code"), [("left", 1), ("failing", 2), ("unknown", 2)])
def test_the_exit_code_is_that_of_the_report(table, made, code):
    """1 where violations are left, 2 where the pass failed."""
    done = verify(f"shop:{made}", "--once")
    assert code == done.returncode
    assert "Traceback" not in done.stderr
    assert (made == "unknown") == ("create the table" in done.stderr)


def test_the_report_is_written_too(table):
    """As a page, or as JSON."""
    assert 1 == verify("shop:left", "--report", "out.html").returncode
    with open("out.html", encoding="utf-8") as page:  # noqa: PTH123 - in the current directory
        assert f"Verification of {table.full_name}" in page.read()
    assert 1 == verify("shop:left", "--report", "out.json").returncode
    with open("out.json", encoding="utf-8") as said:  # noqa: PTH123
        assert [3, 7] == [each["key"] for each in json.load(said)["problems"]]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("shop", "not of the form module:name"),
        ("nope:x", "there is no module 'nope'"),
        ("shop:nope", "shop has no 'nope'"),
        ("shop:number", "shop:number is a int, not a verification"),
        ("shop:raising", "shop:raising could not be made: KeyError: 'x'"),
    ],
)
def test_misuse_is_told_in_one_line(table, spec, reason):
    """With exit code 2."""
    done = verify(spec, "--once")
    assert 2 == done.returncode
    assert reason in done.stderr
    assert 1 == len(done.stderr.splitlines())


def test_an_unknown_option_is_told(capsys):
    """As by every command."""
    with pytest.raises(SystemExit) as ended:
        main(["verify"])
    assert 2 == ended.value.code
    assert "MODULE:VERIFICATION" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="signals of this kind are POSIX's")
@pytest.mark.parametrize("made", ["sync", "later"])
def test_without_once_it_runs_until_it_is_ended(table, made):
    """By SIGTERM, in order."""
    with subprocess.Popen(
        [sys.executable, "-m", "supabase_resilience", "verify", f"shop:{made}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        eventually(lambda: table.broken() == [])
        running.send_signal(signal.SIGTERM)
        said, log = running.communicate()
    assert (0, "") == (running.returncode, said)
    assert "Traceback" not in log


# --- the bar --------------------------------------------------------------------------------------


def test_the_bar_says_how_far_it_is():
    """And about how long it will take."""
    assert "[........................]   0%, about 0 s left" == bar(0.0, 9.0)
    assert "[############............]  50%, about 60 s left" == bar(0.5, 60.0)
    assert "[########################] 100%, about 0 s left" == bar(1.0, 60.0)
    assert "about 3,600 s left" in bar(0.5, 3600.0)


class Screen(io.StringIO):
    """A stream that says whether it is a terminal."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def test_the_bar_is_for_terminals(monkeypatch):
    """It is gone afterwards; nothing is shown as long as nobody knows how far it is."""
    monkeypatch.setattr("supabase_resilience.cli.verify._EVERY", 0.001)

    class Stats:
        told = iter([None, 0.25])
        progress = property(lambda self: next(self.told, 0.75))

    screen = Screen(terminal=True)
    with _Progress(Stats, screen):
        eventually(lambda: "75%" in screen.getvalue())
    assert screen.getvalue().startswith("\r\x1b[K[######......")
    assert screen.getvalue().endswith("\r\x1b[K")
    silent = Screen(terminal=False)
    with _Progress(Stats, silent):
        pass
    assert not silent.getvalue()
