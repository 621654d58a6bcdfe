"""The command `doctor`, as a person and CI run it."""

import json
import os
import subprocess
import sys

import pytest

from supabase_resilience.__main__ import main

MODULE = """
import os
from supabase import create_async_client, create_client
from supabase_resilience import (
    QueueProcessor, Recovery, SupabaseQueue, queue_processor, realtime_listener
)

url, key = os.environ["SUPABASE_URL"], os.environ["SUPABASE_KEY"]
mails = queue_processor(create_client(url, key), "mails", print, lanes={10: "_high"})
nothing = object()

def orders():
    return realtime_listener(create_client(url, key), "orders", recovery=Recovery.by_column())

async def items():
    client = await create_async_client(url, key)
    return realtime_listener(client, "items", recovery=Recovery.versioned())

def broken():
    raise RuntimeError("no config")
"""


@pytest.fixture
def doctor(sound, monkeypatch, tmp_path, capsys):
    """Run the command on the sound project; its exit code, and what it printed."""
    local = sound.local
    monkeypatch.setenv("SUPABASE_URL", local.url)
    monkeypatch.setenv("SUPABASE_KEY", local.secret_key)
    monkeypatch.setenv("DATABASE_DSN", local.dsn)
    (tmp_path / "app_of_doctor.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "app_of_doctor", raising=False)

    def run(*arguments):
        code = main(["doctor", *arguments])
        return code, capsys.readouterr()

    yield run
    if str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))


def test_a_sound_project_exits_with_0(doctor):
    """Its parts are looked at, those that functions of either colour make, too."""
    parts = (f"app_of_doctor:{name}" for name in ("mails", "orders", "items"))

    code, said = doctor(*parts)

    assert (0, "") == (code, said.err)
    assert "✓ queue                mails_high: is there" in said.out
    assert "✓ index                public.orders: has an index" in said.out
    assert "✓ migration            public.items: sql listener is there" in said.out
    assert said.out.endswith("0 problems, 0 warnings, 1 not seen. Nothing was changed.\n")


def test_a_problem_exits_with_1_and_shows_its_fix(doctor):
    """The SQL stands there as it is to be run, below what is wrong and why."""
    code, said = doctor("--queue", "mails", "--lane", "_low", "--table", "public.nowhere")

    assert 1 == code
    assert "✗ queue                mails_low: the lane does not exist" in said.out
    assert "    why  Jobs of its priority cannot be sent" in said.out
    assert (
        "    fix  select public.supabase_resilience_queue_create('mails_low', false);" in said.out
    )
    assert "✗ table                public.nowhere: is not a table that the API knows" in said.out
    assert "2 problems, 0 warnings" in said.out


def test_json_holds_all_findings(doctor):
    """For a program; the exit code is the same."""
    code, said = doctor("--json", "--table", "orders", "--cursor-column", "kind")

    told = json.loads(said.out)
    assert 1 == code == told["exit_code"]
    wrong = [each for each in told["findings"] if each["severity"] == "problem"]
    assert ["index"] == [each["check"] for each in wrong]
    assert {"check", "severity", "subject", "what", "why", "fix"} == wrong[0].keys()


def test_the_dsn_may_be_given_or_left_out(doctor, sound, monkeypatch):
    """Without one it is said what was not seen; the environment's is used unless one is given."""
    monkeypatch.delenv("DATABASE_DSN")
    assert "? dsn " in doctor()[1].out
    assert "? dsn " not in doctor("--dsn", sound.local.dsn)[1].out


@pytest.mark.parametrize("missing", ["SUPABASE_URL", "SUPABASE_KEY"])
def test_without_a_project_it_exits_with_2(doctor, monkeypatch, missing):
    """What has to be set is named."""
    monkeypatch.delenv(missing)

    code, said = doctor()

    assert (2, "") == (code, said.out)
    assert f"set {missing}:" in said.err


def test_nobody_there_exits_with_2(doctor, monkeypatch):
    """CI can tell a sick project from one that it could not reach."""
    monkeypatch.setenv("SUPABASE_URL", "http://127.0.0.1:1")

    code, said = doctor("--timeout", "5")

    assert (2, "") == (code, said.out)
    assert "the API did not answer" in said.err


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("app_of_doctor:nothing", "app_of_doctor:nothing is a object: there is nothing"),
        ("app_of_doctor:absent", "has no 'absent'"),
        ("app_of_doctor:broken", "no config"),
        ("nonsense", "module:name"),
    ],
)
def test_a_part_that_cannot_be_had_exits_with_2(doctor, part, said):
    """And says why."""
    code, printed = doctor(part)

    assert (2, "") == (code, printed.out)
    assert said in printed.err


@pytest.mark.parametrize(
    "arguments",
    [("--table", "a.b.c"), ("--processes", "0"), ("--realtime-rate", "nan"), ("--timeout", "-1")],
)
def test_misuse_is_named(doctor, arguments, capsys):
    """By the parser."""
    with pytest.raises(SystemExit) as ended:
        doctor(*arguments)

    assert 2 == ended.value.code
    assert arguments[0] in capsys.readouterr().err


def test_a_name_cannot_move_the_terminal(doctor):
    """Neither in what is wrong nor in the fix."""
    code, said = doctor("--queue", "a\x1b[2Jb")

    assert 1 == code
    assert "\x1b" not in said.out


def test_a_terminal_without_the_marks_gets_others(doctor):
    """Where the encoding of stdout has no ticks."""
    command = [sys.executable, "-m", "supabase_resilience", "doctor", "--queue", "absent"]

    ended = subprocess.run(
        command, capture_output=True, check=False, env=_environment(PYTHONIOENCODING="ascii")
    )

    assert 1 == ended.returncode
    assert b"x queue                absent: the queue does not exist" in ended.stdout


def _environment(**more):
    return {**os.environ, **more}
