"""`python -m supabase_resilience`: the commands as a person runs them."""

import os
import signal
import subprocess
import sys

import httpx
import pytest

from supabase_resilience import __version__
from supabase_resilience.__main__ import main

COMMAND = [sys.executable, "-m", "supabase_resilience"]


def test_version(capsys):
    """It is the package's own."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (0, __version__) == (ended.value.code, capsys.readouterr().out.strip())


def test_misuse_is_told(capsys):
    """An unknown command ends with 2 and says which there are."""
    with pytest.raises(SystemExit) as ended:
        main(["no-such-command"])
    assert 2 == ended.value.code
    assert "local" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="signals of this kind are POSIX's")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_local_serves_until_it_is_ended(tmp_path, end):
    """URL and keys are printed, the schema is there, and a signal ends it in order."""
    schema = tmp_path / "schema.sql"
    schema.write_text("create table planets (id int primary key)")
    with subprocess.Popen(
        [*COMMAND, "local", "--schema", schema],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        told = dict(process.stdout.readline().strip().split("=", 1) for _ in range(4))
        answer = httpx.get(
            f"{told['SUPABASE_URL']}/rest/v1/planets", headers={"apikey": told["SUPABASE_KEY"]}
        )
        assert (200, []) == (answer.status_code, answer.json())
        process.send_signal(end)
    assert 0 == process.returncode
    with pytest.raises(httpx.ConnectError):
        httpx.get(told["SUPABASE_URL"])


def test_local_says_what_is_wrong_with_the_schema(tmp_path, capsys):
    """A file that is not there and SQL that does not run end with 1 and a reason."""
    broken = tmp_path / "broken.sql"
    broken.write_text("select 1;\ncreate tabel planets ()")
    for file, reason in ((tmp_path / "nowhere.sql", "nowhere.sql"), (broken, "tabel")):
        assert 1 == main(["local", "--schema", str(file)])
        assert reason in capsys.readouterr().err


def test_sql_prints_what_it_is_asked_for(capsys):
    """Each migration has a way there and a way back."""
    with pytest.raises(SystemExit):
        main(["sql", "nothing"])
    told = capsys.readouterr().err
    for name, given in (("queue", []), ("cursors", []), ("listener", ["--table", "orders"])):
        assert name in told
        assert 0 == main(["sql", name, *given])
        assert "create schema if not exists supabase_resilience" in capsys.readouterr().out
        assert 0 == main(["sql", name, "--remove"])
        assert "drop schema if exists supabase_resilience" in capsys.readouterr().out
