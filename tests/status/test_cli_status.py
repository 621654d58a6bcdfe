"""`status module:resilience`, as a process of its own."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from supabase_resilience.__main__ import main
from supabase_resilience.cli import status

ROOT = Path(__file__).parents[2]
APP = """
import atexit
from supabase_resilience import *
from supabase_resilience.status import EventLog, status_app

def handle(data):
    print("handled", flush=True)

async def handle_async(data):
    handle(data)

queue = QueueProcessor(handle, store=MemoryQueue("mails"))
resilience = Resilience(CircuitBreaker(), queue)
app = status_app(resilience, events=EventLog(), title="from the app")

async def make():
    return AsyncResilience(AsyncQueueProcessor(handle_async, store=MemoryQueue("mails")))

number = 3
def broken():
    raise ValueError("no")
"""


@pytest.fixture
def directory(tmp_path, monkeypatch):
    (tmp_path / "shop_status.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("shop_status", None)


@contextmanager
def served(spec, directory):
    """The command, and the URL that it has printed; killed in the end."""
    command = [sys.executable, "-m", "supabase_resilience", "status", spec, "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=directory, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.mark.skipif(os.name == "nt", reason="signals of this kind are POSIX's")
@pytest.mark.parametrize("spec", ["shop_status:resilience", "shop_status:make"])
def test_it_runs_the_parts_and_serves_until_it_is_told(spec, directory):
    """In both colours, on loopback; one who watches the page does not keep it from ending."""
    with served(spec, directory) as (process, url):
        assert url.startswith("http://127.0.0.1:")
        ready = httpx.get(f"{url}readyz").json()
        assert ("ok", "ok") == (ready["status"], ready["parts"]["queue:mails"])
        assert httpx.get(f"{url}status.json").json()["is_active"]
        with httpx.stream("GET", f"{url}events") as watching:
            assert "retry: 500" == next(watching.iter_lines())
            process.send_signal(signal.SIGTERM)
            assert 0 == process.wait(30)


def test_a_name_that_is_not_its_own_is_refused(directory):
    """A page of someone else cannot read it through a name that leads to 127.0.0.1."""
    with served("shop_status:app", directory) as (_, url):
        assert "from the app" in httpx.get(url).text
        foreign = httpx.get(f"{url}status.json", headers={"host": "evil.example:8400"})
        assert 400 == foreign.status_code
        localhost = url.replace("127.0.0.1", "localhost")
        assert 200 == httpx.get(f"{url}livez", headers={"host": localhost[7:-1]}).status_code


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("shop_status:number", "int, not a Resilience"),
        ("shop_status:broken", "could not be made: ValueError: no"),
        ("shop_status:nothing", "has no 'nothing'"),
        ("shop_status", "not of the form module:name"),
    ],
)
def test_what_cannot_be_run_is_told(spec, said, directory, capsys):
    """In one sentence, with exit code 1."""
    assert 1 == main(["status", spec])
    assert said in capsys.readouterr().err


def test_a_port_that_is_taken_is_told(directory, capsys):
    """Before any part is started."""
    with served("shop_status:resilience", directory) as (_, url):
        port = url.rstrip("/").rpartition(":")[2]
        assert 1 == main(["status", "shop_status:resilience", "--port", port])
    assert "in use" in capsys.readouterr().err
    assert "new" == sys.modules["shop_status"].queue.get_stats().state


@pytest.mark.parametrize("port", ["http", "-1", "65536"])
def test_a_port_that_is_none(port, capsys):
    """Is misuse."""
    with pytest.raises(SystemExit) as ended:
        main(["status", "shop_status:resilience", f"--port={port}"])
    assert 2 == ended.value.code


@pytest.mark.parametrize(
    ("host", "is_warned"),
    [("127.0.0.1", False), ("localhost", False), ("::1", False), ("0.0.0.0", True)],
)
def test_who_lets_others_look_is_warned(host, is_warned, capsys):
    """Whoever reaches the port sees the page."""
    status._server(None, host)
    assert is_warned == ("warning" in capsys.readouterr().err)


def test_a_missing_extra_is_named(monkeypatch, directory, capsys):
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert 1 == main(["status", "shop_status:resilience"])
    assert 'pip install "supabase-resilience[status]"' in capsys.readouterr().err
